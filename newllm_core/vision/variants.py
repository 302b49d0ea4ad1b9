"""What the diagnosis of NKAT compares: configurations that differ from a centre in one respect and what goes with it.

Source: docs/method.md, section 12.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from newllm_core.config.schema import ConfigError, changed, parameter_fields, unknown_name_message
from newllm_core.studies.sweep import Variant
from newllm_core.vision.config import AUGMENTATION_PACKS, PRESETS, VisionModelConfig
from newllm_core.vision.settings import VisionSettings, for_data_set, of_data_set


@dataclass(frozen=True)
class VisionVariant(Variant):
    """A named change of VisionSettings; a change of the data brings a model that fits them."""

    def settings(self, base: VisionSettings) -> VisionSettings:
        """The base, changed: data first, then a model that fits them, then all else. Raises ConfigError."""
        fields = parameter_fields(VisionSettings)
        data = {name: value for name, value in self.changes.items() if fields.get(name, ("",))[0] == "data"}
        others = {name: value for name, value in self.changes.items() if name not in data}
        named = dataclasses.replace(base, data=of_data_set(base.data, data.get("dataset", base.data.dataset)))
        return changed(for_data_set(base, changed(named, data).data) if data else base, others)


def vision_variant(group: str, name: str, changes: Mapping[str, Any] | None = None) -> VisionVariant:
    """Whose name is its label too."""
    return VisionVariant(name, name, changes or {}, group)


CENTRE = vision_variant("centre", "centre")
_GREY28 = {"colour": "grey", "data_image_size": PRESETS["grey28"]["image_size"]}
_NO_STEM = {"stem": "off"}
_RESCUE_PARTS: Mapping[str, tuple[str, ...]] = {
    "RandAugment": ("randaugment_operations",),
    "CutMix and Mixup": ("cutmix_probability", "mixup_probability"),
    "Cutout": ("cutout_size",),
    "label smoothing": ("label_smoothing",),
}


# Twenty times the notes' strength, where the term has most say.
FURTHER_STRENGTHS: Mapping[str, Sequence[float]] = {"key_bias": (0.05,)}
SUSPECTS = ("images", "patches", "colour norm", "augmentation", "averaging", "options")


def diagnosis_variants(few_images: int, suspects: Sequence[str] = SUSPECTS) -> list[VisionVariant]:
    """What may have held CIFAR-10 back, one at a time.

    Args:
        few_images: the training images of the notes' Stage 2 (8,000), or what stands for them in a small run.
        suspects: groups of variants, of SUSPECTS.

    Raises ConfigError for an unknown group.
    """
    unknown = [name for name in suspects if name not in SUSPECTS]
    if unknown:
        raise ConfigError(unknown_name_message("suspect", unknown[0], SUSPECTS))
    return [one for one in _all_variants(few_images) if one.group in suspects]


def _all_variants(few_images: int) -> list[VisionVariant]:
    rescue = AUGMENTATION_PACKS["rescue"]
    norms = {"off": "off", "pointwise LayerNorm": "pointwise_ln", "residual": "residual"}
    return [
        vision_variant("images", f"RGB, {few_images:,} images", {"num_train_images": few_images}),
        vision_variant("images", "28 × 28 grey", _GREY28),
        vision_variant("images", f"28 × 28 grey, {few_images:,} images", {**_GREY28, "num_train_images": few_images}),
        vision_variant("patches", "patch 7, no stem, 28 × 28", {**_NO_STEM, "data_image_size": 28, "patch": 7}),
        vision_variant("patches", "patch 4, no stem", {**_NO_STEM, "patch": 4}),
        vision_variant("patches", "patch 2, no stem", {**_NO_STEM, "patch": 2}),
        vision_variant("patches", "small stem", {"stem": "small"}),
        vision_variant("patches", "strides (2, 2)", {"stem_strides": PRESETS["literal"]["stem_strides"]}),
        *(vision_variant("colour norm", name, {"colour_norm": value}) for name, value in norms.items()),
        vision_variant("augmentation", "none", AUGMENTATION_PACKS["off"]),
        *(
            vision_variant("augmentation", f"+ {name}", {key: rescue[key] for key in keys})
            for name, keys in _RESCUE_PARTS.items()
        ),
        vision_variant("augmentation", "rescue pack", rescue),
        vision_variant("averaging", "no EMA", {"ema_decay": None}),
        vision_variant("options", "Split-Head", {"split_head": True}),
        vision_variant("options", "channel shuffle", {"channel_shuffle_probability": 0.1}),
    ]


def term_variants(strengths: Mapping[str, Sequence[float]] = FURTHER_STRENGTHS) -> list[VisionVariant]:
    """The NKAT term off, literal and as a bias of keys, and kinds of it at further ``strengths``.

    All have the same parameters but the term's own two scalars a block, which "off" lacks; at strength 0 these do
    nothing, and a run is that of "off" to the last bit.
    """
    usual = [_term(kind, VisionModelConfig.nkat_strength, kind) for kind in ("literal", "key_bias")]
    further = [_term(kind, strength) for kind, values in strengths.items() for strength in values]
    return [vision_variant("NKAT term", "off", {"nkat": "off"}), *usual, *further]


def _term(kind: str, strength: float, name: str | None = None) -> VisionVariant:
    label = f"{kind}, s = {strength:g}"
    return VisionVariant(name or label, label, {"nkat": kind, "nkat_strength": strength}, "NKAT term")


def data_set_variants(names: Sequence[str]) -> list[VisionVariant]:
    """The same model and training on each data set, with all of its training images; of settings that are not fitted to
    one of them, or to one in colour."""
    return [vision_variant("data sets", name, {"dataset": name, "num_train_images": None}) for name in names]
