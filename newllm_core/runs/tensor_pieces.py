"""Safetensors files of tensors that may be larger than memory: written piece by piece, read where they lie.

`safetensors` writes without a copy too, but has a mapped tensor in memory as a whole while it does.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from newllm_core.runs.mapped import map_file, pieces

# The format's names (https://huggingface.co/docs/safetensors, "Format").
_NAMES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_KINDS = {name: kind for kind, name in _NAMES.items()}
# Smaller ones are copied into memory, so that they may be written to and their file may go.
LARGE_BYTES = 16 * 2**20


def write_in_pieces(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """What ``safetensors.torch.save_file`` writes, for tensors on any device. Raises KeyError for other kinds."""
    # Larger numbers first, so that all of them begin where the processor likes it.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header, end = dict[str, object](), 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            for piece in pieces(tensor):
                file.write(piece.cpu().contiguous().view(torch.uint8).numpy().data)


def read_in_place(path: Path) -> dict[str, Tensor]:
    """Its tensors, the large ones mapped: to be read only. Raises SafetensorError for a file of another kind."""
    with safe_open(path, "pt"):  # looks at the header
        content = map_file(path)
    begin = 8 + int.from_bytes(bytes(content[:8].tolist()), "little")
    header = json.loads(bytes(content[8:begin].tolist()))
    header.pop("__metadata__", None)
    found = {}
    for name, stored in header.items():
        first, stop = stored["data_offsets"]
        kind = _KINDS[stored["dtype"]]
        tensor = torch.empty(stored["shape"], dtype=kind)
        if math.prod(stored["shape"]):
            tensor = content[begin + first : begin + stop].view(kind).view(stored["shape"])
        found[name] = tensor if tensor.nbytes > LARGE_BYTES else tensor.clone()
    return found
