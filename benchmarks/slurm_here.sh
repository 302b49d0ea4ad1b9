#!/usr/bin/env bash
# A SLURM of one node on this machine, from Debian's packages, to try `--engine slurm` on (as root, in a container):
#
#     apt-get install --no-install-recommends slurm-wlm munge
#     bash benchmarks/slurm_here.sh start FOLDER && export SLURM_CONF=FOLDER/slurm.conf
#     python -m benchmarks.engines --only slurm
#     bash benchmarks/slurm_here.sh stop FOLDER
#
# Partition `low` is the default; a job in `high` takes its cores, and what ran in `low` is queued again. Without an
# accounting database, so `sacct` says nothing.
set -euo pipefail
[ $# = 2 ] || { echo "expected start FOLDER or stop FOLDER" >&2; exit 2; }
action=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)

if [ "$action" = stop ]; then
    for name in slurmd slurmctld munged; do
        [ ! -f "$folder/$name.pid" ] || kill "$(cat "$folder/$name.pid")"
    done
    exit
fi

host=$(hostname -s)
mkdir -p "$folder/spool" "$folder/state"
cat >"$folder/slurm.conf" <<CONF
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmdSpoolDir=$folder/spool
StateSaveLocation=$folder/state
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
CONF
mkdir -p /run/munge
chown munge:munge /run/munge /var/log/munge /var/lib/munge
pgrep munged >/dev/null || runuser -u munge -- /usr/sbin/munged
export SLURM_CONF=$folder/slurm.conf
slurmctld
slurmd
for _ in $(seq 60); do
    if sinfo --noheader --states=idle | grep -q .; then
        sinfo
        exit
    fi
    sleep 1
done
echo "expected a node that is idle; $folder/slurmctld.log and slurmd.log say more" >&2
exit 1
