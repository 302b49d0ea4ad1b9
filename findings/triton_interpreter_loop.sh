#!/usr/bin/env bash
# triton 3.6.0, TRITON_INTERPRET=1: a loop up to an argument of the kernel fails with NumPy 2.4.
#
# The interpreter holds a scalar argument as an array of one element and turns it into an index by `int(array)`, which
# NumPy has deprecated since 1.25 and 2.4.6 refuses. `for first in range(0, count, BLOCK)`, the first loop of every
# tutorial, then ends in a TypeError that names neither the loop nor NumPy. On a GPU the same kernel runs.
#
# Seen with triton 3.6.0, torch 2.13.0 and NumPy 2.4.6 on Python 3.11 (November 2026):
#     InterpreterError: TypeError('only 0-dimensional arrays can be converted to Python scalars')
# Expected: the sum, 499500. Way around: the bound as `tl.constexpr`, a `while` loop, or an older NumPy.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps triton==3.6.0
# A kernel is read from its file.
cat >"$folder/kernel.py" <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def total(values, result, count, BLOCK: tl.constexpr):
    sums = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        place = first + tl.arange(0, BLOCK)
        sums += tl.load(values + place, mask=place < count, other=0.0)
    tl.store(result, tl.sum(sums, axis=0))


result = torch.zeros(1)
try:
    total[(1,)](torch.arange(1000.0), result, 1000, BLOCK=64)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
    print("as found: the interpreter cannot count up to an argument")
else:
    raise SystemExit(f"changed: the loop ran, {float(result)}")
PYTHON
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/kernel.py"
