#!/usr/bin/env bash
# submitit 1.5.4: a local job that died gives the result of an earlier job, as its own and as a success.
#
# The local executor (`LocalExecutor`, `AutoExecutor(cluster="local")`) calls a job by the number of its process and keeps
# its result in `<number>_0_result.pkl`. A new job with a number that was there before does not remove that file. If it
# is killed (no memory, a node that goes) it leaves no result, and `job.result()` reads the earlier one: no error, the
# value of another call. Numbers come again whenever a container is started anew on the same folder, since its processes
# are counted from 1 each time, and elsewhere after 32,768 processes.
#
# Seen with submitit 1.5.4 on Python 3.11 (November 2026); each line is a container, that is a process namespace:
#     job 2 of a first container ended: the first's result
#     job 2 of a second container was killed: the first's result
#     the same in an empty folder: UncompletedJobError
# Expected in the second line: UncompletedJobError. Way around: a new folder for every executor.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check submitit==1.5.4
cat >"$folder/one_job.py" <<'PYTHON'
import os
import sys

import submitit


def work(is_killed: bool) -> str:
    if is_killed:
        os._exit(9)
    return "the first's result"


job = submitit.LocalExecutor(sys.argv[1]).submit(work, sys.argv[2] == "killed")
try:
    print(job.job_id, job.result())
except submitit.core.utils.UncompletedJobError as error:
    print(job.job_id, type(error).__name__)
PYTHON

container() { # folder of jobs, killed or ended
    unshare --user --map-root-user --pid --fork --mount-proc "$folder/venv/bin/python" "$folder/one_job.py" "$@"
}

expect() { # what it is, what is seen, what was seen in November 2026
    echo "$1: $2"
    [ "$2" = "$3" ] || { echo "changed: expected $3" >&2; exit 1; }
}

expect "a job of a first container ended" "$(container "$folder/jobs" ended)" "2 the first's result"
expect "a job of a second container was killed" "$(container "$folder/jobs" killed)" "2 the first's result"
expect "the same in an empty folder" "$(container "$folder/empty" killed)" "2 UncompletedJobError"
echo "as found: a job that died has another's result"
