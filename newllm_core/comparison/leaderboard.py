"""Rows of the leaderboard compared: perplexity with intervals over seeds and conversations, paired ratios."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from newllm_core.comparison.groups import ComparisonError
from newllm_core.comparison.paired import PairedDifference
from newllm_core.intervals import Floats, Interval, clustered_mean, exp_interval, interval_text, over_seeds

Row = dict[str, Any]  # of `studies`: what it is, is in its ``variant``


@dataclass(frozen=True)
class Standing:
    """One variant at one number of training tokens. ``interval``: 95 %, over seeds and conversations.

    ``trainable_parameters``: of the finished model, trained in both phases. ``discarded_parameters``: of the linear map
    that a predicting Phase 1 trains and throws away. ``cpu_seconds`` and ``bits_per_byte`` are means over seeds.
    """

    name: str
    tokens: int
    seeds: tuple[int, ...]
    perplexity: float
    interval: Interval | None
    bits_per_byte: float
    trainable_parameters: int
    discarded_parameters: int
    cpu_seconds: float
    rows: tuple[Row, ...]

    @property
    def variant(self) -> dict[str, Any]:
        """What its first row says that it is: name, label, kind, group, sentence, reference, expected."""
        return dict(self.rows[0]["variant"])

    @property
    def parameters_text(self) -> str:
        """Of the finished model, + those that were trained and thrown away."""
        return f"{self.trainable_parameters:,}" + f" + {self.discarded_parameters:,}" * bool(self.discarded_parameters)

    def record(self) -> dict[str, Any]:
        """As in `controls.json` (issue 5)."""
        return {
            "name": self.name,
            "what": self.variant["sentence"],
            "tokens": self.tokens,
            "seeds": list(self.seeds),
            "validation_perplexity": self.perplexity,
            "interval": None if self.interval is None else list(self.interval),
            "bits_per_byte": self.bits_per_byte,
            "trainable_parameters": self.trainable_parameters,
            "discarded_parameters": self.discarded_parameters,
            "cpu_seconds": self.cpu_seconds,
        }


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Rows by variant and training tokens, best first within a number of tokens.

    Raises ComparisonError for no rows, a row given twice, or different validation text.
    """
    if not rows:
        raise ComparisonError("expected at least one row, given none")
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["variant"]["name"], row["tokens"]["train"]), []).append(row)
    _losses(rows)  # refuses different validation text
    found = [_standing(*key, members) for key, members in groups.items()]
    return sorted(found, key=lambda one: (one.tokens, one.perplexity))


def _standing(name: str, tokens: int, rows: Sequence[Row]) -> Standing:
    seeds = tuple(row["seed"] for row in rows)
    if len(set(seeds)) < len(seeds):
        raise ComparisonError(f"{name} at {tokens:,} tokens: expected each seed once, given {seeds}")
    if any(_but_seed(row["config"]) != _but_seed(rows[0]["config"]) for row in rows):
        raise ComparisonError(f"{name} at {tokens:,} tokens: expected one configuration, given rows of several")
    mean, interval = clustered_mean(*_losses(rows))
    figures = {key: over_seeds([row[key] for row in rows]).value for key in ("bits_per_byte", "cpu_seconds")}
    return Standing(
        name, tokens, seeds, math.exp(mean), exp_interval(interval),
        trainable_parameters=rows[0]["trainable_parameters"], discarded_parameters=_discarded(rows[0]["config"]),
        rows=tuple(rows), **figures,  # type: ignore[arg-type]
    )  # fmt: skip


def _discarded(configs: dict[str, Any]) -> int:
    phase1 = configs.get("phase1")
    if phase1 is None or phase1["objective"] == "cvfp" or not phase1["max_iterations"]:
        return 0
    return int((configs["model"]["context_dim"] + 1) * configs["model"]["embed_dim"])


def _but_seed(configs: dict[str, Any]) -> dict[str, Any]:
    return {section: {**values, "seed": None} for section, values in configs.items()}


def _losses(rows: Sequence[Row]) -> tuple[Floats, Floats]:
    parts = [row["validation_conversations"] for row in rows]
    if any(part["tokens"] != parts[0]["tokens"] for part in parts):
        raise ComparisonError("expected rows judged on the same validation conversations, given different ones")
    return np.array([part["nats"] for part in parts], np.float64), np.array(parts[0]["tokens"], np.float64)


