"""A network that rows have in common: trained once, and no figure of a row knows the difference."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from test_phase1_rows import figures
from test_runners import NETWORK, SMALL, run_one
from test_runners_resume import without_clocks

from newllm_core.baselines.config import BaselineConfig
from newllm_core.baselines.registry import baseline_config
from newllm_core.baselines.train import train_network
from newllm_core.experiment.prepare import prepare
from newllm_core.runs.files import RunError
from newllm_core.studies import kept_networks
from newllm_core.studies.kept_networks import NETWORK_RECORD, NETWORK_WEIGHTS
from newllm_core.studies.rows import NETWORKS_FOLDER

READ_WHEN_JUDGED = {
    "cache_weight": 0.2, "cache_scale": 3.0, "cache_tokens": 7, "cache_horizon": 5.0, "ngram_weight": 0.1,
    "ngram_order": 2,
}  # fmt: skip
READ_IN_TRAINING = {
    "network": "lstm", "embed_dim": 6, "width": 12, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2, "dropout": 0.1,
    "unigram_bias": False, "learning_rate": 0.1, "weight_decay": 0.2, "gradient_clip": 0.5, "unseen_sample": 7,
    "num_streams": 3, "segment_tokens": 5, "max_epochs": 2, "patience": 1,
}  # fmt: skip


def test_every_field_is_read_in_training_or_when_judged() -> None:
    """A new field must say where it belongs, or two different networks would be taken for one."""
    assert {spec.name for spec in dataclasses.fields(BaselineConfig)} == {*READ_WHEN_JUDGED, *READ_IN_TRAINING}
    plain = BaselineConfig()
    for name, value in READ_WHEN_JUDGED.items():
        assert dataclasses.replace(plain, **{name: value}).training_part() == plain
    for name, value in READ_IN_TRAINING.items():
        assert dataclasses.replace(plain, **{name: value}).training_part() != plain


@pytest.mark.parametrize(("first", "other"), [("gru", "gru-cache-ngrams"), ("gru-cache", "gru")])
def test_rows_that_differ_in_cache_and_ngrams_share_a_network_and_have_the_figures_of_their_own(
    first: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir, rows = tmp_path / "data", tmp_path / "rows"
    alone = run_one(other, SMALL, tmp_path / "alone", NETWORK, data_dir)
    run_one(first, SMALL, rows, NETWORK, data_dir)
    monkeypatch.setattr(kept_networks, "train_network", None)  # would fail if it were trained again
    shared = run_one(other, SMALL, rows, NETWORK, data_dir)
    assert without_clocks(figures(shared)) == without_clocks(figures(alone))
    assert len(list((rows / NETWORKS_FOLDER).glob(f"*/{NETWORK_RECORD}"))) == 1
    assert shared["cpu_seconds"] > shared["details"]["cpu_seconds"] > 0  # training counts, whoever has paid it


def test_the_epoch_is_chosen_on_the_selection_text_and_the_validation_text_judged(tmp_path: Path) -> None:
    config = baseline_config("gru", **{**NETWORK, "max_epochs": 2, "embed_dim": SMALL.model.embed_dim})
    prepared = prepare(SMALL.data, SMALL.model, SMALL.run, tmp_path / "data")
    chooses = dataclasses.replace(prepared, selection_tokens=prepared.train_tokens[:60])
    found = [
        kept_networks.fit_network(one, config, tmp_path / str(number)) for number, one in enumerate((prepared, chooses))
    ]
    alone = train_network(chooses.model, chooses.train_tokens, chooses.selection_tokens, config, SMALL.run.seed)
    losses = [[epoch["validation_loss"] for epoch in one.details["epochs"]] for one in found]
    assert losses[1] == [epoch.validation_loss for epoch in alone.epochs] != losses[0]
    assert all(len(one.nats) == len(prepared.validation_tokens) - 1 for one in found)


def test_another_kind_of_network_is_another_one(tmp_path: Path) -> None:
    for name in ("gru", "lstm"):
        run_one(name, SMALL, tmp_path / "rows", NETWORK, tmp_path / "data")
    assert len(list((tmp_path / "rows" / NETWORKS_FOLDER).glob(f"*/{NETWORK_RECORD}"))) == 2


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    run_one("gru", SMALL, tmp_path / "rows", NETWORK, tmp_path / "data")
    (weights,) = (tmp_path / "rows" / NETWORKS_FOLDER).glob(f"*/{NETWORK_WEIGHTS}")
    shutil.copy(weights.with_name(NETWORK_RECORD), weights)
    with pytest.raises(RunError, match=NETWORK_WEIGHTS):
        run_one("gru-cache", SMALL, tmp_path / "rows", NETWORK, tmp_path / "data")
