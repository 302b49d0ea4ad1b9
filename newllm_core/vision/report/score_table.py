"""Data sets against the notes' targets, as a table and as lines, from records."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from newllm_core.comparison.accuracy import percent_accuracy
from newllm_core.comparison.tables import Cell, table_of
from newllm_core.vision.experiment import Record, score_cards
from newllm_core.vision.report.runs import target_name
from newllm_core.vision.score import (
    TARGET_ACCURACIES,
    TARGET_CONSISTENCY,
    TARGET_GLOBAL,
    TARGET_ROBUSTNESS,
    TARGET_SCORES,
    ScoreCard,
)


def score_table(records: Mapping[str, Record], names: Sequence[str], part: str = "test") -> pd.DataFrame:
    """A row a named data set: accuracy (Wilson's interval), both scores, what is attainable, the targets; as numbers.

    Raises ScoreError for a named data set without figures of ``part``.
    """
    cards = score_cards(records, names, part)
    rows: list[dict[str, Cell]] = []
    for name in names:
        target, figures = target_name(name), records[name][part]
        row = {
            "data set": name,
            "accuracy %": percent_accuracy(records[name], part),
            "target %": 100 * TARGET_ACCURACIES[target] if target else None,
            **{score: card.score[name] for score, card in cards.items()},
            "target score": TARGET_SCORES[target] if target else None,
            **{f"most attainable {score}": card.maximum[name] for score, card in cards.items()},
            "images": figures["images"],
            "parameters": records[name]["parameters"]["total"],
        }
        rows.append(row)
    return table_of(rows, "data set")


def card_lines(score: str, card: ScoreCard) -> list[str]:
    """Global, consistency and robustness, each beside its target and beside the notes' own figure of that name."""
    target = f" (target {TARGET_GLOBAL:g})" if score == "tpe_scalar" else ""  # the notes' target is of this score
    return [
        f"Global {score} over {', '.join(card.data_sets)}: {_text(card.global_score)} of at most "
        f"{_text(card.global_maximum)}{target}",
        f"consistency, 1 - std/mean: {_text(card.consistency_relative)} (target {TARGET_CONSISTENCY:g}); "
        f"the notes' 1 - std: {_text(card.consistency_absolute)}",
        f"robustness, min/mean: {_text(card.min_over_mean)} (target {TARGET_ROBUSTNESS:g}); "
        f"the notes' share of data sets that ran: {_text(card.completion_rate)}",
    ]


def _text(value: Any) -> str:
    return "not defined" if value is None else f"{value:.3f}"
