"""The NKAT vision transformer: tokens, CLS, positions, blocks with learnable gains, head.

Source: docs/method.md, section 12.3.
"""

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from newllm_core.model.dropout import dropout
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.vision.config import SPLIT_HEAD_STREAMS, VisionModelConfig
from newllm_core.vision.model.attention import AttentionRecord, NkatAttention, gained
from newllm_core.vision.model.stems import PlaneEmbedding, colour_norm, conv_stem, patch_embedding

POSITION_STD = 0.02
NORMS = (nn.LayerNorm, nn.BatchNorm2d, nn.InstanceNorm2d)


class NkatBlock(nn.Module):
    """`x += a·Attn(LN x); x += b·MLP(LN x)` with learnable a and b.

    Args:
        config: of the model.
        layer: l, from 0; with Split-Head, layer 0 reads the planes too.
    """

    NKAT_SCALARS: ClassVar = ("attention_gain", "mlp_gain")

    def __init__(self, config: VisionModelConfig, layer: int) -> None:
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        streams = SPLIT_HEAD_STREAMS if config.split_head and layer == 0 else 1
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = NkatAttention(config, layer, streams)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(nn.Linear(config.width, hidden), nn.GELU(), nn.Linear(hidden, config.width))
        self.attention_gain = nn.Parameter(torch.tensor(config.residual_gain))
        self.mlp_gain = nn.Parameter(torch.tensor(config.residual_gain))

    def forward(
        self,
        tokens: Tensor,
        planes: Tensor | None = None,
        queries: int | None = None,
        records: list[AttentionRecord] | None = None,
    ) -> Tensor:
        """`[B, N, width]` and, with Split-Head, `[B, 3, N, width]` -> `[B, queries, width]`, of the first tokens."""
        streams = tokens.unsqueeze(1)
        if planes is not None:
            streams = torch.cat([planes, streams], dim=1)
        attended = self.attention(self.attention_norm(streams), streams, self.attention_gain, queries, records)
        tokens = tokens[:, :queries] + attended
        hidden, outer = self.mlp[:-1], self.mlp[-1]
        assert isinstance(outer, nn.Linear)
        return tokens + gained(outer, hidden(self.mlp_norm(tokens)), self.mlp_gain)


class NkatModel(nn.Module):
    """The whole model.

    Two configurations at the same seed start from the same weights wherever their parameters have the same name and
    shape, so that a comparison of variants can be paired by seed.

    Args:
        config: widths, depth and variants.
        seed: of the initial weights.
    """

    def __init__(self, config: VisionModelConfig, seed: int = 42) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.colour_norm = colour_norm(config)
        self.stem = conv_stem(config)
        self.patch_embedding = patch_embedding(config)
        self.plane_embedding = PlaneEmbedding(width, config.pixels_per_patch) if config.split_head else None
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + config.num_patches, width))
        self.blocks = nn.ModuleList(NkatBlock(config, layer) for layer in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Dropout(config.head_dropout),
            nn.Linear(width // 2, config.num_classes),
        )
        initialise(self, seed)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, channels, H, W]` -> logits `[B, classes]`. Raises ValueError for images of another shape."""
        return self._logits(images, None)

    def forward_with_attention(self, images: Tensor) -> tuple[Tensor, list[AttentionRecord]]:
        """`[B, channels, H, W]` -> logits `[B, classes]`, and one record per block."""
        records: list[AttentionRecord] = []
        return self._logits(images, records), records

    def _logits(self, images: Tensor, records: list[AttentionRecord] | None) -> Tensor:
        size = self.config.image_size
        expected = [self.config.channels, size, size]
        if list(images.shape[1:]) != expected:
            raise ValueError(f"NkatModel: expected images [B, {str(expected)[1:]}, given {list(images.shape)}")
        tokens = self._placed(self.patch_embedding(self.stem(channels_last(self.colour_norm(images)))))
        planes = None if self.plane_embedding is None else self._placed(self.plane_embedding(images))
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            # The head reads CLS alone, and nothing reads the last block's other tokens.
            queries = 1 if layer == last and records is None else None
            tokens = block(tokens, planes if layer == 0 else None, queries, records)
        logits: Tensor = self.head(self.norm(tokens)[:, 0])
        return logits

    def _placed(self, patches: Tensor) -> Tensor:
        """CLS in front and positions added: `[B, ..., patches, width]` -> `[B, ..., 1 + patches, width]`."""
        cls = self.cls.expand(*patches.shape[:-2], 1, -1)
        placed = torch.cat([cls, patches], dim=-2) + self.positions
        return dropout(placed, self.config.embedding_dropout) if self.training else placed

    def parameter_counts(self) -> dict[str, int]:
        """Parameters per part, and their total."""
        parts: dict[str, Iterable[nn.Parameter]] = {
            "colour_norm": self.colour_norm.parameters(),
            "stem": self.stem.parameters(),
            "patch_embedding": self.patch_embedding.parameters(),
            "plane_embedding": () if self.plane_embedding is None else self.plane_embedding.parameters(),
            "cls": [self.cls],
            "positions": [self.positions],
            "blocks": self.blocks.parameters(),
            "norm": self.norm.parameters(),
            "head": self.head.parameters(),
        }
        counts = {name: sum(parameter.numel() for parameter in group) for name, group in parts.items()}
        return counts | {"total": sum(counts.values())}


def channels_last(images: Tensor) -> Tensor:
    """The same `[B, channels, H, W]`, with a pixel's channels side by side in memory, as convolutions like them."""
    return images.contiguous(memory_format=torch.channels_last)


def initialise(model: NkatModel, seed: int) -> None:
    """Xavier-uniform matrices and convolutions, zero biases, positions ~ N(0, 0.02²) (Dosovitskiy et al. 2021).

    CLS starts at zero. Query, key and value matrices are drawn apart: as one they would come out smaller.
    """
    for name, parameter in model.named_parameters():
        generator = derived_generator("vision weights", name, seed)
        with torch.no_grad():
            if name == "positions":
                nn.init.normal_(parameter, std=POSITION_STD, generator=generator)
            elif name == "cls" or name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                for part in parameter.chunk(3) if name.endswith("qkv.weight") else [parameter]:
                    nn.init.xavier_uniform_(part, generator=generator)


def nkat_scalars(model: nn.Module) -> dict[str, nn.Parameter]:
    """The learnable NKAT scalars by full name, from the `NKAT_SCALARS` that each module declares.

    Four a block (α, β, two residual gains), two with nkat="off".
    """
    return {
        f"{name}.{scalar}".lstrip("."): getattr(module, scalar)
        for name, module in model.named_modules()
        for scalar in getattr(module, "NKAT_SCALARS", ())
    }


def parameters_without_decay(model: NkatModel) -> set[str]:
    """Full names of norms, biases, positions, CLS and NKAT scalars (docs/method.md, section 12.4)."""
    inside_norms = {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, NORMS)
        for parameter, _ in module.named_parameters(recurse=False)
    }
    biases = {name for name, _ in model.named_parameters() if name.endswith(".bias")}
    return inside_norms | biases | {"positions", "cls"} | set(nkat_scalars(model))
