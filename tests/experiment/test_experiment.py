"""One experiment end to end, on real text at a small size: identical when repeated, resumed, or shared."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from core_helpers import stop_after

from newllm_core.config.hyperparameters import DataConfig, ModelConfig, Phase1Config, Phase2Config, RunConfig, Settings
from newllm_core.data import load_token_streams, load_tokenizer, token_byte_lengths
from newllm_core.experiment import run as experiment_module
from newllm_core.experiment.estimate import estimate
from newllm_core.experiment.folder_names import phase1_folder_name, run_folder_name, settings_of
from newllm_core.experiment.measure import per_conversation_sums
from newllm_core.experiment.phase1_cache import CONTEXT_WEIGHTS
from newllm_core.experiment.prepare import prepare
from newllm_core.experiment.run import (
    PHASE2_CHECKPOINT,
    TOKEN_WEIGHTS,
    load_model,
    run_experiment,
    run_phase1_only,
)
from newllm_core.head.cross_entropy import Head
from newllm_core.model import NewLLM
from newllm_core.report.phases import plot_epochs, plot_forgetting, plot_phase1, plot_spectrum, plot_tokens
from newllm_core.report.style import save_figure
from newllm_core.report.text import data_table, epoch_table, iteration_table, report, spectrum_table
from newllm_core.runs.checkpoint import CheckpointPlace, load_checkpoint
from newllm_core.runs.files import RunError, read_json
from newllm_core.runs.identity import figures_of
from newllm_core.training.evaluation import evaluate, evaluation_head
from newllm_core.training.phase1 import all_contexts

SMALL = Settings(
    # 546 and 640 tokens, and some that choose.
    data=DataConfig(
        num_samples=2, train_range=(4, 6), validation_range=(15, 17), selection_range=(17, 19), embeddings="random"
    ),
    model=ModelConfig(context_dim=24, embed_dim=16),
    phase1=Phase1Config(
        max_iterations=5, batch_tokens=400, min_last_batch=100, effective_rank_tokens=300, validation_passes=3
    ),
    phase2=Phase2Config(max_epochs=2, effective_batch_size=256, head="blocks"),
    run=RunConfig(num_threads=1, device="cpu"),
)
# Everything at once: contrastive contexts, the sum readout, bias, dropout, sampled softmax, cache.
BETTER = dataclasses.replace(
    SMALL,
    model=dataclasses.replace(SMALL.model, readout="sum", adapter_rank=2, time_scales=True, num_input_tokens=2),
    phase1=dataclasses.replace(
        SMALL.phase1, objective="contrastive", dist_reg_weight=0.1, check_interval=2, prediction_streams=4
    ),
    phase2=dataclasses.replace(
        SMALL.phase2, unigram_bias=True, dropout=0.2, weight_decay=0.1, schedule="cosine", unseen_sample=100,
        cache_weight=0.2,
    ),
)  # fmt: skip

TRAINED_HEAD = dataclasses.replace(
    SMALL, model=dataclasses.replace(SMALL.model, tie_weights=False, freeze_embedding=False)
)
# Steps so large that an epoch after the best one makes it worse.
WORSE = dataclasses.replace(
    SMALL, phase2=dataclasses.replace(SMALL.phase2, learning_rate=0.1, max_epochs=9, patience=2)
)


def run_small(run_dir: Path, data_dir: Path, settings: Settings = SMALL, **options: Any) -> dict[str, Any]:
    parts = settings.data, settings.model, settings.phase1, settings.phase2
    return run_experiment(*parts, run_dir, run=settings.run, data_dir=data_dir, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("experiment")


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    return run_small(folder / "run", folder / "data")


def test_record_is_what_the_file_holds_and_has_the_public_names(folder: Path, record: dict[str, Any]) -> None:
    assert read_json(folder / "run" / "run.json") == json.loads(json.dumps(record))
    assert record["corpus"] == "chitchat" and record["embeddings"] == "random" and record["seed"] == 42
    assert record["tokens"]["train"] > record["tokens"]["distinct_train"] > 0
    assert record["phase1"]["iterations"] == 5
    for part in ("train", "validation"):
        assert 1 <= record["phase1"]["effective_rank"][part] <= 24
        assert 0 <= record["phase1"]["convergence"][part] <= 1
    assert len(record["phase2"]["epochs"]) == 2
    assert record["phase2"]["best"]["validation_perplexity"] > 1
    assert 0 <= record["phase2"]["best"]["validation_accuracy"] <= 1
    assert record["seconds"] > 0 and torch.__version__.startswith(record["versions"]["torch"].split("+")[0])


def test_two_runs_give_identical_figures(folder: Path, record: dict[str, Any]) -> None:
    again = run_small(folder / "again", folder / "data")
    assert figures_of(again) == figures_of(record)
    for name in (f"phase1/{CONTEXT_WEIGHTS}", TOKEN_WEIGHTS):
        assert (folder / "again" / name).read_bytes() == (folder / "run" / name).read_bytes()


def test_another_seed_gives_other_figures(folder: Path, record: dict[str, Any]) -> None:
    other = run_small(folder / "seed", folder / "data", dataclasses.replace(SMALL, run=RunConfig(7, 1, "cpu")))
    assert other["phase2"]["best"] != record["phase2"]["best"]


def test_a_run_interrupted_between_phases_goes_on_and_equals_an_uninterrupted_one(
    folder: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(experiment_module, "train_phase2", interrupt)
        run_small(folder / "resumed", folder / "data")
    assert not (folder / "resumed" / "run.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(experiment_module, "train_phase1", interrupt)
        resumed = run_small(folder / "resumed", folder / "data")
    assert figures_of(resumed) == figures_of(record)


def interrupt_phase2(settings: Settings, run_dir: Path, data_dir: Path, epoch: int, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after("Phase 2", epoch, patch)
        run_small(run_dir, data_dir, settings, **options)


@pytest.mark.parametrize("settings", [BETTER, TRAINED_HEAD, WORSE], ids=["better", "head", "worse"])
def test_a_run_interrupted_within_phase_2_goes_on_after_its_last_epoch_bit_for_bit(
    settings: Settings, folder: Path, tmp_path: Path
) -> None:
    shared = {"phase1_dir": tmp_path / "phase1"}
    whole = run_small(tmp_path / "whole", folder / "data", settings, **shared)
    assert not (tmp_path / "whole" / PHASE2_CHECKPOINT).exists()
    num_epochs = len(whole["phase2"]["epochs"])
    for epoch in {1, num_epochs}:  # after the last one nothing is left to train
        run_dir = tmp_path / str(epoch)
        interrupt_phase2(settings, run_dir, folder / "data", epoch, **shared)
        assert figures_of(run_small(run_dir, folder / "data", settings, **shared)) == figures_of(whole)
        assert (run_dir / TOKEN_WEIGHTS).read_bytes() == (tmp_path / "whole" / TOKEN_WEIGHTS).read_bytes()
    if settings is WORSE:
        assert whole["phase2"]["stopped_early"] and whole["phase2"]["best"]["epoch"] < num_epochs


def test_a_checkpoint_of_another_device_or_text_is_refused(folder: Path, tmp_path: Path) -> None:
    interrupt_phase2(SMALL, tmp_path, folder / "data", epoch=1)
    place = tmp_path / PHASE2_CHECKPOINT
    configs = read_json(max(place.glob("*.json")))["config"]
    for name, value in {"device": "cuda", "tokens": "others'"}.items():
        changed = {**configs, "read": {**configs["read"], name: value}}
        with pytest.raises(RunError, match=f"read.{name}"):
            load_checkpoint(CheckpointPlace(place, changed), torch.device("cpu"))


def test_checkpoints_that_were_all_damaged_are_refused(folder: Path, tmp_path: Path) -> None:
    interrupt_phase2(SMALL, tmp_path, folder / "data", epoch=1)
    for weights in (tmp_path / PHASE2_CHECKPOINT).glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-4] + b"1234")
    with pytest.raises(RunError, match="delete .*phase2_checkpoint to start anew"):
        run_small(tmp_path, folder / "data")


def test_a_complete_run_is_read_and_not_repeated(
    folder: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_run(*arguments: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(experiment_module, "prepare", must_not_run)
    assert run_small(folder / "run", folder / "data") == read_json(folder / "run" / "run.json")


def test_runs_that_differ_in_phase2_share_phase1(
    folder: Path, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_train(*arguments: Any) -> None:
        raise AssertionError("Phase 1 trained again")

    monkeypatch.setattr(experiment_module, "train_phase1", must_not_train)
    shorter = dataclasses.replace(SMALL, phase2=dataclasses.replace(SMALL.phase2, max_epochs=1))
    shared = run_small(folder / "shorter", folder / "data", shorter, phase1_dir=folder / "run" / "phase1")
    assert shared["phase1"] == record["phase1"]
    assert shared["phase2"]["epochs"] == record["phase2"]["epochs"][:1]


def test_a_folder_of_another_configuration_is_refused(folder: Path, record: dict[str, Any]) -> None:
    other = dataclasses.replace(SMALL, phase2=dataclasses.replace(SMALL.phase2, max_epochs=3))
    with pytest.raises(RunError, match="phase2.max_epochs = 2, asked for 3"):
        run_small(folder / "run", folder / "data", other)
    wider = dataclasses.replace(SMALL, model=ModelConfig(context_dim=25, embed_dim=16))
    with pytest.raises(RunError, match="model.context_dim = 24, asked for 25"):
        run_small(folder / "wider", folder / "data", wider, phase1_dir=folder / "run" / "phase1")


def test_damaged_phase1_weights_are_refused(folder: Path, record: dict[str, Any]) -> None:
    run_small(folder / "damaged", folder / "data")
    (folder / "damaged" / "run.json").unlink()
    weights = folder / "damaged" / "phase1" / CONTEXT_WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunError, match="does not match its checksum"):
        run_small(folder / "damaged", folder / "data")


def test_loaded_model_reaches_the_recorded_perplexity(folder: Path, record: dict[str, Any]) -> None:
    loaded = load_model(record, folder / "run", folder / "run" / "phase1", folder / "data")
    contexts = all_contexts(loaded.model, loaded.validation_tokens)
    again = evaluate(
        loaded.model, contexts, loaded.validation_tokens, Head(loaded.model.head_weight.detach(), "blocks")
    )
    assert again.mean_nats == record["phase2"]["best"]["validation_loss"]
    assert settings_of(record) == dataclasses.replace(SMALL)


def test_the_better_model_is_recorded_drawn_and_loaded_like_any_other(folder: Path) -> None:
    record = run_small(folder / "better", folder / "data", BETTER)
    assert "contrastive-MCDL-w0.1" in run_folder_name(BETTER)
    loaded = load_model(record, folder / "better", folder / "better" / "phase1", folder / "data")
    run_small(folder / "better", folder / "data", BETTER, save_model=True)
    alone = NewLLM.from_pretrained(folder / "better" / "model")
    assert alone.state_dict().keys() == loaded.model.state_dict().keys() >= {"output_bias", "readout.up.weight"}
    assert all(torch.equal(value, loaded.model.state_dict()[name]) for name, value in alone.state_dict().items())
    contexts, tokens = all_contexts(loaded.model, loaded.validation_tokens), loaded.validation_tokens
    again = evaluate(loaded.model, contexts, tokens, evaluation_head(loaded.model, "blocks"), BETTER.phase2)
    assert again.mean_nats == record["phase2"]["best"]["validation_loss"]
    history = record["phase1"]["history"]
    assert [row["validation_prediction"] is not None for row in history] == [False, True, False, True, True]
    assert "prediction" in iteration_table(record["phase1"]).columns
    labels = [text.get_text() for text in plot_phase1(record).axes[0].get_legend().get_texts()]
    assert labels == ["CVFP", "MCDL", "contrastive", "contrastive, validation"]
    assert figures_of(run_small(folder / "better again", folder / "data", BETTER)) == figures_of(record)


def test_an_untrained_block_is_recorded_with_nulls_not_zeros(folder: Path) -> None:
    untrained = dataclasses.replace(SMALL, phase1=dataclasses.replace(SMALL.phase1, max_iterations=0))
    record = run_small(folder / "untrained", folder / "data", untrained)
    assert record["phase1"]["convergence"]["train"] is None and record["phase1"]["cvfp_loss"] is None
    assert record["phase1"]["stale_against_exact"] is None
    assert (
        record["phase1"]["effective_rank"]["validation"] == record["phase1"]["effective_rank"]["validation_untrained"]
    )
    assert "convergence          training   –" in report(record)


def test_folder_names_change_with_every_section() -> None:
    names = {run_folder_name(SMALL)}
    for section, change in (
        ("data", {"num_samples": 3}), ("model", {"num_layers": 2}), ("phase1", {"learning_rate": 0.1}),
        ("phase2", {"learning_rate": 0.1}), ("run", {"seed": 1}),
    ):  # fmt: skip
        changed = dataclasses.replace(getattr(SMALL, section), **change)
        names.add(run_folder_name(dataclasses.replace(SMALL, **{section: changed})))
    assert len(names) == 6
    untrained = dataclasses.replace(SMALL.phase1, max_iterations=0)
    assert "untrained" in phase1_folder_name(SMALL.data, SMALL.model, untrained, SMALL.run)


def test_conversation_sums_add_up_and_follow_the_target() -> None:
    nats = torch.arange(1.0, 6.0)  # targets 1 … 5 of a stream of six tokens
    sums = per_conversation_sums(nats, torch.tensor([0, 2, 6]))
    assert sums == {"nats": [1.0, 14.0], "tokens": [1, 4]}


def test_record_sums_of_conversations_give_the_validation_loss(record: dict[str, Any]) -> None:
    sums = record["phase2"]["validation_conversations"]
    assert sum(sums["tokens"]) == record["tokens"]["validation"] - 1
    mean = sum(sums["nats"]) / sum(sums["tokens"])
    assert mean == pytest.approx(record["phase2"]["best"]["validation_loss"], rel=1e-9)


def test_byte_lengths_are_those_of_the_decoded_text(folder: Path, record: dict[str, Any]) -> None:
    stream = load_token_streams(SMALL.data, folder / "data").validation
    text = load_tokenizer().decode(stream.tokens.tolist())
    assert int(token_byte_lengths()[stream.tokens].sum()) == len(text.encode("utf-8"))


def test_report_says_figures_with_counts(record: dict[str, Any]) -> None:
    text = report(record)
    rank = record["phase1"]["effective_rank"]
    assert f"{rank['validation']:.2f}/24 = {rank['validation'] / 24:.1%}" in text
    assert f"/{record['tokens']['train']})" in text
    assert f"PPL {record['phase2']['best']['validation_perplexity']:.1f}" in text
    assert len(epoch_table(record["phase2"])) == 2 and len(iteration_table(record["phase1"])) == 5


def test_pictures_are_drawn_from_the_record_alone(folder: Path, record: dict[str, Any]) -> None:
    stored = read_json(folder / "run" / "run.json")
    for plot in (plot_phase1, plot_spectrum, plot_forgetting, plot_epochs):
        figure = plot(stored)
        assert all(axis.get_xlabel() and axis.get_ylabel() and axis.get_title() for axis in figure.axes)
        path = save_figure(figure, folder / f"{plot.__name__}.png")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_token_pictures_and_table(folder: Path, record: dict[str, Any]) -> None:
    data = load_token_streams(SMALL.data, folder / "data")
    figure = plot_tokens(data.statistics.tokens_per_sample, data.train.tokens, "chitchat")
    assert len(figure.axes) == 2
    assert data_table(vars(data.statistics))["value"].iloc[0] == f"{record['tokens']['train']:,}"


def test_phase1_alone_can_be_reported(folder: Path, record: dict[str, Any]) -> None:
    alone = run_phase1_only(SMALL, folder / "phase1 alone", folder / "run" / "phase1", folder / "data")
    assert figures_of(alone["phase1"]) == figures_of(record["phase1"])
    assert "Phase 2" not in report(alone).split("\n")


def test_estimate_scales_with_the_run_and_leaves_the_model_alone(folder: Path, record: dict[str, Any]) -> None:
    prepared = prepare(SMALL.data, SMALL.model, SMALL.run, folder / "data")
    before = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    figures = estimate(prepared, SMALL)
    assert figures.seconds_per_iteration > 0 and figures.seconds_per_epoch > 0 and figures.memory_gb > 0
    assert figures.longest_seconds == pytest.approx(5 * figures.seconds_per_iteration + 2 * figures.seconds_per_epoch)
    assert "at most" in str(figures)
    assert all(torch.equal(value, before[name]) for name, value in prepared.model.state_dict().items())


def test_the_spectrum_table_has_every_measure_twice_with_its_source(record: dict[str, Any]) -> None:
    table = spectrum_table(record["phase1"])
    assert list(table["centred"]) == 4 * ["no"] + 4 * ["yes"]
    assert set(table["tokens"]) == {300} and table["source"].str.contains("Vetterli").sum() == 4
    rank = record["phase1"]["effective_rank"]["validation"]
    assert table["value"].iloc[0] == f"{rank:.2f}"
