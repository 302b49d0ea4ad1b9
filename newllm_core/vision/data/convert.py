"""The form in which stored images are used: in colour or grey, at their own size or another."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from newllm_core.vision.data.records import CHUNK_IMAGES

LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode "L"


def converted(images: torch.Tensor, colour: str, side: int | None) -> torch.Tensor:
    """uint8 `[n, channels, h, w]` with `colour` "stored" or "grey" (1 channel), `side` pixels a side (None: as stored).

    Sizes change by bilinear interpolation with antialiasing; every step rounds to whole values.
    """
    if colour == "grey" and images.shape[1] == 3:
        images = _in_chunks(images, grey)
    if side is not None and tuple(images.shape[2:]) != (side, side):
        images = _in_chunks(images, lambda part: resized(part, side))
    return images


def grey(images: torch.Tensor) -> torch.Tensor:
    """Luma of RGB images: uint8 `[n, 3, h, w]` to `[n, 1, h, w]`."""
    weights = torch.tensor(LUMA_WEIGHTS, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True).round().to(torch.uint8)


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """uint8 `[n, channels, h, w]` to `[n, channels, side, side]`."""
    pixels = images.to(torch.float32)
    scaled = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return scaled.round().clamp(0, 255).to(torch.uint8)


def _in_chunks(images: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply ``change`` to a part at a time: the float copy of a whole data set would take four times its memory."""
    return torch.cat([change(part) for part in images.split(CHUNK_IMAGES)])
