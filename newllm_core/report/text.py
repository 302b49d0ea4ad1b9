"""Reports from records alone: figures with their counts, never adjectives (docs/method.md, section 6)."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from newllm_core.intervals import NOT_MEASURED, interval_text


def _share(converged: int | None, total: int) -> str:
    return NOT_MEASURED if converged is None else f"{converged / total:.1%} ({converged}/{total})"


def phase1_lines(phase1: Mapping[str, Any]) -> list[str]:
    """Phase 1 as docs/method.md, section 6, names its figures, a line a figure."""
    rank, convergence, passes = phase1["effective_rank"], phase1["convergence"], phase1["repeated_passes"]
    width, kept = rank["context_dim"], phase1["best_iteration"]
    cvfp = phase1["cvfp_loss"]
    # Iteration 1 has no trained one before it to compare with.
    train_converged = None if kept == 1 else convergence["train_converged"]
    lines = [
        f"iterations           {phase1['iterations']}/{phase1['max_iterations']}, weights of iteration {kept} kept",
        f"effective rank       training   {_rank(rank['train'], width, rank['train_tokens'])}",
        f"                     validation {_rank(rank['validation'], width, rank['validation_tokens'])}",
        f"                     untrained  {_rank(rank['validation_untrained'], width, rank['validation_tokens'])}",
        f"                     of white noise: training {rank['train_ceiling']:.2f}, "
        f"validation {rank['validation_ceiling']:.2f}",
        f"convergence          training   {_share(train_converged, convergence['train_total'])}",
        "                     validation "
        + _share(convergence["validation_converged"], convergence["validation_total"]),
        f"CVFP loss            {NOT_MEASURED if cvfp is None else f'{cvfp:.6f}'}",
        f"final difference     {passes['differences'][-1]:.2e} between the last two of "
        f"{len(passes['differences']) + 1} passes: {passes['verdict']} "
        f"(slope {passes['slope']:.2e}, spread {passes['spread']:.2e})",
        f"contraction          {_forgetting(phase1)}",
    ]
    return lines + _stale_lines(phase1["stale_against_exact"]) + _check_lines(phase1["checks"])


def _rank(value: float, width: int, tokens: int) -> str:
    return f"{value:.2f}/{width} = {value / width:.1%} ({tokens:,} tokens)"


def _forgetting(phase1: Mapping[str, Any]) -> str:
    rate, forgetting = phase1["contraction_rate"], phase1["forgetting"]
    if forgetting is None:
        return "not measurable on so few tokens"
    measured = f"{rate:+.4f} nats per token ({phase1['contraction_tokens']:,} tokens)"
    if forgetting["horizon"] is None:
        within = len(forgetting["distances"])
        return f"{measured}; a difference does not fall by {forgetting['factor']:.0e} within {within} tokens"
    return f"{measured}; a difference falls by {forgetting['factor']:.0e} in {forgetting['horizon']} tokens"


def _stale_lines(stale: Mapping[str, Any] | None) -> list[str]:
    if stale is None:
        return []
    return [
        f"stale against exact  cosine mean {stale['mean_cosine']:.4f}, minimum {stale['min_cosine']:.4f}, "
        f"MSE {stale['mse']:.4f} ({stale['num_tokens']:,} tokens)"
    ]


def _check_lines(checks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for number, (name, check) in enumerate(checks.items(), start=1):
        figures = ", ".join(
            f"{figure.replace('_', ' ')} {NOT_MEASURED if value is None else f'{value:.4g}'}"
            for figure, value in check.items()
            if figure != "verdict"
        )
        lines.append(f"check {number}              {check['verdict']}: {name.replace('_', ' ')} ({figures})")
    return lines


def phase2_lines(phase2: Mapping[str, Any]) -> list[str]:
    best = phase2["best"]
    return [
        f"epochs               {len(phase2['epochs'])}, best {best['epoch']}",
        f"validation           PPL {best['validation_perplexity']:.1f}, accuracy {best['validation_accuracy']:.1%}, "
        f"loss {best['validation_loss']:.4f} nats a token, {best['validation_bits_per_byte']:.3f} bits a byte",
        f"training             PPL {best['train_perplexity']:.1f}, accuracy {best['train_accuracy']:.1%}",
        f"head                 {phase2['head_method']}, {phase2['device_batch_size']} tokens at once",
    ]


def chosen_text(record: Mapping[str, Any]) -> str:
    """Which text chose iteration and epoch, in words."""
    bounds = record["config"]["data"].get("selection_range")
    if bounds is None:
        return "the validation text, which is judged, so figures are a little flattered"
    return f"conversations {bounds[0]}–{bounds[1] - 1}, {record['tokens']['selection']:,} tokens of their own"


def report(record: Mapping[str, Any]) -> str:
    """The whole report of a run, as text."""
    tokens, config = record["tokens"], record["config"]
    heading = [
        f"corpus               {record['corpus']}, {config['data']['num_samples']} conversations, "
        f"{tokens['train']:,} training and {tokens['validation']:,} validation tokens",
        f"embeddings           {record['embeddings']}, E = {config['model']['embed_dim']}; "
        f"C = {config['model']['context_dim']}, L = {config['model']['num_layers']}; seed {record['seed']}; "
        f"{config['run']['num_threads']} threads; {record['device']}",
        f"chosen on            {chosen_text(record)}",
        f"unseen types         {tokens['unseen_validation_share']:.2%} of validation tokens",
        f"trained parameters   {record['parameters']['trained_in_phase1']:,} in Phase 1, "
        f"{record['parameters']['trained_in_phase2']:,} in Phase 2",
    ]
    sections = [heading, ["", "Phase 1"], phase1_lines(record["phase1"])]
    if "phase2" in record:
        sections += [["", "Phase 2"], phase2_lines(record["phase2"])]
    return "\n".join(line for section in sections for line in section)


def epoch_table(phase2: Mapping[str, Any]) -> pd.DataFrame:
    """One row per epoch; losses in nats a token, accuracies in percent; "val" is the text that chooses."""
    rows = [
        {
            "epoch": epoch["epoch"],
            "train loss": round(epoch["train_loss"], 4),
            "train PPL": round(epoch["train_perplexity"], 1),
            "train acc. %": round(100 * epoch["train_accuracy"], 2),
            "val loss": round(epoch["validation_loss"], 4),
            "val PPL": round(epoch["validation_perplexity"], 1),
            "val acc. %": round(100 * epoch["validation_accuracy"], 2),
        }
        for epoch in phase2["epochs"]
    ]
    return pd.DataFrame(rows).set_index("epoch")


def iteration_table(phase1: Mapping[str, Any]) -> pd.DataFrame:
    """One row per iteration of Phase 1; effective ranks in percent of the context width, a dash where not measured.

    Convergence compares with the iteration before, so the first has none.
    """
    total = phase1["convergence"]["train_total"]
    rows = [
        {
            "iteration": row["iteration"],
            "CVFP": round(row["cvfp"], 5),
            **_prediction_columns(row),
            "diversity": round(row["diversity"], 5),
            "gradient norm": round(row["gradient_norm"], 4),
            "converged %": None if row["iteration"] == 1 else round(100 * row["converged"] / total, 2),
            "ER train %": round(100 * row["train_rank"]["share"], 1),
            "ER val %": None if row["validation_rank"] is None else round(100 * row["validation_rank"]["share"], 1),
        }
        for row in phase1["history"]
    ]
    table = pd.DataFrame(rows).set_index("iteration")
    return table.astype(object).where(table.notna(), NOT_MEASURED)


def _prediction_columns(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Of objectives that predict: the loss in training, and on validation text where it was checked."""
    if row["prediction"] is None:
        return {}
    held_out = row["validation_prediction"]
    return {
        "prediction": round(row["prediction"], 4),
        "prediction val": None if held_out is None else round(held_out, 4),
    }


