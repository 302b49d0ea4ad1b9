"""Phase 2: accumulation, retries after out-of-memory, which weights are kept, and what stays frozen."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from core_helpers import make_model, make_tokens, phase2_config, state_of
from torch import Tensor
from torch.nn import functional

from newllm_core.config.hyperparameters import Phase2Config
from newllm_core.contexts.store import Batch
from newllm_core.head.cross_entropy import Head
from newllm_core.losses import NotFiniteError
from newllm_core.model import NewLLM
from newllm_core.runs.reproducibility import derived_generator
from newllm_core.training import evaluation, phase2
from newllm_core.training.evaluation import evaluate, evaluation_head
from newllm_core.training.phase1 import Phase1Result, finish_phase1
from newllm_core.training.phase2 import Phase2Result, train_phase2

NUM_TOKENS = 301
TRAIN, VALIDATION = make_tokens(NUM_TOKENS, seed=1), make_tokens(120, seed=2)
SEED = 5


def contexts_of(model: NewLLM) -> Phase1Result:
    return finish_phase1(model, TRAIN, VALIDATION, None)


def train(model: NewLLM, seed: int = SEED, **values: Any) -> Phase2Result:
    return train_phase2(model, contexts_of(model), TRAIN, VALIDATION, phase2_config(**values), seed)


def figures(result: Phase2Result) -> list[dict[str, Any]]:
    return [dataclasses.asdict(epoch) for epoch in result.epochs]


def plain_epochs(model: NewLLM, config: Phase2Config, epochs: int) -> list[tuple[float, float, float]]:
    """docs/method.md, section 5: (training loss, validation loss, validation accuracy) an epoch."""
    contexts = contexts_of(model)
    parameters = [parameter for name, parameter in model.named_parameters() if not name.startswith("context_block")]
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    figures = []
    for epoch in range(1, epochs + 1):
        order = torch.arange(NUM_TOKENS - 1)
        if config.shuffle:
            order = torch.randperm(NUM_TOKENS - 1, generator=derived_generator("shuffle", SEED, epoch))
        total = 0.0
        for start in range(0, NUM_TOKENS - 1, config.effective_batch_size):
            batch = order[start : start + config.effective_batch_size]
            logits = model.logits(model.hidden(contexts.train_contexts[batch], TRAIN[batch]))
            loss = functional.cross_entropy(logits, TRAIN[batch + 1])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
            optimizer.step()
            total += loss.item() * len(batch)
        with torch.no_grad():
            logits = model.logits(model.hidden(contexts.validation_contexts[:-1], VALIDATION[:-1]))
            validation = functional.cross_entropy(logits, VALIDATION[1:]).item()
            accuracy = (logits.argmax(1) == VALIDATION[1:]).double().mean().item()
        figures.append((total / (NUM_TOKENS - 1), validation, accuracy))
    return figures


@pytest.mark.parametrize("head", ["direct", "blocks"])
@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ({}, {}),
        ({"num_layers": 2, "num_input_tokens": 2}, {"shuffle": False, "effective_batch_size": 64}),
        ({"freeze_embedding": False}, {"gradient_clip": 0.05}),
        ({"tie_weights": False}, {"device_batch_size": 10}),
        ({"tie_weights": False, "freeze_embedding": False}, {"effective_batch_size": 300}),
    ],
    ids=["defaults", "in order, two layers", "embedding trained", "untied, in parts", "both trained, one batch"],
)
def test_training_is_the_specifications(shape: dict[str, Any], values: dict[str, Any], head: str) -> None:
    config = phase2_config(max_epochs=3, head=head, learning_rate=0.01, **values)
    model, plain = make_model(**shape), make_model(**shape)
    result = train_phase2(model, contexts_of(model), TRAIN, VALIDATION, config, SEED)
    for epoch, (loss, validation, accuracy) in zip(result.epochs, plain_epochs(plain, config, 3), strict=True):
        assert epoch.train_loss == pytest.approx(loss, rel=1e-4)
        assert epoch.validation_loss == pytest.approx(validation, rel=1e-3)
        assert epoch.validation_accuracy == pytest.approx(accuracy, abs=0.02)
        assert epoch.train_perplexity == pytest.approx(math.exp(epoch.train_loss))
        assert epoch.validation_perplexity == pytest.approx(math.exp(epoch.validation_loss))
    assert result.head_method == head


@pytest.mark.parametrize("head", ["direct", "blocks"])
@pytest.mark.parametrize("device_batch_size", [1, 7, 16, 31])
def test_accumulation_in_parts_is_the_whole_batch(head: str, device_batch_size: int) -> None:
    whole, parts = make_model(tie_weights=False), make_model(tie_weights=False)
    expected = train(whole, head=head, max_epochs=1)
    found = train(parts, head=head, max_epochs=1, device_batch_size=device_batch_size)
    assert found.epochs[0].train_loss == pytest.approx(expected.epochs[0].train_loss, rel=1e-5)
    assert found.epochs[0].train_accuracy == pytest.approx(expected.epochs[0].train_accuracy, abs=0.01)
    assert found.device_batch_size == device_batch_size and expected.device_batch_size == 32
    for name, value in whole.state_dict().items():
        assert torch.allclose(parts.state_dict()[name], value, atol=1e-3), name


def test_no_more_is_computed_at_once_than_the_effective_batch() -> None:
    assert train(make_model(), device_batch_size=1000, max_epochs=1).device_batch_size == 32


def run_out_of_memory_above(fits: int, after_calls: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Parts of more than ``fits`` tokens do not fit any more from a call on; returns the sizes computed."""
    computed: list[int] = []
    accumulate = phase2._Trainer._accumulate

    def limited(trainer: phase2._Trainer, part: Tensor, effective: int) -> tuple[Tensor, Tensor]:
        computed.append(len(part))
        outcome = accumulate(trainer, part, effective)
        # After the gradients: what a failed attempt has accumulated must not count.
        if len(computed) > after_calls and len(part) > fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return outcome

    monkeypatch.setattr(phase2._Trainer, "_accumulate", limited)
    return computed


