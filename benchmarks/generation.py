"""Text of growing length: speed and peak memory, the project against a GPT of its size with a key-value cache.

    python -m benchmarks.generation                    1,000 and 100,000 tokens; of the GPT 1,000 and 10,000
    python -m benchmarks.generation --pairs            only: late pieces of 100,000 tokens against texts of 1,000
    python -m benchmarks.generation --vocabulary 8192  a smaller head, which is most of the work of both

Both stand between the same frozen matrix and head, and have about a million weights of their own; these are as drawn,
which changes no product. Each figure is of a process of its own. Texts are sampled with the defaults of
GenerationConfig. Tokens are also counted by second of processor time, which other work on the machine changes less.

Two texts of 1,000 and 100,000 tokens take seconds and minutes, in which a machine may be another; so whether length
costs speed is asked by pairs: in one process a piece of the long text and a short text by turns, whose ratio is noted.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.machine import forget_peak, in_fresh_process, machine_facts, peak_mb
from newllm_core.baselines.config import BaselineConfig
from newllm_core.baselines.networks import GptNetwork
from newllm_core.baselines.registry import baseline_config
from newllm_core.config.hyperparameters import GenerationConfig, ModelConfig
from newllm_core.data.vocabulary import VOCAB_SIZE
from newllm_core.model import NewLLM
from newllm_core.model.generation import stream_tokens
from newllm_core.model.sampling import choose
from newllm_core.runs.files import json_text
from newllm_core.runs.reproducibility import derived_generator

_PROMPT = 10  # tokens
_WARM_UP = 200  # tokens, before anything is measured
_PAIRS, _PIECE = 20, 1_000  # tokens of each piece
MODEL = ModelConfig(context_dim=610)  # 0.99 million weights, as the GPT


class CachedGpt:
    """`networks.GptNetwork` token by token, keys and values kept.

    Args:
        network: whose `segment_tokens` is the longest text.
    """

    def __init__(self, network: GptNetwork) -> None:
        self.network = network.eval()
        longest, width = network.positions.shape
        self.keys, self.values = torch.zeros(2, len(network.blocks), longest, width).unbind()
        self.length = 0

    @torch.no_grad()
    def read(self, embed: Tensor) -> Tensor:
        """The next token's embedding `[1, E]` -> what the head reads, `[1, E]`."""
        network, place = self.network, self.length
        stream = network.from_embeds(embed) + network.positions[place]
        self.length += 1
        for number, block in enumerate(network.blocks):
            assert isinstance(block, nn.TransformerEncoderLayer)
            stream = stream + self._attended(number, block.self_attn, block.norm1(stream), place)
            stream = stream + block.linear2(functional.gelu(block.linear1(block.norm2(stream))))
        hidden: Tensor = network.to_head(network.last_norm(stream))
        return hidden

    def _attended(self, number: int, attention: nn.MultiheadAttention, stream: Tensor, place: int) -> Tensor:
        query, key, value = functional.linear(stream, attention.in_proj_weight).chunk(3, dim=1)
        self.keys[number, place], self.values[number, place] = key[0], value[0]

        def heads(rows: Tensor) -> Tensor:
            return rows.view(1, len(rows), attention.num_heads, -1).transpose(1, 2)

        seen = slice(place + 1)
        mixed = functional.scaled_dot_product_attention(
            heads(query), heads(self.keys[number, seen]), heads(self.values[number, seen])
        )
        projected: Tensor = attention.out_proj(mixed.transpose(1, 2).reshape(1, -1))
        return projected


def project(num_tokens: int, vocab_size: int) -> dict[str, Any]:
    model = NewLLM(MODEL, _matrix(vocab_size))
    counts = model.parameter_counts()
    weights = counts["context_block"] + counts["token_block"]
    return _measured(lambda count: _written(model, count), num_tokens, weights)


def _written(model: NewLLM, count: int) -> Iterator[int]:
    prompt, config = torch.arange(_PROMPT), GenerationConfig(num_tokens=count)
    for _, token in stream_tokens(model, [prompt], config, [derived_generator("generation benchmark")]):
        yield token


