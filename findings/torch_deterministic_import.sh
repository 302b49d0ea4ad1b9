#!/usr/bin/env bash
# torch 2.13.0: asking for deterministic algorithms imports the compiler, some 800 modules, whether anything is compiled
# or not; the debug mode that does the same does not.
#
# `torch.use_deterministic_algorithms` sets a switch of `torch._inductor.config` too, and so imports Inductor, Dynamo,
# SymPy and what they need: as long again as `import torch` itself, in every process that seeds itself reproducibly.
# `torch.set_deterministic_debug_mode("warn")` sets the same mode (`are_deterministic_algorithms_enabled`, with warnings
# only) without it. Constructing an optimizer imports the same modules, so a program that trains gains nothing; one that
# evaluates, generates or serves does. Programs that use `torch.compile` need the switch.
#
# Seen with torch 2.13.0 (CPU build) on Python 3.11 (November 2026), modules imported beyond `import torch`:
#     use_deterministic_algorithms(True, warn_only=True)    823
#     set_deterministic_debug_mode("warn")                    0
#     torch.optim.Adam                                      823
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy
for call in 'torch.use_deterministic_algorithms(True, warn_only=True)' 'torch.set_deterministic_debug_mode("warn")' \
    'torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])'; do
    "$folder/venv/bin/python" - "$call" <<'PYTHON'
import sys

import torch

before = len(sys.modules)
exec(sys.argv[1])
found = len(sys.modules) - before
print(f"{sys.argv[1]}: {found} modules")
if "Adam" not in sys.argv[1]:
    assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
lean = "debug_mode" in sys.argv[1]
assert found == 0 if lean else found > 500, "changed"
assert ("torch._inductor.config" in sys.modules) is not lean, "changed"
PYTHON
done
echo "as found: the compiler comes with deterministic algorithms, and not with their debug mode"