def test_out_of_memory_from_the_start_gives_the_figures_of_the_smaller_batch_to_the_last_digit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, small = make_model(), make_model()
    expected = train(small, device_batch_size=8)
    run_out_of_memory_above(fits=8, after_calls=0, monkeypatch=monkeypatch)
    found = train(model)
    assert found.device_batch_size == 8
    assert figures(found) == figures(expected)
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in model.state_dict().items())


def test_out_of_memory_amid_an_epoch_halves_the_batch_and_changes_figures_by_rounding_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, small = make_model(), make_model()
    expected = train(small, device_batch_size=16)
    computed = run_out_of_memory_above(fits=16, after_calls=4, monkeypatch=monkeypatch)
    found = train(model)
    assert computed[:9] == [32, 32, 32, 32, 32, 16, 16, 16, 16]
    assert found.device_batch_size == 16
    # Not to the last digit: the first four batches were added up in one part.
    for epoch, other in zip(figures(found), figures(expected), strict=True):
        assert epoch == pytest.approx(other, rel=1e-4)


def test_out_of_memory_amid_a_batch_repeats_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(make_model(), device_batch_size=16)
    computed = run_out_of_memory_above(fits=8, after_calls=3, monkeypatch=monkeypatch)
    found = train(make_model(), device_batch_size=16)
    # The second half of the second batch fails; the first half is done again, in smaller parts.
    assert computed[:8] == [16, 16, 16, 16, 8, 8, 8, 8]
    assert found.epochs[0].train_loss == pytest.approx(expected.epochs[0].train_loss, rel=1e-5)


def test_a_short_last_batch_does_not_shrink_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = run_out_of_memory_above(fits=32, after_calls=0, monkeypatch=monkeypatch)
    assert train(make_model(), max_epochs=2).device_batch_size == 32
    assert computed == [*[32] * 9, 12] * 2


