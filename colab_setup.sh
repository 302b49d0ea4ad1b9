#!/usr/bin/env bash
# Sets New-LLM up, tests it, runs its notebooks: on Google Colab, Linux and macOS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# Notebooks run with the environment's own kernel, whatever kernels the user has registered.
export JUPYTER_PREFER_ENV_PATH=1
# On a machine that does other things too, threads that spin while they wait make everything up to ten times slower.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

usage() {
    cat <<'END'
usage: bash colab_setup.sh VERB

  setup          check the machine, install what is missing (a second time: a few seconds)
  check          check only, change nothing
  test [...]     set up, then run the tests on up to four cores; the rest is handed to pytest
  run            set up, then run every notebook with its defaults; results/index.html shows what came out

On Colab everything goes into the runtime's own Python, whose torch, NumPy, ipykernel and setuptools stay; what only
the tests need comes with them alone. Elsewhere it goes into .venv.

  PYTHON=python3.12         the Python to make .venv with (3.11, 3.12 or 3.13)
  TORCH_INDEX_URL=https://  one more package index to look for torch in. On Linux the usual registry has torch with
                            gigabytes of CUDA; for the CPU build give PyTorch's index of CPU wheels
END
}

fail() { # what is wrong, how to repair it
    printf '[FAIL] %s — repair: %s\n' "$1" "$2"
    exit 1
}

on_colab() {
    [ -n "${COLAB_RELEASE_TAG:-}" ] || python3 -c 'import google.colab' >/dev/null 2>&1
}

python_version() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

suitable() {
    case "$(python_version "$1" || true)" in 3.11 | 3.12 | 3.13) true ;; *) false ;; esac
}

find_python() { # sets base_python: $PYTHON, else the first suitable one, else any that can say it is too old
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        base_python=$PYTHON
    else
        base_python=python3
        for candidate in python3 python3.12 python3.11 python3.13; do
            if suitable "$candidate"; then
                base_python=$candidate
                break
            fi
        done
    fi
    case "$(python_version "$base_python" || true)" in
        3.*) ;;
        *) fail "Python: $base_python is not a Python 3 that runs" \
            "install Python 3.11, 3.12 or 3.13, then: PYTHON=python3.12 bash colab_setup.sh setup" ;;
    esac
}

one_at_a_time() { # two set-ups in one folder would undo each other's work; held until file 9 is closed
    exec 9>>colab_setup.sh
    if command -v flock >/dev/null && ! flock --nonblock 9; then
        echo "Another set-up is at work in this folder; waiting for it."
        flock 9
    fi
}

inspect_existing_environment() { # an interrupted one is thrown away, an unusable one is refused
    if [ -e .venv.unfinished ]; then
        echo "The last set-up did not finish: making .venv anew."
        rm -rf .venv
    elif [ -e .venv ]; then
        suitable .venv/bin/python || fail ".venv: no Python 3.11, 3.12 or 3.13 that runs in it" "rm -r .venv"
        if [ -n "${PYTHON:-}" ] && [ "$(python_version "$PYTHON" || true)" != "$(python_version .venv/bin/python)" ]; then
            fail ".venv: made with Python $(python_version .venv/bin/python), but PYTHON=$PYTHON" "rm -r .venv"
        fi
    fi
}

install_packages() { # the file with the version constraints; further options of the editable install
    local constraints=$1 quiet=--quiet compile=--no-compile
    shift
    # Python compiles what is imported when it is imported; compiling every file takes longer than all else here. Where
    # it is told to keep nothing, it would compile at every start.
    if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then compile=--compile; fi
    if [ -t 1 ]; then quiet=--progress-bar=on; fi
    echo "Installing what the project needs (2 GB on disk with a CPU build of torch; minutes the first time)."
    "$python" -m pip install "$quiet" "$compile" --disable-pip-version-check --no-input -r requirements.txt \
        ${tests:-} ${builder:-} -c "$constraints" \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} </dev/null &&
        "$python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps "$@" -e . </dev/null ||
        fail "packages: pip stopped before everything was installed; its reason is above" \
            "bash colab_setup.sh setup (starts over, keeps what was downloaded)"
    "$python" check_environment.py --fingerprint >"$environment/.newllm-setup"
}

is_set_up() {
    "$python" check_environment.py --is-set-up --environment "$environment" $part
}

set_up_on_colab() {
    python=python3
    environment=$(python3 -c 'import sys; print(sys.prefix)')
    python3 check_environment.py --colab --environment "$environment"
    if ! is_set_up; then
        local kept
        kept=$(mktemp)
        # Another torch would not fit the runtime's GPU driver, another numpy or ipykernel would need a restart of the
        # runtime, and without the pkg_resources of its setuptools other packages of the runtime stop working.
        python3 -m pip list --format=freeze --disable-pip-version-check 2>/dev/null |
            grep -E '^(torch|numpy|ipykernel|setuptools)==' >"$kept" || true
        install_packages "$kept"
        rm "$kept"
    fi
}

set_up_in_venv() {
    python=.venv/bin/python
    environment=.venv
    one_at_a_time
    inspect_existing_environment
    find_python
    if [ -e .venv ]; then base_python=$python; fi
    "$base_python" check_environment.py --environment .venv
    if [ ! -e .venv ] || ! is_set_up; then
        touch .venv.unfinished
        [ -e .venv ] || "$base_python" -m venv .venv
        local builder="setuptools>=77" # of the editable install, which then needs no download of its own
        install_packages constraints.txt --no-build-isolation
        rm .venv.unfinished
    fi
    exec 9>&-
}

set_up() { # $part of the packages: what only the tests need is left out, or nothing is
    if on_colab; then set_up_on_colab; else set_up_in_venv; fi
    "$python" check_environment.py --packages $part
    echo "Set up: $("$python" -c 'import sys; print(sys.executable)')"
}

check() {
    if on_colab; then
        python3 check_environment.py --colab --environment "$(python3 -c 'import sys; print(sys.prefix)')"
        python3 check_environment.py --packages --without-tests
    elif [ -e .venv ] && [ ! -e .venv.unfinished ]; then
        inspect_existing_environment
        .venv/bin/python check_environment.py --environment .venv
        .venv/bin/python check_environment.py --packages
    else
        find_python
        "$base_python" check_environment.py
        echo "Nothing is installed yet: bash colab_setup.sh setup"
    fi
}

run_notebooks() {
    set -- notebooks/[0-9]*.ipynb
    [ -e "$1" ] || fail "notebooks: there are none in notebooks/" "git checkout -- notebooks"
    local status=0 workers=1
    # Two at a time where there are two cores; on Colab they would share one GPU's memory.
    on_colab || workers=$("$python" -c 'import os; print(min(2, os.cpu_count() or 1))')
    "$python" -m newllm_core.batch "$@" --out results/notebooks --workers "$workers" || status=$?
    "$python" -m newllm_core.report || status=$? # what came out, and the page that shows it
    return "$status"
}

verb=${1:-}
tests="-r requirements-tests.txt" part=
if on_colab && [ "$verb" != test ]; then tests="" part=--without-tests; fi
if [ $# -gt 0 ]; then shift; fi
case "$verb" in
    setup) set_up ;;
    check) check ;;
    test)
        set_up
        # A test uses one thread: one process a core, and no more than memory has room for.
        exec "$python" -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
        ;;
    run)
        set_up
        run_notebooks
        ;;
    help | -h | --help) usage ;;
    *)
        [ -z "$verb" ] || echo "unknown verb '$verb'" >&2
        usage >&2
        exit 2
        ;;
esac
