#!/usr/bin/env bash
# torch 2.13.0 on a CPU, glibc: a training step of a steady size asks the kernel for thousands of fresh pages every time,
# and raising malloc's trim threshold alone makes that worse, not better.
#
# Torch takes its tensors from malloc and keeps none. glibc gives the top of the heap back as soon as enough of it is
# free, so what one step frees the next one takes anew from the kernel, which clears each page first. Two thresholds
# decide: MALLOC_TRIM_THRESHOLD_ (when the top is given back) and MALLOC_MMAP_THRESHOLD_ (from which size an array is a
# mapping of its own, gone when it is freed). By themselves both grow with what is freed; setting either one stops that
# for both, so the other falls back to 128 KiB and every larger array becomes a mapping. Both have to be set.
#
# Seen with torch 2.13.0 (CPU build), glibc 2.36, one thread (November 2026), page faults a step of two 576 × 576 layers,
# 768 rows, AdamW, after 20 steps:
#     as it comes                              856 in one script, 2257 in another with a seed
#     MALLOC_TRIM_THRESHOLD_=256 MiB           4980
#     the same, MALLOC_MMAP_THRESHOLD_=32 MiB     9
# What that costs depends on the machine; on a virtual one a tenth to a fifth of a small model's step.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check torch==2.13.0 numpy
cat >"$folder/steps.py" <<'PYTHON'
import resource

import torch

torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Linear(576, 576), torch.nn.GELU(), torch.nn.Linear(576, 576))
optimizer = torch.optim.AdamW(net.parameters(), fused=True)
inputs = torch.randn(768, 576)


def steps(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        optimizer.zero_grad(set_to_none=True)
        net(inputs).square().mean().backward()
        optimizer.step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / count


steps(20)
print(round(steps(50)))
PYTHON
plain=$("$folder/venv/bin/python" "$folder/steps.py")
trim=$(MALLOC_TRIM_THRESHOLD_=268435456 "$folder/venv/bin/python" "$folder/steps.py")
both=$(MALLOC_TRIM_THRESHOLD_=268435456 MALLOC_MMAP_THRESHOLD_=33554432 "$folder/venv/bin/python" "$folder/steps.py")
echo "page faults a step: as it comes $plain, with a trim threshold $trim, with both thresholds $both"
[ "$plain" -gt 500 ] && [ "$trim" -gt "$plain" ] && [ "$both" -lt 100 ] || { echo "changed"; exit 1; }