def test_an_error_that_is_not_about_memory_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(trainer: phase2._Trainer, part: Tensor, effective: int) -> tuple[Tensor, Tensor]:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(phase2._Trainer, "_accumulate", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(make_model())


def overfitting(patience: int, max_epochs: int = 40) -> tuple[NewLLM, Phase2Result]:
    """A head and embedding of their own learn the training text by heart; validation gets worse after a while."""
    model = make_model(tie_weights=False, freeze_embedding=False)
    return model, train(model, max_epochs=max_epochs, patience=patience, learning_rate=0.1)


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_after_so_many_epochs_without_gain(patience: int) -> None:
    _, result = overfitting(patience)
    assert result.stopped_early and len(result.epochs) == result.best_epoch + patience


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    model, result = overfitting(patience=5)
    losses = [epoch.validation_loss for epoch in result.epochs]
    assert result.best_epoch == losses.index(min(losses)) + 1 < len(losses)
    assert result.best == result.epochs[result.best_epoch - 1]  # no rounding with "blocks"
    kept = evaluate(model, contexts_of(make_model()).validation_contexts, VALIDATION, evaluation_head(model, "blocks"))
    assert kept.mean_nats == result.best.validation_loss == result.validation.mean_nats
    assert kept.accuracy == result.best.validation_accuracy


def test_all_epochs_run_where_validation_improves() -> None:
    result = train(make_model(), max_epochs=3, patience=1)
    assert len(result.epochs) == result.best_epoch == 3 and not result.stopped_early
    assert result.best.validation_loss < result.epochs[0].validation_loss


@pytest.mark.parametrize("head", ["direct", "blocks", "blocks-bf16"])
def test_evaluation_is_the_direct_computation(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_BATCH", 50)
    model = make_model(num_layers=2)
    contexts = contexts_of(model).validation_contexts
    found = evaluate(model, contexts, VALIDATION, evaluation_head(model, head))
    with torch.no_grad():
        logits = model.logits(model.hidden(contexts[:-1], VALIDATION[:-1]))
    nats = functional.cross_entropy(logits, VALIDATION[1:], reduction="none")
    assert torch.allclose(found.nats, nats, atol=1e-5)
    assert torch.equal(found.correct, logits.argmax(1) == VALIDATION[1:])
    assert found.mean_nats == pytest.approx(nats.mean().item(), rel=1e-5)
    assert found.accuracy == pytest.approx((logits.argmax(1) == VALIDATION[1:]).double().mean().item())


def test_validation_products_are_never_rounded() -> None:
    model = make_model()
    assert [evaluation_head(model, name).method for name in ("direct", "blocks", "blocks-bf16")] == [
        "direct", "blocks", "blocks",
    ]  # fmt: skip


def test_rounded_products_learn_nearly_the_same() -> None:
    exact, rounded = train(make_model(), head="blocks"), train(make_model(), head="blocks-bf16")
    assert rounded.head_method == "blocks-bf16"
    assert rounded.best.validation_loss == pytest.approx(exact.best.validation_loss, rel=5e-3)


@pytest.mark.parametrize(
    ("shape", "trained"),
    [
        ({}, set()),
        ({"freeze_embedding": False}, {"embedding"}),
        ({"tie_weights": False}, {"untied_head"}),
        ({"tie_weights": False, "freeze_embedding": False}, {"embedding", "untied_head"}),
    ],
)
def test_what_is_not_frozen_is_trained_and_the_rest_untouched(shape: dict[str, bool], trained: set[str]) -> None:
    model = make_model(**shape)
    before = state_of(model)
    train(model, max_epochs=1)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained | {name for name in before if name.startswith("token_block")}


def batches_seen(monkeypatch: pytest.MonkeyPatch, **values: Any) -> list[list[int]]:
    seen: list[list[int]] = []
    step = phase2._Trainer._step

    def watched(trainer: phase2._Trainer, batch: Batch) -> tuple[Tensor, Tensor]:
        # Every context of the stream is another: its row tells the position.
        distances = torch.cdist(batch.contexts[:, -1].double(), trainer.phase1.train_contexts[:, -1].double())
        seen.append(distances.argmin(dim=1).tolist())
        return step(trainer, batch)

    monkeypatch.setattr(phase2._Trainer, "_step", watched)
    train(make_model(), max_epochs=2, effective_batch_size=70, **values)
    return seen


def test_without_shuffling_batches_come_in_stream_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = batches_seen(monkeypatch, shuffle=False)
    assert [len(batch) for batch in seen] == [70, 70, 70, 70, 20] * 2
    assert sum(seen[:5], []) == sum(seen[5:], []) == list(range(NUM_TOKENS - 1))


def test_shuffling_sees_every_target_once_an_epoch_in_another_order_each(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = batches_seen(monkeypatch, shuffle=True)
    first, second = sum(seen[:5], []), sum(seen[5:], [])
    assert sorted(first) == sorted(second) == list(range(NUM_TOKENS - 1))
    assert first != second != sorted(second)


def test_the_same_seed_gives_identical_figures_and_another_one_does_not() -> None:
    first, again, other = train(make_model(), 1), train(make_model(), 1), train(make_model(), 2)
    assert figures(first) == figures(again) != figures(other)
    assert torch.equal(first.validation.nats, again.validation.nats)


def test_a_training_loss_that_is_not_finite_stops_and_is_named() -> None:
    model = make_model()
    phase1 = contexts_of(model)
    phase1.train_contexts[200] = math.nan
    with pytest.raises(NotFiniteError, match="Phase 2, epoch 1: training loss is nan. Training stops here"):
        train_phase2(model, phase1, TRAIN, VALIDATION, phase2_config(), SEED)


def test_a_validation_loss_that_is_not_finite_stops_and_is_named() -> None:
    model = make_model()
    phase1 = contexts_of(model)
    phase1.validation_contexts[50] = math.nan
    with pytest.raises(NotFiniteError, match="Phase 2, epoch 1: validation loss is nan"):
        train_phase2(model, phase1, TRAIN, VALIDATION, phase2_config(), SEED)


def test_the_head_is_chosen_for_the_device() -> None:
    result = train(make_model(), head="auto", max_epochs=1)
    assert result.head_method == phase2.choose_head("auto", torch.device("cpu")) != "auto"


def test_the_record_holds_every_epoch_and_the_best() -> None:
    result = train(make_model())
    assert result.record() == {
        "epochs": figures(result), "best": figures(result)[result.best_epoch - 1], "stopped_early": False,
        "head_method": "blocks", "device_batch_size": 32,
    }  # fmt: skip


def test_two_tokens_are_enough() -> None:
    model = make_model()
    phase1 = finish_phase1(model, TRAIN[:2], VALIDATION[:2], None)
    result = train_phase2(model, phase1, TRAIN[:2], VALIDATION[:2], phase2_config(max_epochs=1), SEED)
    head = Head(model.head_weight, "direct")
    assert evaluate(model, phase1.validation_contexts, VALIDATION[:2], head).nats.shape == (1,)
    assert len(result.validation.nats) == 1


def test_with_rounded_products_the_best_figures_are_exact_all_the_same() -> None:
    model = make_model()
    phase1 = contexts_of(model)
    result = train_phase2(model, phase1, TRAIN, VALIDATION, phase2_config(head="blocks-bf16"), SEED)
    exact = evaluate(model, phase1.validation_contexts, VALIDATION, evaluation_head(model, "blocks-bf16"))
    assert result.best.validation_loss == exact.mean_nats
    rounded = result.epochs[result.best_epoch - 1].validation_loss
    assert rounded != exact.mean_nats and rounded == pytest.approx(exact.mean_nats, abs=0.02)
