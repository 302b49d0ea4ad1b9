"""Which conversations are trained on, which choose, and which are judged on. docs/method.md, section 3."""

import itertools
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data.corpus import Corpus
from newllm_core.data.errors import DataError


@dataclass(frozen=True)
class Samples:
    """Conversations by use; ``train_indices`` are the corpus indices of ``train``, ascending.

    ``selection``: None where choices are made on ``validation``.
    """

    train: list[str]
    train_indices: list[int]
    validation: list[str]
    selection: list[str] | None = None


def conversations_needed(config: DataConfig) -> int:
    """How many conversations, from the first one, hold all that are trained on, that choose, and that are judged on."""
    first, past_last = config.train_range or (0, None)
    stop = first + config.num_samples
    for kept_first, kept_stop in sorted(config.held_out):
        if first < kept_stop and kept_first < stop:
            stop += kept_stop - kept_first
    return max(stop if past_last is None else min(stop, past_last), *(kept_stop for _, kept_stop in config.held_out))


def select_samples(config: DataConfig, available: int) -> list[int]:
    """Corpus indices of the training samples: in order, inside train_range, without the ranges that are held out.

    ``available`` is the number of conversations read: the whole corpus, or at least ``conversations_needed``.
    Raises DataError when the corpus does not reach these ranges, or has fewer training samples than asked for.
    """
    label = config.conversations_file or config.corpus
    if max(stop for _, stop in config.held_out) > available:
        raise _out_of_reach(config, label, available)
    first, past_last = config.train_range or (0, available)
    kept_back = {i for bounds in config.held_out for i in range(*bounds)}
    pool = [i for i in range(first, min(past_last, available)) if i not in kept_back]
    if len(pool) < config.num_samples:
        kept = f"{_named(config)} kept back"
        where = f"in train_range {config.train_range}" if config.train_range else f"of {available}, {kept}"
        raise DataError(f"{label}: {config.num_samples} training samples asked for, {len(pool)} exist ({where})")
    return pool[: config.num_samples]


def _named(config: DataConfig) -> str:
    """The ranges that are held out, as the start of a sentence."""
    names = [f"validation_range {config.validation_range}"]
    if config.selection_range is not None:
        names.insert(0, f"selection_range {config.selection_range}")
    return f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'}"


def _out_of_reach(config: DataConfig, label: str, available: int) -> DataError:
    num_parts = 1 + len(config.held_out)
    if available < num_parts:
        chosen = "" if config.selection_range is None else ", one to choose by (selection_range=None: none)"
        return DataError(
            f"{label}: expected at least {num_parts} conversations, one to train on{chosen} and one to validate on, "
            f"found {available}"
        )
    fits, stop = [], available
    for name in ("validation_range", "selection_range")[: len(config.held_out)]:
        first, past_last = getattr(config, name)
        # At most a fifth, so that the ranges offered leave something to train on.
        width = min(past_last - first, max(1, available // 5))
        fits.append(f"{name}=({stop - width}, {stop})")
        stop -= width
    ranges = {name: getattr(config, name) or (0, 0) for name in ("selection_range", "validation_range")}
    beyond = [f"{name} {bounds}" for name, bounds in ranges.items() if bounds[1] > available]
    given = " and ".join(beyond)
    return DataError(
        f"{label}: {given} {'are' if len(beyond) > 1 else 'is'} beyond the corpus, which has {available} "
        f"conversations; {', '.join(fits)} {'fit' if len(fits) > 1 else 'fits'}"
    )


def load_samples(config: DataConfig, corpus: Corpus) -> Samples:
    """Read the conversations asked for and no more.

    Raises DataError for ranges the corpus does not have, and when a text of one use equals one of another.
    """
    conversations = corpus.first(conversations_needed(config))
    train_indices = select_samples(config, len(conversations))
    uses: dict[str, Sequence[int]] = {"training": train_indices, "validation": range(*config.validation_range)}
    if config.selection_range is not None:
        uses["selection"] = range(*config.selection_range)
    refuse_shared_texts(conversations, uses, corpus.label)
    train, validation, *selection = ([conversations[i] for i in indices] for indices in uses.values())
    return Samples(train, train_indices, validation, *selection)


def refuse_shared_texts(conversations: list[str], uses: Mapping[str, Sequence[int]], label: str) -> None:
    """Raises DataError that names the first two conversations with equal text that are put to different uses.

    Texts are equal that look equal: blanks and line ends do not count, nor how an accented letter is put together.
    """
    seen = {i: _as_seen(conversations[i]) for indices in uses.values() for i in indices}
    for (use, indices), (other_use, others) in itertools.combinations(uses.items(), 2):
        texts = {seen[i]: i for i in reversed(others)}
        shared = [(i, texts[seen[i]]) for i in indices if seen[i] in texts]
        if shared:
            raise DataError(
                f"{label}: {use} conversation {shared[0][0]} and {other_use} conversation {shared[0][1]} have the "
                f"same text ({len(shared)} such in all): a model would be judged on text that it was trained on or "
                "chosen by. Choose other ranges, or remove the duplicates"
            )


def _as_seen(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
