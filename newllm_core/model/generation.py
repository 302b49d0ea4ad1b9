"""Text from a model: prompts read and continued side by side, token by token, in memory that does not grow."""

from collections import Counter
from collections.abc import Generator, Iterator, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from newllm_core.config.hyperparameters import GenerationConfig
from newllm_core.model.reading import Predictor, Reader
from newllm_core.model.sampling import choose, penalise_repetition
from newllm_core.model.text_pieces import TextPieces
from newllm_core.runs.reproducibility import derived_generator


def stream_tokens(
    model: Predictor, prompts: Sequence[Tensor], config: GenerationConfig, generators: Sequence[torch.Generator]
) -> Generator[tuple[int, int], int | None, None]:
    """What follows each of ``prompts`` (`[n]` token ids each, n >= 1): pairs of a prompt's number and its next token.

    A number that is sent back ends that text. A text stands alone: what others stand beside it does not matter, up to
    the rounding of products of several rows. Raises ValueError for an empty prompt.
    """
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"generate: expected prompts of at least one token, given none in prompt {number}")
    texts = [_Text(number, prompt, config.num_tokens) for number, prompt in enumerate(prompts) if config.num_tokens]
    reader, draws = Reader(model, len(texts)), [generators[text.number] for text in texts]
    seen = _seen(model, texts) if config.repetition_penalty != 1 else None
    while texts:
        reader.read(torch.tensor([text.next_to_read for text in texts], device=model.device))
        rows = [row for row, text in enumerate(texts) if text.read_next()]
        ended: set[int] = set()
        if rows:
            at = torch.tensor(rows, device=model.device)
            scores = reader.scores(at)
            if seen is not None:
                scores = penalise_repetition(scores, seen[at], config.repetition_penalty)
            chosen = choose(scores, config, [draws[row] for row in rows])
            if seen is not None:
                seen[at, chosen] = True
            for row, token in zip(rows, chosen.tolist()):
                told = yield texts[row].number, token
                if texts[row].write(token) or told is not None:
                    ended.add(row)
        if ended:
            left = [row for row in range(len(texts)) if row not in ended]
            kept = torch.tensor(left, dtype=torch.int64, device=model.device)
            reader.keep(kept)
            seen = None if seen is None else seen[kept]
            texts, draws = [texts[row] for row in left], [draws[row] for row in left]


class _Text:
    """Where one prompt and its continuation have got to."""

    def __init__(self, number: int, prompt: Tensor, num_tokens: int) -> None:
        self.number, self.prompt, self.position, self.left = number, prompt.tolist(), 0, num_tokens
        self.next_to_read: int = self.prompt[0]

    def read_next(self) -> bool:
        """After ``next_to_read`` was read: whether the prompt has ended, so that a token is to be chosen."""
        self.position += 1
        if self.position >= len(self.prompt):
            return True
        self.next_to_read = self.prompt[self.position]
        return False

    def write(self, token: int) -> bool:
        """The chosen token is read next, unless it was the last: then True."""
        self.next_to_read = token
        self.left -= 1
        return self.left == 0


def _seen(model: Predictor, texts: Sequence[_Text]) -> Tensor:
    """Whether each token stands in each prompt, `[B, V]`."""
    seen = torch.zeros(len(texts), model.vocab_size, dtype=torch.bool, device=model.device)
    for row, text in enumerate(texts):
        seen[row, torch.tensor(text.prompt, device=model.device)] = True
    return seen


def stream_text(
    model: Predictor, tokenizer: Tokenizer, prompts: Sequence[str], config: GenerationConfig, stop: Sequence[str] = ()
) -> Iterator[tuple[int, str]]:
    """What follows each prompt as it is written: pairs of a prompt's number and a piece of text, never an empty one.

    Args:
        stop: a text ends before the first of these.

    Raises ValueError for a prompt without a token.
    """
    pieces = [TextPieces(tokenizer, stop) for _ in prompts]
    ids = [torch.tensor(tokenizer.encode(one, add_special_tokens=False).ids, dtype=torch.int64) for one in prompts]
    tokens = stream_tokens(model, ids, config, _generators(prompts, config.seed))
    step = next(tokens, None)
    while step is not None:
        number, token = step
        if piece := pieces[number].add(token):
            yield number, piece
        try:
            step = tokens.send(number if pieces[number].stopped else None)
        except StopIteration:
            step = None
    for number, piece in enumerate(one.rest() for one in pieces if not one.stopped):
        if piece:
            yield number, piece


def generate(
    model: Predictor, tokenizer: Tokenizer, prompts: Sequence[str], config: GenerationConfig, stop: Sequence[str] = ()
) -> list[str]:
    """The whole text after each prompt, without the prompt; see ``stream_text``."""
    texts = [""] * len(prompts)
    for number, piece in stream_text(model, tokenizer, prompts, config, stop):
        texts[number] += piece
    return texts


def _generators(prompts: Sequence[str], seed: int) -> list[torch.Generator]:
    """One for each prompt, whatever stands beside it; a prompt that is given again has another one."""
    before: Counter[str] = Counter()
    generators = []
    for prompt in prompts:
        again = (before[prompt],) if before[prompt] else ()
        generators.append(derived_generator("generate", seed, prompt, *again))
        before[prompt] += 1
    return generators
