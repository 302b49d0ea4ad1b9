"""Variants on the same text, from their rows alone: perplexity over seeds and conversations, ratios paired by both.

A row says itself what it is: ``row["variant"]`` holds its name, a label in words, its kind and group, a sentence, the
name of its reference, and what was expected of their ratio before it was run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from newllm_core.comparison.figures import perplexity, perplexity_ratio, validation_losses
from newllm_core.comparison.groups import ComparisonError, Record, Runs
from newllm_core.comparison.tables import VERDICT, Cell, table_of
from newllm_core.intervals import NOT_MEASURED, Estimate, seeds_text

NOTHING_CHOSEN = "training"  # the text of counts and pretrained models, which choose nothing on one that is held out


def discarded_parameters(row: Mapping[str, Any]) -> int:
    """Of the linear map that a predicting Phase 1 trains and throws away."""
    config = row["config"]
    phase1 = config.get("phase1")
    if phase1 is None or phase1["objective"] == "cvfp" or not phase1["max_iterations"]:
        return 0
    return int((config["model"]["context_dim"] + 1) * config["model"]["embed_dim"])


@dataclass(frozen=True)
class Standing(Runs):
    """One variant at one number of training tokens; ``records`` are its rows.

    Attributes:
        variant: what its rows say of it.
        perplexity: over seeds and conversations.
        bits_per_byte, cpu_seconds: means over seeds.
        judged: the same from rows that the judged text itself chose, where there are both; ``records`` are the others.
    """

    variant: Mapping[str, Any]
    tokens: int
    perplexity: Estimate
    bits_per_byte: float
    cpu_seconds: float
    judged: "Standing | None" = None

    def alike(self, other: "Standing") -> "Standing":
        """Of the two ways in which this one was run, that of ``other``, where there is it."""
        return self.judged if self.judged is not None and other.chosen_on == self.judged.chosen_on else self

    @property
    def name(self) -> str:
        return str(self.variant["name"])

    @property
    def chosen_on(self) -> str:
        """Which text chose iteration and epoch."""
        return str(self.records[0]["chosen_on"])

    @property
    def trainable_parameters(self) -> int:
        """Of the finished model, trained in both phases."""
        return int(self.records[0]["trainable_parameters"])

    @property
    def discarded_parameters(self) -> int:
        return discarded_parameters(self.records[0])

    @property
    def parameters_text(self) -> str:
        """Of the finished model, + those that were trained and thrown away."""
        return f"{self.trainable_parameters:,}" + f" + {self.discarded_parameters:,}" * bool(self.discarded_parameters)

    def record(self) -> dict[str, Any]:
        """As in `controls.json`."""
        return {
            "name": self.name,
            "what": self.variant["sentence"],
            "tokens": self.tokens,
            "chosen_on": self.chosen_on,
            "seeds": list(self.seeds),
            "validation_perplexity": self.perplexity.value,
            "interval": None if self.perplexity.interval is None else list(self.perplexity.interval),
            "bits_per_byte": self.bits_per_byte,
            "trainable_parameters": self.trainable_parameters,
            "discarded_parameters": self.discarded_parameters,
            "cpu_seconds": self.cpu_seconds,
        }


def standings(rows: Sequence[Record]) -> list[Standing]:
    """Rows by variant and training tokens, best first within a number of tokens.

    Where some rows of a variant had a selection text of their own, those without one, a little flattered
    (``flattery``), stand apart, in ``judged``.

    Raises ComparisonError for no rows, a row given twice, or different validation text.
    """
    if not rows:
        raise ComparisonError("expected at least one row, given none")
    validation_losses(rows)  # refuses different validation text
    found = [_both_ways(*key, apart, together) for key, (apart, together) in _by_rule(rows).items()]
    return sorted(found, key=lambda one: (one.tokens, one.perplexity.value))


def _by_rule(rows: Sequence[Record]) -> dict[tuple[str, int], tuple[list[Record], list[Record]]]:
    """Of each variant and number of training tokens: rows that had a selection text of their own, and those without."""
    groups: dict[tuple[str, int], tuple[list[Record], list[Record]]] = {}
    for row in rows:
        group = groups.setdefault((row["variant"]["name"], row["tokens"]["train"]), ([], []))
        group["selection_range" not in row["config"].get("data", {})].append(row)
    return groups


def both_ways(rows: Sequence[Record]) -> dict[tuple[str, int], dict[int, tuple[float, float]]]:
    """Perplexities where the judged text chose and where another one did, of every seed that was run both ways, by
    variant and training tokens. Counts and pretrained models choose nothing."""
    found = {}
    for key, (apart, together) in _by_rule(rows).items():
        judged = {row["seed"]: row["validation_perplexity"] for row in together}
        pairs = {
            row["seed"]: (judged[row["seed"]], row["validation_perplexity"]) for row in apart if row["seed"] in judged
        }
        if pairs and apart[0]["chosen_on"] == "selection":
            found[key] = pairs
    return found


def flattery(rows: Sequence[Record]) -> dict[tuple[str, int], list[float]]:
    """How much lower each variant's perplexity was where the judged text itself chose: a share of the honest one for
    every seed of ``both_ways``."""
    return {key: [1 - judged / apart for judged, apart in pairs.values()] for key, pairs in both_ways(rows).items()}


def _both_ways(name: str, tokens: int, apart: Sequence[Record], together: Sequence[Record]) -> Standing:
    if not (apart and together):
        return _standing(name, tokens, apart or together)
    return replace(_standing(name, tokens, apart), judged=_standing(name, tokens, together))


def _standing(name: str, tokens: int, rows: Sequence[Record]) -> Standing:
    seeds = tuple(row["seed"] for row in rows)
    if len(set(seeds)) < len(seeds):
        raise ComparisonError(f"{name} at {tokens:,} tokens: expected each seed once, given {seeds}")
    if any(_but_seed(row["config"]) != _but_seed(rows[0]["config"]) for row in rows):
        raise ComparisonError(f"{name} at {tokens:,} tokens: expected one configuration, given rows of several")
    bits, seconds = (float(np.mean([row[key] for row in rows])) for key in ("bits_per_byte", "cpu_seconds"))
    variant, runs = rows[0]["variant"], Runs(rows[0]["variant"]["label"], tuple(rows))
    return Standing(runs.label, runs.records, variant, tokens, perplexity(runs), bits, seconds)


def _but_seed(configs: dict[str, Any]) -> dict[str, Any]:
    return {section: {**values, "seed": None} for section, values in configs.items()}


def ratios_to_references(
    variants: Sequence[Standing], found: Sequence[Standing]
) -> list[tuple[Standing, Standing, Estimate]]:
    """(variant, its reference, ratio) of each whose reference is among ``found`` at as many tokens, as ``ratio_of``."""
    there = {(one.name, one.tokens): one for one in found}
    named = [(one, there.get((one.variant["reference"] or "", one.tokens))) for one in variants]
    return [ratio_of(one, other) for one, other in named if other is not None]


def ratio_of(one: Standing, other: Standing) -> tuple[Standing, Standing, Estimate]:
    """Of both the rows that were chosen on the same text, where there are such with a common seed, and the ratio of
    their perplexities."""
    mine, theirs = one.alike(other), other.alike(one)
    if not (mine.is_seedless or theirs.is_seedless or set(mine.seeds) & set(theirs.seeds)):
        mine, theirs = one, other
    return mine, theirs, perplexity_ratio(mine, theirs)


def chosen_text(one: Standing, other: Standing) -> str:
    """The texts on which two sides of a ratio were chosen, one where it is the same or where one side chose nothing."""
    texts = dict.fromkeys(side.chosen_on for side in (one, other) if side.chosen_on != NOTHING_CHOSEN)
    return " over ".join(texts) or NOTHING_CHOSEN


def expectation_sentences(found: Sequence[Standing]) -> list[str]:
    """What was expected of each that has a reference, and what came; nothing of those whose reference was not run."""
    return [
        f"{one.name} ({one.variant['sentence']}). Expected: {one.variant['expected']}. Came: {ratio.text()} "
        f"of the PPL of {other.name}, {seeds_text(ratio)}: {ratio.verdict}."
        for one, other, ratio in ratios_to_references(found, found)
    ]


def standings_table(found: Sequence[Standing], reference: str) -> pd.DataFrame:
    """A row a variant, and its ratio to ``reference`` at the same number of tokens.

    With one seed PPL's interval is over conversations alone, and the ratio is distinguishable for that seed alone.
    """
    there = {(one.name, one.tokens): one for one in found}
    rows: list[dict[str, Cell]] = []
    for one in found:
        other = there.get((reference, one.tokens))
        ratio = None if other is None or other is one else ratio_of(one, other)[2]
        rows.append(
            {
                "variant": one.name,
                "training tokens": one.tokens,
                "PPL": one.perplexity,
                f"× {reference}": ratio,
                VERDICT: ratio and ratio.verdict,
                "seeds paired": ratio and len(ratio.by_seed),
                "bits a byte": one.bits_per_byte,
                "trained parameters": one.parameters_text,
                "CPU minutes": one.cpu_seconds / 60,
                "seeds": NOT_MEASURED if one.is_seedless else str(len(one.seeds)),
            }
        )
    return table_of(rows, "variant")


def contexts_table(found: Sequence[Standing]) -> pd.DataFrame:
    """A row a variant that reads its own contexts: their figures on the validation text, means over seeds, and PPL.

    Effective rank in % of C, exponential of the entropy; contraction rate in nats a token, None where the validation
    text is too short for it; horizon in tokens, None where some seed's block does not forget its start.
    """
    rows: list[dict[str, Cell]] = []
    for one in (one for one in found if one.variant["kind"] == "model"):  # controls read others than their own
        details = [row["details"] for row in one.records]
        rates, horizons = ([each[name] for each in details] for name in ("contraction_rate", "forgetting_horizon"))
        rows.append(
            {
                "variant": one.name,
                "training tokens": one.tokens,
                "ER %": 100 * float(np.mean([each["validation_rank"]["share"] for each in details])),
                "contraction, nats a token": None if None in rates else float(np.mean(rates)),
                "horizon, tokens": None if None in horizons else float(np.mean(horizons)),
                "PPL": one.perplexity,
                "seeds": len(one.seeds),
            }
        )
    return table_of(rows, "variant")
