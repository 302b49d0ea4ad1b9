"""What a run will cost, measured on a small piece of it before it starts.

Phase 1 is timed as the fixed-point objective; one that predicts takes a step a segment, and can take longer.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from newllm_core.config.hyperparameters import Settings
from newllm_core.experiment.prepare import Prepared
from newllm_core.gpu_memory import FLOAT_BYTES, GIB, context_cache_gb
from newllm_core.head.cross_entropy import Head, choose_head
from newllm_core.training.fixed_point import batch_slices

# A Phase 1 batch costs its forward and backward pass, noise, losses and effective rank: about five forward passes.
_PHASE1_FORWARDS = 5
_TIMED_TOKENS = 256


def duration_text(seconds: float) -> str:
    """In the unit a reader would choose: "40 s", "12.3 minutes", "2.3 hours"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"


@dataclass(frozen=True)
class RunEstimate:
    """Seconds on this machine as it is now, and GiB at the peak."""

    seconds_per_iteration: float
    max_iterations: int
    seconds_per_epoch: float
    max_epochs: int
    memory_gb: float

    @property
    def phase1_seconds(self) -> float:
        """Of Phase 1, if it does not stop early."""
        return self.seconds_per_iteration * self.max_iterations

    @property
    def longest_seconds(self) -> float:
        """If neither phase stops early."""
        return self.phase1_seconds + self.seconds_per_epoch * self.max_epochs

    def phase1_text(self) -> str:
        return (
            f"Phase 1 about {self.seconds_per_iteration:.1f} s an iteration (at most {self.max_iterations}): "
            f"at most about {duration_text(self.phase1_seconds)}"
        )

    def __str__(self) -> str:
        return (
            f"{self.phase1_text()}; Phase 2 about {self.seconds_per_epoch:.1f} s an epoch (at most {self.max_epochs}); "
            f"both at most about {duration_text(self.longest_seconds)}, {self.memory_gb:.1f} GiB"
        )


def estimate(prepared: Prepared, settings: Settings) -> RunEstimate:
    """Time a few hundred tokens of each phase (about a second), scale to the run's tokens. Trains nothing."""
    num_train, num_chosen = len(prepared.train_tokens), len(prepared.selection_tokens)
    num_timed = min(_TIMED_TOKENS, num_train - 1, num_chosen - 1)
    model, tokens = copy.deepcopy(prepared.model), prepared.train_tokens[: num_timed + 1]
    method = choose_head(settings.phase2.head, tokens.device)
    head = Head(model.head_weight, method)
    contexts = torch.zeros(num_timed, model.config.num_layers, model.config.context_dim, device=tokens.device)
    hidden = model.hidden(contexts, tokens[:-1]).detach()

    def context_step() -> None:
        with torch.no_grad():
            model.context_block(contexts[:, -1], model.embed(tokens[:-1]).repeat(1, model.config.num_input_tokens))

    def training_step() -> None:
        loss = head.loss(hidden.clone().requires_grad_(), tokens[1:]).mean_nats
        loss.backward()  # type: ignore[no-untyped-call]

    per_token = {
        name: _seconds(call) / num_timed
        for name, call in (
            ("context", context_step),
            ("train", training_step),
            ("evaluate", lambda: head.token_figures(hidden, tokens[1:])),
        )
    }
    layers, width = model.config.num_layers, model.config.context_dim
    batch = max(rows.stop - rows.start for rows in batch_slices(num_train, settings.phase1.batch_tokens, 1))
    fixed = sum(parameter.numel() for parameter in model.parameters()) * FLOAT_BYTES * 2
    num_kept = num_train + len(prepared.validation_tokens)
    if prepared.selection_tokens is not prepared.validation_tokens:
        num_kept += num_chosen
    working = 12 * batch * width * layers * FLOAT_BYTES
    return RunEstimate(
        seconds_per_iteration=_PHASE1_FORWARDS * per_token["context"] * num_train,
        max_iterations=settings.phase1.max_iterations,
        seconds_per_epoch=per_token["train"] * num_train + per_token["evaluate"] * num_chosen,
        max_epochs=settings.phase2.max_epochs,
        memory_gb=context_cache_gb(num_kept, layers, width) + (fixed + working) / GIB,
    )


def _seconds(call: Callable[[], object]) -> float:
    call()  # the first call pays for memory and kernels
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
