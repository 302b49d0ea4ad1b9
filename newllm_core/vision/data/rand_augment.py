"""RandAugment with operations drawn for each image apart: the 14 operations of Cubuk et al. 2020 (arXiv:1909.13719).

Strengths grow linearly with the magnitude m of 0 … 30, up to these at 30: rotation 30 degrees, shear 0.3, shift 0.45 of
the side, colour, contrast, brightness and sharpness a factor of 1 ± 0.9, posterising to 4 bits, solarising from 0 up.
Signs are drawn for each image. The published code gives the last kinds no sign and solarises less at a larger m.

Images of one batch that drew the same operation are changed together; the draws are made on the CPU, so that a GPU is
never asked which they are.
"""

from collections.abc import Callable

import torch
from kornia import enhance
from kornia.geometry.transform import get_affine_matrix2d, warp_affine

MAX_MAGNITUDE = 30.0
MAX_ROTATION = 30.0  # degrees
MAX_SHEAR = 0.3  # tangent of the angle
MAX_SHIFT = 0.45  # of the side
MAX_FACTOR = 0.9  # a factor of 1 ± this
MAX_LOST_BITS = 4  # of 8
HALF_STEP = 0.5 / 255  # kornia inverts what reaches the threshold: white must not at strength 0

GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
# Images in 0 … 1 `[k, c, h, w]` and a strength of -1 … 1 for each, `[k]`, to images.
INTENSITY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "auto_contrast": lambda images, strength: auto_contrast(images),
    "equalize": lambda images, strength: enhance.equalize(images),
    "posterize": lambda images, strength: enhance.posterize(images, _bits(strength)),
    "solarize": lambda images, strength: enhance.solarize(images, 1 - strength.abs() + HALF_STEP),
    "colour": lambda images, strength: enhance.adjust_saturation_with_gray_subtraction(images, _factor(strength)),
    "contrast": lambda images, strength: enhance.adjust_contrast_with_mean_subtraction(images, _factor(strength)),
    "brightness": lambda images, strength: enhance.adjust_brightness_accumulative(images, _factor(strength)),
    "sharpness": lambda images, strength: enhance.sharpness(images, _factor(strength)),
}
OPERATIONS = ("identity", *GEOMETRY, *INTENSITY)


def rand_augment(images: torch.Tensor, num_operations: int, magnitude: float) -> torch.Tensor:
    """Apply ``num_operations`` operations, drawn anew for each image, with repetition, at one magnitude.

    float images in 0 … 1, `[n, channels, h, w]`, channels 1 or 3, to the same. Draws come from torch's CPU generator.
    """
    for _ in range(num_operations):
        chosen = torch.randint(len(OPERATIONS), (len(images),))
        signs = torch.randint(2, (len(images),)) * 2 - 1
        images = apply_operations(images, chosen, signs * (magnitude / MAX_MAGNITUDE))
    return images


def apply_operations(images: torch.Tensor, chosen: torch.Tensor, strengths: torch.Tensor) -> torch.Tensor:
    """One operation an image: ``chosen`` are places in OPERATIONS, ``strengths`` in -1 … 1; both `[n]`, on the CPU."""
    result = images.clone()
    moved = torch.nonzero((chosen >= 1) & (chosen <= len(GEOMETRY))).flatten()
    if len(moved):
        rows = moved.to(images.device)
        matrices = affine_matrices(chosen[moved], strengths[moved], *images.shape[2:]).to(images.device)
        result[rows] = warp_affine(images[rows], matrices, (images.shape[2], images.shape[3])).clamp(0, 1)
    for name, operation in INTENSITY.items():
        members = torch.nonzero(chosen == OPERATIONS.index(name)).flatten()
        if len(members):
            rows = members.to(images.device)
            result[rows] = operation(images[rows], strengths[members].to(images.device, images.dtype)).clamp(0, 1)
    return result


def affine_matrices(chosen: torch.Tensor, strengths: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`[k, 2, 3]`: where pixel coordinates go under the geometric operations ``chosen``, about the image's centre."""
    angle, shear_x, shear_y, shift_x, shift_y = (
        torch.where(chosen == OPERATIONS.index(name), strengths, torch.zeros(())) for name in GEOMETRY
    )
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2]).expand(len(chosen), 2)
    return get_affine_matrix2d(
        torch.stack([shift_x * MAX_SHIFT * width, shift_y * MAX_SHIFT * height], dim=1),
        centre,
        torch.ones(len(chosen), 2),
        angle * MAX_ROTATION,
        (shear_x * MAX_SHEAR).atan(),
        (shear_y * MAX_SHEAR).atan(),
    )[:, :2]


def auto_contrast(images: torch.Tensor) -> torch.Tensor:
    """Stretch each channel of each image `[n, channels, h, w]` to 0 … 1; a channel of one value stays as it is."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-6), images)


def _factor(strength: torch.Tensor) -> torch.Tensor:
    return 1 + strength * MAX_FACTOR


def _bits(strength: torch.Tensor) -> torch.Tensor:
    return 8 - (strength.abs() * MAX_LOST_BITS).round().to(torch.int64)
