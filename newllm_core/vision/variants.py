"""What the diagnosis of NKAT compares: configurations that differ from a centre in one respect.

Source: docs/method.md, section 12.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from newllm_core.config.schema import changed, parameter_fields
from newllm_core.vision.config import AUGMENTATION_PACKS, PRESETS
from newllm_core.vision.settings import VisionSettings, for_data_set


@dataclass(frozen=True)
class Variant:
    """A named change of the centre; ``changes`` are flat parameters of VisionSettings."""

    group: str
    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, centre: VisionSettings) -> VisionSettings:
        """The centre, changed: data first, then a model that fits them, then all else. Raises ConfigError."""
        fields = parameter_fields(VisionSettings)
        of_data = {name for name in self.changes if name in fields and fields[name][0] == "data"}
        data = {name: value for name, value in self.changes.items() if name in of_data}
        others = {name: value for name, value in self.changes.items() if name not in of_data}
        fitted = centre
        if data:
            fitted = for_data_set(centre, changed(centre, data).data)
        return changed(fitted, others)


CENTRE = Variant("centre", "centre")
_GREY28 = {"colour": "grey", "data_image_size": PRESETS["grey28"]["image_size"]}
_NO_STEM = {"stem": "off"}
_RESCUE_PARTS: Mapping[str, tuple[str, ...]] = {
    "RandAugment": ("randaugment_operations",),
    "CutMix and Mixup": ("cutmix_probability", "mixup_probability"),
    "Cutout": ("cutout_size",),
    "label smoothing": ("label_smoothing",),
}


def diagnosis_variants(few_images: int) -> list[Variant]:
    """What may have held CIFAR-10 back, one at a time: images, patches, colour norm, augmentation, averaging, options.

    ``few_images``: the training images of the notes' Stage 2 (8,000), or what stands for them in a small run.
    """
    rescue = AUGMENTATION_PACKS["rescue"]
    norms = {"off": "off", "pointwise LayerNorm": "pointwise_ln", "residual": "residual"}
    return [
        Variant("images", f"RGB, {few_images:,} images", {"num_train_images": few_images}),
        Variant("images", "28 × 28 grey", _GREY28),
        Variant("images", f"28 × 28 grey, {few_images:,} images", {**_GREY28, "num_train_images": few_images}),
        Variant("patches", "patch 7, no stem, 28 × 28", {**_NO_STEM, "data_image_size": 28, "patch": 7}),
        Variant("patches", "patch 4, no stem", {**_NO_STEM, "patch": 4}),
        Variant("patches", "patch 2, no stem", {**_NO_STEM, "patch": 2}),
        Variant("patches", "small stem", {"stem": "small"}),
        Variant("patches", "strides (2, 2)", {"stem_strides": PRESETS["literal"]["stem_strides"]}),
        *(Variant("colour norm", name, {"colour_norm": value}) for name, value in norms.items()),
        Variant("augmentation", "none", AUGMENTATION_PACKS["off"]),
        *(
            Variant("augmentation", f"+ {name}", {key: rescue[key] for key in keys})
            for name, keys in _RESCUE_PARTS.items()
        ),
        Variant("augmentation", "rescue pack", rescue),
        Variant("averaging", "no EMA", {"ema_decay": None}),
        Variant("options", "Split-Head", {"split_head": True}),
        Variant("options", "channel shuffle", {"channel_shuffle_probability": 0.1}),
    ]


def term_variants(strengths: tuple[float, ...] = (0.05,)) -> list[Variant]:
    """The NKAT term off, literal and as a bias of keys, and the latter at further ``strengths``.

    All have the same parameters but the term's own two scalars a block, which "off" lacks.
    """
    kinds = [Variant("NKAT term", name, {"nkat": name}) for name in ("off", "literal", "key_bias")]
    further = [
        Variant("NKAT term", f"key_bias, s = {strength:g}", {"nkat": "key_bias", "nkat_strength": strength})
        for strength in strengths
    ]
    return kinds + further
