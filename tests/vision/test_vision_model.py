"""Parameter counts of the notes, Split-Head's two properties, colour norms, and configurations that are refused."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from newllm_core.config.schema import ConfigError
from newllm_core.vision.config import (
    AugmentationConfig,
    VisionModelConfig,
    VisionTrainConfig,
    check_model_and_augmentation,
    model_preset,
)
from newllm_core.vision.model.nkat import NkatModel, nkat_scalars, parameters_without_decay
from newllm_core.vision.model.stems import PlaneEmbedding, colour_norm

SMALL = {"width": 32, "depth": 2, "heads": 4, "patch": 4}


def small_model(seed: int = 0, **changes: Any) -> NkatModel:
    return NkatModel(model_preset(**{**SMALL, **changes}), seed)


def images(count: int = 2, channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(3))


def size_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("mlp_ratio", "block", "total"), [(4.0, 1_773_316, 12_615_020), (2.0, 1_182_724, 8_480_876)])
def test_parameter_counts_of_the_notes(mlp_ratio: float, block: int, total: int) -> None:
    model = NkatModel(model_preset("literal", mlp_ratio=mlp_ratio))
    assert [size_of(each) for each in model.blocks] == [block] * 7
    counts = model.parameter_counts()
    assert counts["total"] == total == size_of(model)
    assert counts["total"] - counts["blocks"] == 201_808
    assert counts == {
        "colour_norm": 6,
        "stem": 19_584,
        "patch_embedding": 98_688,
        "plane_embedding": 0,
        "cls": 384,
        "positions": 17 * 384,
        "blocks": 7 * block,
        "norm": 768,
        "head": 75_850,
        "total": total,
    }


def test_default_strides_give_64_tokens_and_the_literal_ones_16() -> None:
    assert VisionModelConfig().num_patches == 64
    assert model_preset("literal").num_patches == 16


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stem": "small"},
        {"stem": "off"},
        {"split_head": True},
        {"stem_strides": (2, 2), "patch": 2},
        {"image_size": 28, "channels": 1, "stem": "off", "num_classes": 26},
        {"image_size": 28, "stem": "off", "patch": 7, "split_head": True},
        {"channels": 1},
    ],
)
def test_every_layout_gives_finite_logits_and_gradients(changes: dict[str, Any]) -> None:
    model = small_model(**changes)
    config = model.config
    logits = model(images(3, config.channels, config.image_size))
    assert list(logits.shape) == [3, config.num_classes]
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name


def test_presets_build_the_named_models() -> None:
    quick = model_preset("quick", "grey28", num_classes=26)
    assert (quick.width, quick.depth, quick.channels, quick.num_patches) == (96, 3, 1, 49)
    logits = NkatModel(quick)(images(1, 1, 28))
    assert list(logits.shape) == [1, 26]
    with pytest.raises(ConfigError, match="unknown model preset 'quik'. Did you mean 'quick'"):
        model_preset("quik")


# --- Split-Head ---


def head_outputs(model: NkatModel, batch: Tensor) -> Tensor:
    """What each head of the first block gives, before the output projection mixes them: `[heads, B, N, head width]`."""
    seen: list[Tensor] = []
    attention = model.blocks[0].attention
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        mixed = attention._mixed
        patch.setattr(attention, "_mixed", lambda *given: seen.append(mixed(*given)) or seen[0])
        model(batch)
    return torch.stack(seen[0].chunk(model.config.heads, dim=-1))


@pytest.mark.parametrize("norm", ["plane", "off", "pointwise_ln", "residual"])
@pytest.mark.parametrize("nkat", ["key_bias", "literal", "off"])
def test_perturbing_one_plane_leaves_the_other_planes_heads_unchanged(norm: str, nkat: str) -> None:
    model = small_model(split_head=True, heads=8, colour_norm=norm, nkat=nkat).eval()
    original = images()
    before = head_outputs(model, original)
    for plane in range(3):
        perturbed = original.clone()
        perturbed[:, plane] += images(2, 1)[:, 0] * 3
        same = [torch.equal(*pair) for pair in zip(before, head_outputs(model, perturbed))]
        assert same == [head // 2 != plane for head in range(6)] + [False, False]


def multiply_adds(config: VisionModelConfig) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        NkatModel(config).eval()(images(1))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("names", [(), ("literal",), ("quick",)])
def test_split_head_costs_at_most_five_percent_more_multiply_adds(names: tuple[str, ...]) -> None:
    plain, split = (multiply_adds(model_preset(*names, split_head=on)) for on in (False, True))
    assert plain < split <= 1.05 * plain


def test_plane_tokens_are_on_the_fused_tokens_grid() -> None:
    # One bright square of 8 × 8 pixels at row 1, column 2 of a 4 × 4 grid: token 6 of plane 1.
    batch = torch.zeros(1, 3, 32, 32)
    batch[0, 1, 8:16, 16:24] = 1
    with torch.no_grad():
        embedding = PlaneEmbedding(8, 8)
        changed = (embedding(batch) != embedding(torch.zeros_like(batch))).any(dim=-1)[0]
    assert changed.nonzero().tolist() == [[1, 6]]


# --- Colour norms ---


def normed(name: str, batch: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = colour_norm(VisionModelConfig(colour_norm=name))(batch)
    return result


def test_pointwise_norm_removes_brightness_and_saturation_and_the_others_do_not() -> None:
    batch = images(1) * 10
    brightness = torch.linspace(0, 5, 32 * 32).view(1, 1, 32, 32)
    changed = (batch - batch.mean(dim=1, keepdim=True)) * 3 + brightness
    assert torch.allclose(normed("pointwise_ln", batch), normed("pointwise_ln", changed), atol=1e-3)
    for name in ("off", "plane", "residual"):
        assert not torch.allclose(normed(name, batch), normed(name, changed), atol=0.1)


def test_plane_norm_centres_and_scales_each_plane_of_each_image() -> None:
    result = normed("plane", images(2) * 4 + 7)
    assert torch.allclose(result.mean(dim=(2, 3)), torch.zeros(2, 3), atol=1e-5)
    assert torch.allclose(result.std(dim=(2, 3), correction=0), torch.ones(2, 3), atol=1e-4)


def test_residual_norm_is_the_image_plus_its_pointwise_norm() -> None:
    batch = images(1)
    assert torch.allclose(normed("residual", batch), batch + normed("pointwise_ln", batch))
    assert torch.equal(normed("off", batch), batch)


# --- NKAT scalars, weight decay, seeds, records ---


@given(st.integers(1, 4), st.sampled_from(["key_bias", "literal", "off"]))
@settings(deadline=None, max_examples=8)
def test_four_scalars_a_block_and_two_without_nkat(depth: int, nkat: str) -> None:
    model = small_model(depth=depth, nkat=nkat)
    scalars = nkat_scalars(model)
    assert len(scalars) == (2 if nkat == "off" else 4) * depth
    named = dict(model.named_parameters())
    assert all(named[name] is scalar and scalar.numel() == 1 for name, scalar in scalars.items())


def test_scalars_are_what_the_modules_declare() -> None:
    names = {"attention.term.alpha", "attention.term.beta", "attention_gain", "mlp_gain"}
    assert set(nkat_scalars(small_model(depth=1))) == {f"blocks.0.{name}" for name in names}
    assert set(nkat_scalars(small_model(depth=1).blocks[0])) == names


def test_only_matrices_and_convolutions_decay() -> None:
    model = small_model(stem="small", split_head=True)
    decaying = {name for name, _ in model.named_parameters()} - parameters_without_decay(model)
    assert parameters_without_decay(model) <= {name for name, _ in model.named_parameters()}
    owners = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert decaying == owners
    for name in ("positions", "cls", "colour_norm.weight", "stem.1.weight", "norm.bias", "blocks.1.mlp_gain"):
        assert name in parameters_without_decay(model)


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    torch.manual_seed(1)
    first = small_model(seed=5).state_dict()
    torch.manual_seed(2)
    second, other = small_model(seed=5).state_dict(), small_model(seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.0.weight"], other["head.0.weight"])


@pytest.mark.parametrize("changes", [{"nkat": "off"}, {"split_head": True}, {"colour_norm": "off"}, {"depth": 3}])
def test_variants_of_one_seed_start_from_the_same_weights(changes: dict[str, Any]) -> None:
    first, second = small_model().state_dict(), small_model(**changes).state_dict()
    shared = set(first) & set(second)
    assert {"patch_embedding.projection.weight", "blocks.1.attention.qkv.weight", "head.3.weight"} <= shared
    assert all(torch.equal(first[name], second[name]) for name in shared)


def test_records_on_request_do_not_change_the_logits() -> None:
    model = small_model(split_head=True).eval()
    with torch.no_grad():
        logits, records = model.forward_with_attention(images())
        # Without records the last block computes CLS alone: sums of another order.
        assert torch.allclose(logits, model(images()), atol=1e-5)
    assert len(records) == model.config.depth
    for layer, record in enumerate(records):
        assert list(record.attention.shape) == [2, 4, 17, 17]
        assert record.strength == pytest.approx(0.0024 * 0.99**layer)
        assert list(record.entropy.shape) == list(record.tokens_kept.shape) == list(record.attention.shape[:3])


# --- Refusals ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 8}, r"at least 16 patches, given 4 \(32 x 32 pixels with stem 'tiny'"),
        ({"stem": "off", "patch": 16}, "at least 16 patches, given 4"),
        ({"width": 100, "heads": 8}, "width to be a multiple of heads=8, given 100"),
        ({"image_size": 28, "stem_strides": (2, 2)}, "multiple of 8 .* given 28"),
        ({"image_size": 28, "channels": 1, "split_head": True}, "expected channels=3, given 1"),
        ({"split_head": True, "heads": 6}, "heads to be a multiple of 4, given 6"),
        ({"channels": 2}, "expected 1 .grey. or 3 .RGB., given 2"),
        ({"channels": 1, "colour_norm": "pointwise_ln"}, "needs 3; expected 'plane' or 'off'"),
        ({"stem_strides": (0, 1)}, r"both at least 1, given \(0, 1\)"),
        ({"colour_norm": "layer"}, "expected one of 'plane', 'off', 'pointwise_ln', 'residual', given 'layer'"),
        ({"temperature": 0.0}, "expected more than 0"),
        ({"top_k": 0}, "expected at least 1"),
        ({"top_p": 1.5}, "expected at most 1"),
        ({"depht": 7}, "unknown key of VisionModelConfig 'depht'. Did you mean 'depth'"),
    ],
)
def test_impossible_models_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_preset(**changes)


def test_impossible_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected warmup_epochs < epochs=5, given 5"):
        VisionTrainConfig(epochs=5)
    assert VisionTrainConfig(ema_decay=None).ema_decay is None


def test_channel_shuffle_is_refused_with_split_head_and_on_grey_images() -> None:
    shuffle = AugmentationConfig(channel_shuffle_probability=0.1)
    with pytest.raises(ConfigError, match="exclude each other.* given 0.1 and True"):
        check_model_and_augmentation(model_preset(split_head=True), shuffle)
    with pytest.raises(ConfigError, match="expected channels=3 or .* given 1 and 0.1"):
        check_model_and_augmentation(model_preset("grey28"), shuffle)
    check_model_and_augmentation(model_preset(), shuffle)
    check_model_and_augmentation(model_preset(split_head=True), AugmentationConfig())


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected images \[B, 3, 32, 32\], given \[2, 1, 32, 32\]"):
        small_model()(images(channels=1))
