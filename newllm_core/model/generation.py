"""Text from a model: sampled token by token, from the zero context."""

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from newllm_core.model.llm import NewLLM
from newllm_core.model.stream import StreamEmbeddings


@torch.no_grad()
def generate(
    model: NewLLM, prompt: Tensor, num_tokens: int, temperature: float, top_k: int, generator: torch.Generator
) -> Tensor:
    """Continue ``prompt`` `[n]`, n >= 1, from the zero context by ``num_tokens`` tokens -> `[n + num_tokens]`.

    Sampling is from the ``top_k`` most probable tokens at ``temperature`` > 0. Raises ValueError for an empty prompt,
    and for a temperature or ``top_k`` out of range.
    """
    vocab_size = len(model.embedding)
    if not len(prompt) or not temperature > 0 or not 1 <= top_k <= vocab_size:
        raise ValueError(
            "generate: expected a prompt of at least one token, temperature > 0 and "
            f"top_k in 1 … {vocab_size}, given {len(prompt)} tokens, {temperature} and {top_k}"
        )
    tokens = prompt.tolist()
    history = model.config.num_input_tokens
    context = torch.zeros(1, model.config.context_dim, device=prompt.device)
    for position in range(len(tokens) + num_tokens - 1):
        known = prompt.new_tensor(tokens[: position + 1][-history:])
        window = StreamEmbeddings(model, known)[len(known) - 1 : len(known)]
        contexts = model.context_block.forward_with_intermediates(context, window)
        context = contexts[-1]
        if position + 1 < len(prompt):
            continue
        hidden = model.hidden(torch.stack(contexts, dim=1), known[-1:])
        best, ids = model.logits(hidden)[0].topk(top_k)
        probabilities = functional.softmax(best / temperature, dim=0).cpu()
        tokens.append(int(ids[torch.multinomial(probabilities, 1, generator=generator).to(ids.device)]))
    return prompt.new_tensor(tokens)


def generate_text(
    model: NewLLM, tokenizer: Tokenizer, prompt: str, *, num_tokens: int = 40, temperature: float = 0.8,
    top_k: int = 40, generator: torch.Generator,
) -> str:  # fmt: skip
    """What the model writes after ``prompt``, without it; see ``generate``."""
    ids = torch.tensor(tokenizer.encode(prompt).ids, dtype=torch.int64, device=model.embedding.device)
    tokens = generate(model, ids, num_tokens, temperature, top_k, generator)
    text: str = tokenizer.decode(tokens[len(ids) :].tolist())
    return text
