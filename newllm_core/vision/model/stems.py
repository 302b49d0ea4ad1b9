"""From an image to tokens: colour norm, convolutional stem, patch embedding, and the planes' own embedding."""

from torch import Tensor, nn
from torch.nn import functional

from newllm_core.vision.config import STEM_WIDTHS, VisionModelConfig


class PointwiseNorm(nn.Module):
    """LayerNorm over the channels of each pixel: the notes' colour norm.

    It keeps the hue alone: a pixel times two, or plus one, comes out the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, channels, H, W]` -> the same."""
        normed: Tensor = self.norm(images.movedim(1, -1))
        return normed.movedim(-1, 1)


class ResidualPointwiseNorm(PointwiseNorm):
    """The image plus its pointwise norm: brightness and saturation stay beside the hue."""

    def forward(self, images: Tensor) -> Tensor:
        """`[B, channels, H, W]` -> the same."""
        return images + super().forward(images)


def colour_norm(config: VisionModelConfig) -> nn.Module:
    """The first layer, `[B, channels, H, W]` -> the same; six parameters on RGB unless off; docs/method.md, 12.3.

    `plane` takes mean and variance of each channel over H × W of one image: contrast stays, an image's mean colour
    goes.
    """
    if config.colour_norm == "plane":
        return nn.InstanceNorm2d(config.channels, affine=True)
    if config.colour_norm == "pointwise_ln":
        return PointwiseNorm(config.channels)
    if config.colour_norm == "residual":
        return ResidualPointwiseNorm(config.channels)
    return nn.Identity()


def conv_stem(config: VisionModelConfig) -> nn.Sequential:
    """3×3 convolutions with BatchNorm and GELU; empty when off (docs/method.md, section 12.3).

    `[B, channels, H, W]` -> `[B, last width, H / Πstrides, W / Πstrides]`. The convolutions keep their biases, which
    BatchNorm makes idle: the notes' count of 19,584 parameters has them.
    """
    layers: list[nn.Module] = []
    incoming = config.channels
    for outgoing, stride in zip(STEM_WIDTHS[config.stem], config.strides, strict=True):
        layers += [nn.Conv2d(incoming, outgoing, 3, stride, padding=1), nn.BatchNorm2d(outgoing), nn.GELU()]
        incoming = outgoing
    return nn.Sequential(*layers)


class PatchEmbedding(nn.Module):
    """A Linear of each patch: a convolution whose stride is its size, computed as the one product that it is.

    Args:
        channels: of the stem's output, or of the image.
        width: of a token.
        patch: a side, in pixels.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, width, patch, patch)

    def forward(self, features: Tensor) -> Tensor:
        """`[B, channels, H, W]` -> `[B, patches, width]`, row by row."""
        side = self.projection.kernel_size[0]
        # A pixel's channels stand side by side in memory, hence last within a patch too.
        rows = features.movedim(1, -1).unflatten(1, (-1, side)).unflatten(3, (-1, side)).transpose(2, 3)
        weight = self.projection.weight.movedim(1, -1).flatten(1)
        return functional.linear(rows.flatten(3).flatten(1, 2), weight, self.projection.bias)


class PlaneEmbedding(nn.Module):
    """Tokens of the R, the G and the B plane, each from its own plane alone (Split-Head, docs/method.md, section 12.3).

    They are read from the image before colour norm and stem, which mix the planes, on the fused tokens' grid.

    Args:
        width: of a token.
        pixels_per_patch: image pixels a side that one token covers.
    """

    def __init__(self, width: int, pixels_per_patch: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, 3 * width, pixels_per_patch, pixels_per_patch, groups=3)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> `[B, 3, patches, width]`."""
        projected: Tensor = self.projection(images)
        return projected.flatten(2).unflatten(1, (3, -1)).transpose(2, 3)


def patch_embedding(config: VisionModelConfig) -> PatchEmbedding:
    widths = STEM_WIDTHS[config.stem]
    return PatchEmbedding(widths[-1] if widths else config.channels, config.width, config.patch)
