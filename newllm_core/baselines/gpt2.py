"""GPT-2 itself, read over the same tokens: a ceiling, since it was trained on about 100,000 times as much text."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from newllm_core.data.embeddings import GPT2_REPOSITORY
from newllm_core.data.errors import DataError
from newllm_core.data.vocabulary import VOCAB_SIZE
from newllm_core.runs.progress import progress_bar


@torch.no_grad()
def gpt2_nats(tokens: Tensor, source: str = GPT2_REPOSITORY[0]) -> Tensor:
    """Nats of the targets ``tokens[1:]``, `[N]` -> `[N - 1]`, N >= 2, on the device of ``tokens``.

    Windows of the model's whole length (1,024 tokens) overlap by half: a target is predicted from at least half a
    window, or from all that stands before it.

    Args:
        source: name on the Hugging Face Hub, or a folder in the same form.

    Raises DataError when the model cannot be reached.
    """
    from transformers import GPT2LMHeadModel  # imported here: it is slow, and only this baseline needs it

    try:
        model = GPT2LMHeadModel.from_pretrained(source, use_safetensors=True)
    except OSError as error:
        raise DataError(f"{source} cannot be reached ({error}). The baseline gpt2 needs a network") from error
    model.eval().to(tokens.device)
    half = model.config.n_positions // 2
    nats = []
    for first in progress_bar(range(0, len(tokens) - 1, half), desc="GPT-2", unit="window"):
        targets = tokens[first + 1 : first + 1 + half]
        read = tokens[max(0, first - half) : first + len(targets)]
        logits = model(read[None]).logits[0, -len(targets) :]
        nats.append(functional.cross_entropy(logits.float(), targets, reduction="none").double())
    return torch.cat(nats)


def gpt2_baseline(train: Tensor, validation: Tensor, vocab_size: int) -> tuple[Tensor, dict[str, Any]]:
    """Of ``validation`` `[M]` -> `[M - 1]`, on the CPU; it was trained already. Raises DataError as ``gpt2_nats``."""
    if vocab_size != VOCAB_SIZE:
        raise DataError(
            f"the baseline gpt2 reads its own {VOCAB_SIZE} token ids, given {vocab_size} of other embeddings"
        )
    return gpt2_nats(validation).cpu(), {}
