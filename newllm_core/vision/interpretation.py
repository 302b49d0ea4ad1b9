"""What a trained model attends to (docs/method.md, section 12.6): rollout, θ, entropy, keys kept.

Everything is measured on selection images with the weights of a finished run; without one there is nothing to see, and
it is refused.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from newllm_core.runs.files import RunError
from newllm_core.runs.folder import Record
from newllm_core.vision.data import ImageData, LabelledImages, Normalisation, load_image_data, normalised
from newllm_core.vision.experiment import load_trained, normalisation_of
from newllm_core.vision.model.attention import AttentionRecord
from newllm_core.vision.model.nkat import NkatModel
from newllm_core.vision.settings import require_fit, settings_of

# Whole attention matrices are held: 9 layers of 8 heads on 257 tokens are half a gigabyte at 25 images.
_BATCH = 25


@dataclass(frozen=True)
class SampleAttention:
    """A few images and where their class token's information came from.

    Attributes:
        images: uint8 `[n, channels, h, w]`.
        labels, predicted: `[n]`.
        rollout: `[n, side, side]`, share of each patch times the number of patches: 1 is an even look.
    """

    images: Tensor
    labels: Tensor
    predicted: Tensor
    rollout: Tensor


@dataclass(frozen=True)
class Interpretation:
    """
    Attributes:
        record: of the run.
        samples: for the rollout.
        num_images: selection images behind all that follows.
        strength: `[layers]`, s · d^l.
        theta: `[layers, classes]`, mean θ over heads, tokens and images of a class, NaN for a class without an image;
            None with nkat="off".
        theta_spread: `[layers]`, standard deviation of θ over an image's tokens, mean over heads and images. With
            key_bias only differences between keys count: `strength · theta_spread` is the term's effect in logits.
        entropy: `[layers, heads]`, nats, mean over queries and images.
        tokens_kept: `[layers, heads]`, keys per query, likewise.
    """

    record: dict[str, Any]
    samples: SampleAttention
    num_images: int
    strength: Tensor
    theta: Tensor | None
    theta_spread: Tensor | None
    entropy: Tensor
    tokens_kept: Tensor

    def figures(self) -> dict[str, Any]:
        """All but the samples as JSON values."""
        return {
            "num_images": self.num_images,
            "strength": self.strength.tolist(),
            "theta": None if self.theta is None else _without_nan(self.theta),
            "theta_spread": None if self.theta_spread is None else self.theta_spread.tolist(),
            "entropy": self.entropy.tolist(),
            "tokens_kept": self.tokens_kept.tolist(),
        }


def _without_nan(values: Tensor) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in values.tolist()]


def attention_rollout(attention: Sequence[Tensor]) -> Tensor:
    """`∏ (½Ā + ½I)`, the last layer leftmost; Ā is the mean over heads (Abnar & Zuidema 2020, arXiv:2005.00928).

    ``attention``: `[B, heads, N, N]` of each layer, from the first, rows summing to 1. Gives `[B, N, N]`: row i says
    from which input tokens token i's information came, and sums to 1.
    """
    if not attention:
        raise ValueError("attention_rollout: expected the attention of at least one layer, given none")
    identity = torch.eye(attention[0].shape[-1], dtype=attention[0].dtype, device=attention[0].device)
    rollout = identity.expand(len(attention[0]), -1, -1)
    for layer in attention:
        rollout = (layer.mean(dim=1) + identity) / 2 @ rollout
    return rollout


def patch_rollout(rollout: Tensor) -> Tensor:
    """The class token's row on the grid of patches: `[B, N, N]` to `[B, side, side]`, each with mean 1."""
    patches = rollout[:, 0, 1:]
    side = math.isqrt(patches.shape[1])
    return (patches / patches.mean(dim=1, keepdim=True)).unflatten(1, (side, side))