def perplexity_ratio(one: Standing, other: Standing) -> PairedDifference:
    """PPL of ``one`` over PPL of ``other``, paired by conversation, and by seed where both have several.

    What has no seed is held against every run of the other. Raises ComparisonError without a common seed.
    """
    mine, theirs = ({row["seed"]: row for row in side.rows} for side in (one, other))
    seedless = ["run" not in side.rows[0]["config"] for side in (one, other)]
    seeds = list(theirs if seedless[0] else mine if seedless[1] else [seed for seed in mine if seed in theirs])
    if not seeds:
        raise ComparisonError(f"expected a seed that both have, given {one.seeds} and {other.seeds}")
    pairs = [
        (one.rows[0] if seedless[0] else mine[seed], other.rows[0] if seedless[1] else theirs[seed]) for seed in seeds
    ]
    sums, counts = _losses([row for pair in pairs for row in pair])
    difference, interval = clustered_mean(sums[0::2] - sums[1::2], counts)
    return PairedDifference(math.exp(difference), exp_interval(interval), 1.0, len(pairs))


def expectation_sentences(found: Sequence[Standing]) -> list[str]:
    """What was expected of each that has a reference, and what came; nothing of those whose reference was not run."""
    there = {(one.name, one.tokens): one for one in found}
    sentences = []
    for one in found:
        other = there.get((one.variant["reference"] or "", one.tokens))
        if other is None:
            continue
        ratio = perplexity_ratio(one, other)
        sentences.append(
            f"{one.name} ({one.variant['sentence']}). Expected: {one.variant['expected']}. "
            f"Came: {ratio.value:.3f} of the PPL of {other.name}, {seeds_text(ratio.num_seeds)}: {ratio}."
        )
    return sentences


def seeds_text(num_seeds: int) -> str:
    """How many seeds a ratio is over."""
    return "one seed" if num_seeds == 1 else f"{num_seeds} paired seeds"


def standings_table(found: Sequence[Standing], reference: str) -> pd.DataFrame:
    """A row a variant, and its ratio to ``reference`` at the same number of tokens.

    With one seed PPL's interval is over conversations alone, and the ratio is distinguishable for that seed alone.
    """
    rows = []
    for one in found:
        other = next((each for each in found if each.name == reference and each.tokens == one.tokens), None)
        ratio = None if other is None or other is one else perplexity_ratio(one, other)
        rows.append(
            {
                "variant": one.name,
                "training tokens": one.tokens,
                "PPL": f"{one.perplexity:.1f} {_whole(one.interval)}",
                f"× {reference}": "–" if ratio is None else f"{ratio.value:.3f} {interval_text(ratio.interval)}",
                "seeds paired": "–" if ratio is None else ratio.num_seeds,
                "distinguishable": "–" if ratio is None else _verdict(ratio),
                "bits a byte": f"{one.bits_per_byte:.3f}",
                "trained parameters": one.parameters_text,
                "CPU minutes": f"{one.cpu_seconds / 60:.1f}",
                "seeds": len(one.seeds),
            }
        )
    return pd.DataFrame(rows).set_index("variant")


def _verdict(ratio: PairedDifference) -> str:
    if not ratio.distinguishable:
        return "no"
    return "for this seed" if ratio.num_seeds == 1 else "yes"


def contexts_table(found: Sequence[Standing]) -> pd.DataFrame:
    """A row a variant that reads its own contexts: their figures on the validation text, means over seeds, and PPL.

    Effective rank in % of C, exponential of the entropy; contraction rate in nats a token; horizon in tokens, – where
    some seed's block does not forget its start.
    """
    rows = []
    for one in found:
        if one.variant["kind"] != "model":  # controls read other contexts than their own
            continue
        details = [row["details"] for row in one.rows]
        horizons = [each["forgetting_horizon"] for each in details if each["forgetting_horizon"] is not None]
        rows.append(
            {
                "variant": one.name,
                "training tokens": one.tokens,
                "ER %": f"{100 * np.mean([each['validation_rank']['share'] for each in details]):.1f}",
                "contraction, nats a token": f"{np.mean([each['contraction_rate'] for each in details]):+.3f}",
                "horizon, tokens": f"{np.mean(horizons):.0f}" if len(horizons) == len(details) else "–",
                "PPL": f"{one.perplexity:.1f} {_whole(one.interval)}",
                "seeds": len(one.seeds),
            }
        )
    columns = ["variant", "training tokens", "ER %", "contraction, nats a token", "horizon, tokens", "PPL", "seeds"]
    return pd.DataFrame(rows, columns=columns).set_index("variant")


def _whole(interval: Interval | None) -> str:
    return "" if interval is None else f"[{interval[0]:,.0f}, {interval[1]:,.0f}]"
