"""A task whose label depends on colour alone: for tests, and to show what grey images and colour norms throw away.

Every image is a grey texture with one coloured disc. The class sets only the direction of the disc's colour, chosen at
right angles to luma, so the grey version of an image is the same for every class. The background has no colour: a norm
of whole planes (mean and deviation per channel) keeps the difference between disc and background.
"""

import math

import torch
import torch.nn.functional as F

from newllm_core.runs.reproducibility import derived_generator
from newllm_core.vision.data.convert import LUMA_WEIGHTS
from newllm_core.vision.data.records import LabelledImages

CLASSES = ("red", "green", "blue")
NUM_IMAGES = {"train": 2000, "test": 500}
DEFAULT_SIDE = 32  # pixels
CHROMA = 60.0  # length of a disc's colour vector, of 255
LUMA_RANGE = (80.0, 175.0)  # of 255: with CHROMA, no channel leaves 0 … 255
TEXTURE_CELLS = 4  # the texture's coarsest squares a side
DISC_RADII = (0.2, 0.35)  # of the side


def generate_colour_task(split: str, side: int = DEFAULT_SIDE, seed: int = 0) -> LabelledImages:
    """2,000 (split "train") or 500 (split "test") images, uint8 `[n, 3, side, side]`, classes in equal shares."""
    count = NUM_IMAGES[split]
    generator = derived_generator("colour task", split, side, seed)
    labels = torch.arange(count)[torch.randperm(count, generator=generator)] % len(CLASSES)
    return LabelledImages(paint(labels, side, generator), labels, {"generator": f"colour task, seed {seed}"})


def paint(labels: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """One image a label, int64 `[n]`: uint8 `[n, 3, side, side]`. The grey version does not depend on ``labels``."""
    low, high = LUMA_RANGE
    cells = torch.rand(len(labels), 1, TEXTURE_CELLS, TEXTURE_CELLS, generator=generator)
    texture = F.interpolate(cells, size=(side, side), mode="bilinear", align_corners=True)
    grey = low + (high - low) * texture
    colour = chroma_directions()[labels].view(-1, 3, 1, 1) * CHROMA
    return (grey + colour * _discs(len(labels), side, generator)).round().to(torch.uint8)


def chroma_directions() -> torch.Tensor:
    """A unit vector in RGB for each class, `[classes, 3]`: at right angles to luma and 120 degrees apart."""
    luma = torch.tensor(LUMA_WEIGHTS)
    luma = luma / luma.norm()
    red = torch.tensor([1.0, 0.0, 0.0])
    first = red - (red @ luma) * luma
    first = first / first.norm()
    second = torch.linalg.cross(luma, first)
    angles = [2 * math.pi * number / len(CLASSES) for number in range(len(CLASSES))]
    return torch.stack([math.cos(angle) * first + math.sin(angle) * second for angle in angles])


def _discs(count: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """1 inside a disc of random place and radius, 0 outside: `[count, 1, side, side]`."""
    low, high = DISC_RADII
    radius = low + (high - low) * torch.rand(count, 1, 1, generator=generator)
    rows, columns = (radius + (1 - 2 * radius) * torch.rand(count, 1, 1, generator=generator) for _ in range(2))
    grid = (torch.arange(side) + 0.5) / side
    squared = (grid[:, None] - rows) ** 2 + (grid[None, :] - columns) ** 2
    return (squared <= radius**2).to(torch.float32).unsqueeze(1)
