"""Which conversations are trained on, and which are kept for validation. docs/method.md, section 3."""

import unicodedata
from dataclasses import dataclass

from newllm_core.config.hyperparameters import DataConfig
from newllm_core.data.corpus import Corpus
from newllm_core.data.errors import DataError


@dataclass(frozen=True)
class Samples:
    """Conversations by use; ``train_indices`` are the corpus indices of ``train``, ascending."""

    train: list[str]
    train_indices: list[int]
    validation: list[str]


def conversations_needed(config: DataConfig) -> int:
    """How many conversations, from the first one, hold all training and validation samples asked for."""
    first, past_last = config.train_range or (0, None)
    validation_first, validation_stop = config.validation_range
    stop = first + config.num_samples
    if first < validation_stop and validation_first < stop:
        stop += validation_stop - validation_first
    return max(stop if past_last is None else min(stop, past_last), validation_stop)


def select_samples(config: DataConfig, available: int) -> list[int]:
    """Corpus indices of the training samples: in order, inside train_range, without validation_range.

    ``available`` is the number of conversations read: the whole corpus, or at least ``conversations_needed``.
    Raises DataError when the corpus does not reach validation_range, or has fewer training samples than asked for.
    """
    label = config.conversations_file or config.corpus
    validation_first, validation_stop = config.validation_range
    if validation_stop > available:
        raise _validation_out_of_reach(config, label, available)
    first, past_last = config.train_range or (0, available)
    pool = [i for i in range(first, min(past_last, available)) if not validation_first <= i < validation_stop]
    if len(pool) < config.num_samples:
        kept = f"validation_range {config.validation_range} is kept for validation"
        where = f"in train_range {config.train_range}" if config.train_range else f"of {available}, {kept}"
        raise DataError(f"{label}: {config.num_samples} training samples asked for, {len(pool)} exist ({where})")
    return pool[: config.num_samples]


def _validation_out_of_reach(config: DataConfig, label: str, available: int) -> DataError:
    if available < 2:
        return DataError(
            f"{label}: expected at least 2 conversations, one to train on and one to validate on, found {available}"
        )
    first, stop = config.validation_range
    # At most a fifth, so that the range offered leaves something to train on.
    width = min(stop - first, max(1, available // 5))
    return DataError(
        f"{label}: validation_range {config.validation_range} is beyond the corpus, which has {available} "
        f"conversations; validation_range=({available - width}, {available}) fits"
    )


def load_samples(config: DataConfig, corpus: Corpus) -> Samples:
    """Read the conversations asked for and no more.

    Raises DataError for ranges the corpus does not have, and when a training text equals a validation text.
    """
    conversations = corpus.first(conversations_needed(config))
    train_indices = select_samples(config, len(conversations))
    refuse_shared_texts(conversations, train_indices, range(*config.validation_range), corpus.label)
    first, stop = config.validation_range
    return Samples([conversations[i] for i in train_indices], train_indices, conversations[first:stop])


def refuse_shared_texts(
    conversations: list[str], train_indices: list[int], validation_indices: range, label: str
) -> None:
    """Raises DataError that names the first training and validation conversation with equal text.

    Texts are equal that look equal: blanks and line ends do not count, nor how an accented letter is put together.
    """
    seen = {i: _as_seen(conversations[i]) for i in (*train_indices, *validation_indices)}
    validation = {seen[i]: i for i in reversed(validation_indices)}
    shared = [(i, validation[seen[i]]) for i in train_indices if seen[i] in validation]
    if shared:
        train_index, validation_index = shared[0]
        raise DataError(
            f"{label}: training conversation {train_index} and validation conversation {validation_index} have the "
            f"same text ({len(shared)} such in all): a model would be judged on text it was trained on. "
            "Choose another validation_range or train_range, or remove the duplicates"
        )


def _as_seen(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