def spectrum_table(phase1: Mapping[str, Any]) -> pd.DataFrame:
    """Every measure of the validation contexts' spectrum, with its 95 % interval and where its definition is from."""
    rows = [
        {
            "measure": measure["name"].replace("_", " "),
            "centred": "yes" if measure["centred"] else "no",
            "value": NOT_MEASURED if measure["value"] is None else f"{measure['value']:.2f}",
            "95 % interval": interval_text(measure["interval"], "{:.2f}"),
            "unit": measure["unit"],
            "tokens": measure["tokens"],
            "source": measure["source"],
        }
        for measure in phase1["spectrum"]["measures"]
    ]
    return pd.DataFrame(rows).set_index("measure")


def data_table(statistics: Mapping[str, Any]) -> pd.DataFrame:
    """Token counts of training and validation text. ``statistics``: `data.TokenStatistics` as a mapping."""
    per_sample = pd.Series(statistics["tokens_per_sample"])
    return pd.DataFrame(
        {
            "figure": [
                "training tokens",
                "distinct training tokens",
                "validation tokens",
                "distinct validation tokens",
                "validation tokens whose type never occurs in training, %",
                "tokens per conversation, median",
                "tokens per conversation, smallest and largest",
            ],
            "value": [
                f"{statistics['num_tokens']:,}",
                f"{statistics['distinct_tokens']:,}",
                f"{statistics['validation_tokens']:,}",
                f"{statistics['distinct_validation_tokens']:,}",
                f"{100 * statistics['unseen_validation_share']:.2f}",
                f"{per_sample.median():,.0f}",
                f"{per_sample.min():,} … {per_sample.max():,}",
            ],
        }
    ).set_index("figure")