def pairs(num_tokens: int, vocab_size: int) -> dict[str, Any]:
    """Seconds of a piece of the long text over those of a short text, by turns; medians, lowest and highest."""
    model = NewLLM(MODEL, _matrix(vocab_size))
    long, skipped = _written(model, num_tokens), num_tokens // _PAIRS - _PIECE
    ratios: dict[str, list[float]] = {"seconds": [], "processor_seconds": []}
    for number in range(_PAIRS):
        _took(long, skipped)
        short = _written(model, _PIECE)
        next(short)  # its prompt is read
        texts = long, short
        # Which of the two goes first changes from pair to pair.
        order = (0, 1) if number % 2 else (1, 0)
        took = {place: _took(texts[place], _PIECE - 1) for place in order}
        for name, one, other in zip(ratios, took[0], took[1]):
            ratios[name].append(one / other)
    found = {name: [statistics.median(values), min(values), max(values)] for name, values in ratios.items()}
    return {"tokens": num_tokens, "pairs": _PAIRS, "piece": _PIECE, "long_over_short_median_low_high": found}


def _took(tokens: Iterator[int], count: int) -> tuple[float, float]:
    """Seconds and processor seconds of the next ``count`` tokens."""
    began, processor = time.perf_counter(), time.process_time()
    if sum(1 for _ in islice(tokens, count)) < count:
        raise ValueError(f"expected {count} more tokens, the text has ended")
    return time.perf_counter() - began, time.process_time() - processor


def gpt(num_tokens: int, vocab_size: int) -> dict[str, Any]:
    matrix, config = _matrix(vocab_size), GenerationConfig()
    shape: BaselineConfig = baseline_config("gpt", segment_tokens=_PROMPT + num_tokens)
    network = GptNetwork(shape)

    def tokens(count: int) -> Iterator[int]:
        reader, generator = CachedGpt(network), derived_generator("generation benchmark")
        token = torch.tensor([0])
        for position in range(_PROMPT + count - 1):
            hidden = reader.read(functional.layer_norm(matrix[token], (matrix.shape[1],)))
            if position < _PROMPT - 1:
                token = torch.tensor([position + 1])
                continue
            token = choose(hidden @ matrix.T, config, [generator])
            yield int(token)

    weights = sum(one.numel() for one in network.parameters()) - network.positions.numel()
    return _measured(tokens, num_tokens, weights)


def _matrix(vocab_size: int) -> Tensor:
    return 0.144 * torch.randn(vocab_size, MODEL.embed_dim, generator=derived_generator("generation embeddings"))


def _measured(tokens: Any, num_tokens: int, weights: int) -> dict[str, Any]:
    """``tokens(count)`` writes so many. The rate is also that of the last tenth, since a cache grows."""
    for _ in tokens(min(_WARM_UP, num_tokens)):
        pass
    forget_peak()
    last_tenth, times, processor = num_tokens - num_tokens // 10, [time.perf_counter()], time.process_time()
    for count, _ in enumerate(tokens(num_tokens), start=1):
        if count in (last_tenth, num_tokens):
            times.append(time.perf_counter())
    processor = time.process_time() - processor
    began, late, ended = times
    return {
        "tokens": num_tokens, "own_weights": weights, "peak_mb": peak_mb(),
        "tokens_per_second": num_tokens / (ended - began),
        "tokens_per_processor_second": num_tokens / processor,
        "tokens_per_second_in_the_last_tenth": (num_tokens - last_tenth) / (ended - late),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="*", default=[1_000, 100_000])
    parser.add_argument("--gpt-tokens", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--vocabulary", type=int, default=VOCAB_SIZE)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--pairs", action="store_true", help="ratios of the longest text to short ones, by turns, alone"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(machine_facts()))
    found = in_fresh_process(pairs, 42, given.threads, max(given.tokens), given.vocabulary)
    print(json_text({"way": "pairs", **found}), flush=True)
    for way, counts in () if given.pairs else ((project, given.tokens), (gpt, given.gpt_tokens)):
        for count in counts:
            found = in_fresh_process(way, 42, given.threads, count, given.vocabulary)
            print(json_text({"way": way.__name__, **found}), flush=True)


if __name__ == "__main__":
    main()