def interpret(
    run_dir: Path,
    images: ImageData | None = None,
    *,
    num_samples: int = 8,
    num_images: int = 500,
    path: str | None = None,
) -> Interpretation:
    """Measure the trained model of a finished run.

    Args:
        images: of the run's data set, when they are loaded already.
        num_samples: images whose rollout is kept.
        num_images: selection images for the means.
        path: where the run's data are, if not where the registry says.

    Raises RunError without a finished run, and for other images than it was trained on; DataError for missing data;
    ConfigError for images of another form.
    """
    model, record = load_trained(run_dir)
    settings = settings_of(record, path)
    images = load_image_data(settings.data) if images is None else images
    require_fit(settings.model, images)
    if not _are_of_the_run(images, record):
        raise RunError(
            f"{run_dir}: expected the images that the run was trained on, {_figures_of(record['data'])}; given "
            f"{_figures_of(images.provenance)}. Of others it is not known which the model has seen"
        )
    normalisation = normalisation_of(record)
    chosen = images.selection.subset(torch.arange(min(num_images, len(images.selection))))
    samples = images.selection.subset(torch.arange(min(num_samples, len(images.selection))))
    sums = _Sums(len(images.classes))
    for labels, _, records in _records(model, chosen, normalisation):
        sums.add(labels, records)
    return sums.interpretation(record, _sample_attention(model, samples, normalisation))


def _figures_of(provenance: Record) -> str:
    counts = [provenance[f"{kind}_images"] for kind in ("stored_training", "selection")]
    return f"{counts[0]}, {counts[1]} of them for selection, of means {provenance['normalisation']['mean']}"


def _are_of_the_run(images: ImageData, record: Record) -> bool:
    """By their content, or where they lie in another file or folder, by their figures."""
    mine, its = {**images.provenance, "classes": list(images.classes)}, record["data"]
    if any(mine[name] != its[name] for name in ("stored_training_images", "selection_images", "classes")):
        return False
    pairs = [zip(mine["normalisation"][key], its["normalisation"][key]) for key in ("mean", "std")]
    is_close = all(math.isclose(one, other, abs_tol=1e-6) for pair in pairs for one, other in pair)
    return is_close or (mine["train_images"] != its["train_images"] and dict(images.read) == record["read"])


@torch.no_grad()
def _records(
    model: NkatModel, images: LabelledImages, normalisation: Normalisation
) -> Iterator[tuple[Tensor, Tensor, list[AttentionRecord]]]:
    """Labels, logits and attention of each batch."""
    for part, labels in zip(images.images.split(_BATCH), images.labels.split(_BATCH)):
        logits, records = model.forward_with_attention(normalised(part, normalisation))
        yield labels, logits, records


def _sample_attention(model: NkatModel, images: LabelledImages, normalisation: Normalisation) -> SampleAttention:
    predicted, rollouts = [], []
    for _, logits, records in _records(model, images, normalisation):
        predicted.append(logits.argmax(dim=1))
        rollouts.append(patch_rollout(attention_rollout([record.attention for record in records])))
    return SampleAttention(images.images, images.labels, torch.cat(predicted), torch.cat(rollouts))


class _Sums:
    """Running sums over images; float64."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, dtype=torch.float64)
        self.strength: list[float] = []
        self.sums: dict[str, Tensor] = {}

    def add(self, labels: Tensor, records: Sequence[AttentionRecord]) -> None:
        """Images with these labels `[n]`, and each layer's record of them."""
        members = torch.nn.functional.one_hot(labels, self.num_classes).double()
        self.counts += members.sum(dim=0)
        self.strength = [record.strength for record in records]
        self._add("entropy", [record.entropy.double().mean(dim=2).sum(dim=0) for record in records])
        self._add("tokens_kept", [record.tokens_kept.double().mean(dim=2).sum(dim=0) for record in records])
        thetas = [record.theta.double() for record in records if record.theta is not None]
        if thetas:
            self._add("theta", [theta.mean(dim=(1, 2)) @ members for theta in thetas])
            self._add("theta_spread", [theta.std(dim=2, correction=0).mean(dim=1).sum() for theta in thetas])

    def _add(self, name: str, layers: Sequence[Tensor]) -> None:
        stacked = torch.stack(list(layers))
        self.sums[name] = self.sums[name] + stacked if name in self.sums else stacked

    def interpretation(self, record: dict[str, Any], samples: SampleAttention) -> Interpretation:
        total = self.counts.sum()
        has_theta = "theta" in self.sums
        return Interpretation(
            record=record,
            samples=samples,
            num_images=int(total),
            strength=torch.tensor(self.strength, dtype=torch.float64),
            theta=self.sums["theta"] / self.counts if has_theta else None,
            theta_spread=self.sums["theta_spread"] / total if has_theta else None,
            entropy=self.sums["entropy"] / total,
            tokens_kept=self.sums["tokens_kept"] / total,
        )
