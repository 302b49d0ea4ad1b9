#!/usr/bin/env bash
# Set-up and notebooks 00 to 03 as on Colab: its versions (pins.txt), its variables, the project in /content/new-llm.
#
#   bash tests/colab/check.sh FOLDER     FOLDER: new or of an earlier call, gets the runtime (7 GB with CUDA's libraries)
#
#   PYTHON=python3.13         what the runtime is made with
#   TORCH_INDEX_URL=https://  of PyTorch's CPU wheels, where that can be reached: 2 GB instead of 7
#
# Outside the tests and .ci/run, since it takes some twenty minutes. Writes /content/new-llm, a link, for as long as it
# runs, as the notebooks look there. What is committed is checked, not changes beside it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
mkdir -p "${1:?usage: bash tests/colab/check.sh FOLDER}"
folder=$(cd "$1" && pwd)
unset PYTHONPATH NEWLLM_HOME VIRTUAL_ENV

step() { printf '=== %s (%s s)\n' "$1" "$SECONDS"; }

kept() { "$folder/runtime/bin/python3" -m pip freeze --all | grep -E '^(torch|numpy|setuptools|ipykernel)==' | sort; }

if [ ! -e "$folder/runtime/complete" ]; then
    step "The runtime"
    rm -rf "$folder/runtime"
    "${PYTHON:-python3.13}" -m venv "$folder/runtime"
    "$folder/runtime/bin/python3" -m pip install --quiet -r "$root/tests/colab/pins.txt" \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"}
    touch "$folder/runtime/complete"
fi
export COLAB_RELEASE_TAG=release-colab-external JUPYTER_PREFER_ENV_PATH=1 TQDM_DISABLE=1 OMP_WAIT_POLICY=passive
export PATH="$folder/runtime/bin:$PATH"

rm -rf "$folder/new-llm"
git clone --quiet "$root" "$folder/new-llm"
if [ -e /content/new-llm ] || [ -L /content/new-llm ]; then
    echo "/content/new-llm is there already: remove it first"
    exit 1
fi
mkdir -p /content
ln -s "$folder/new-llm" /content/new-llm
trap 'rm /content/new-llm; rmdir --ignore-fail-on-non-empty /content' EXIT

before=$(kept)
step "Set-up"
cd /content/new-llm
bash colab_setup.sh setup
step "A second time, with nothing to do"
bash colab_setup.sh setup >/dev/null
step "Unchanged, and nothing that contradicts"
diff <(echo "$before") <(kept)
echo "$before"
python3 -m pip check
step "Notebooks"
python3 -m newllm_core.batch notebooks/0[0-3]*.ipynb --out results/notebooks --workers 1
step "Done"
