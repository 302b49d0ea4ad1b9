"""Every hyperparameter of the project, once, as frozen dataclasses.

A field's metadata says which values it takes; ``_validate`` enforces that when a config is built, so an
impossible value is an error where it is written, not an hour into a run. Unknown names are errors too:
``from_mapping`` and ``settings_from_parameters`` say which name was given and which one is nearest to it.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what was expected and what was given."""


def _number(default: Any, low: float | None = None, high: float | None = None, above: float | None = None) -> Any:
    """A numeric field: ``low <= value <= high``; with ``above``, ``value > above``."""
    return field(default=default, metadata={"low": low, "high": high, "above": above})


def _choice(default: str, *others: str) -> Any:
    return field(default=default, metadata={"choices": (default, *others)})


def _type_matches(value: Any, expected: Any) -> bool:
    if isinstance(expected, types.UnionType):
        return any(_type_matches(value, option) for option in typing.get_args(expected))
    if typing.get_origin(expected) is tuple:
        members = typing.get_args(expected)
        return isinstance(value, tuple) and len(value) == len(members) and all(map(_type_matches, value, members))
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if expected is None or expected is types.NoneType:
        return value is None
    return isinstance(value, expected)


def _check_range(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    choices, low, high, above = (limits.get(key) for key in ("choices", "low", "high", "above"))
    if choices is not None and value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(map(repr, choices))}, given {value!r}")
    if value is None or isinstance(value, str):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}: expected a finite number, given {value!r}")
    if low is not None and value < low:
        raise ConfigError(f"{name}: expected at least {low}, given {value!r}")
    if high is not None and value > high:
        raise ConfigError(f"{name}: expected at most {high}, given {value!r}")
    if above is not None and value <= above:
        raise ConfigError(f"{name}: expected more than {above}, given {value!r}")


def _validate(config: Any) -> None:
    """Check each field's type and range. Raises ConfigError."""
    hints = typing.get_type_hints(type(config))
    for spec in dataclasses.fields(config):
        name, value = f"{type(config).__name__}.{spec.name}", getattr(config, spec.name)
        if not _type_matches(value, hints[spec.name]):
            hint = hints[spec.name]
            expected = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
            raise ConfigError(f"{name}: expected {expected}, given {value!r} ({type(value).__name__})")
        _check_range(name, value, spec.metadata)
        if hints[spec.name] is float:
            # 1 and 1.0 are the same configuration and must be written, and hashed, alike.
            object.__setattr__(config, spec.name, float(value))


@dataclass(frozen=True)
class DataConfig:
    """Which text, which conversations of it, and which frozen token embeddings."""

    corpus: str = _choice("chitchat", "ultrachat", "file")
    conversations_file: str | None = None  # .jsonl or .parquet in UltraChat's `messages` schema; corpus "file" only
    num_samples: int = _number(80, low=1)  # training conversations, in corpus order
    train_range: tuple[int, int] | None = None  # (first, past the last) to take them from; None: all but validation
    validation_range: tuple[int, int] = (1000, 1020)  # notes: samples 1000–1019
    embeddings: str = _choice("whisper-tiny.en", "gpt2", "ppmi-svd", "random")

    def __post_init__(self) -> None:
        if "auto_split" in (self.validation_range, self.train_range, self.corpus):
            raise ConfigError(
                "auto_split is refused: validation text cut from the training data leaks. "
                f"Expected validation_range=(first, past the last), e.g. {DataConfig.validation_range}."
            )
        _validate(self)
        for name in ("train_range", "validation_range"):
            bounds = getattr(self, name)
            if bounds is not None and not 0 <= bounds[0] < bounds[1]:
                raise ConfigError(f"DataConfig.{name}: expected 0 <= first < past the last, given {bounds}")
        if (self.corpus == "file") != (self.conversations_file is not None):
            raise ConfigError(
                "DataConfig: corpus='file' and conversations_file go together, "
                f"given corpus={self.corpus!r} and conversations_file={self.conversations_file!r}"
            )
        self._refuse_overlap()

    def _refuse_overlap(self) -> None:
        if self.train_range is None:
            return
        first, last = (pick(pair) for pick, pair in zip((max, min), zip(self.train_range, self.validation_range)))
        if first < last:
            raise ConfigError(
                f"training samples {self.train_range[0]}–{self.train_range[1] - 1} and validation samples "
                f"{self.validation_range[0]}–{self.validation_range[1] - 1} overlap in {first}–{last - 1}: "
                "a model would be judged on text it was trained on"
            )


@dataclass(frozen=True)
class ModelConfig:
    """Widths, depth and what is trained. Spec section 2."""

    context_dim: int = _number(500, low=1)  # C
    embed_dim: int = _number(384, low=2)  # E: 384 for Whisper tiny.en, 768 for GPT-2
    num_layers: int = _number(1, low=1)  # L, of both blocks
    num_input_tokens: int = _number(1, low=1)  # T: the last T embeddings enter the ContextBlock
    tie_weights: bool = True  # head = embedding matrix
    freeze_embedding: bool = True
    weight_std: float = _number(0.1, above=0)  # notes: every Linear ~ N(0, 0.1²)
    bias_std: float = _number(0.01, low=0)
    # Initial Lyapunov exponent, nats a token, that the recurrent weights are scaled to; None: as drawn.
    initial_exponent: float | None = _number(None, above=-1, high=0)
    token_input: str = _choice("every-layer", "first-layer")  # where the token enters the ContextBlock
    time_scales: bool = False  # a learned gain of each component of the context that is carried on
    context_routing: str = _choice("per-layer", "final")  # what a token layer reads: plan E, plan A
    # What Phase 2 trains: a TokenBlock, a linear map of the last context, or their sum.
    readout: str = _choice("token-block", "linear", "sum")
    token_gate: bool = False  # a sigmoid gate on what a token layer adds
    adapter_rank: int = _number(0, low=0)  # of a low-rank adapter between TokenBlock and head; 0: none
    logit_scale: float | None = _number(None, above=0)  # where a learned scale of the logits starts; None: none

    def __post_init__(self) -> None:
        _validate(self)

    def phase1_part(self) -> "ModelConfig":
        """What only Phase 2 reads at its defaults: equal parts, equal ContextBlocks."""
        unread: dict[str, Any] = {
            spec.name: spec.default for spec in dataclasses.fields(self) if spec.name in _READ_IN_PHASE2_ALONE
        }
        return dataclasses.replace(self, **unread)


# Where two learned parameters start. No fields, since nobody varies them: no record is named by them, so after a change
# every kept run with "sum" or time_scales is to be deleted.
INITIAL_TOKEN_SHARE = 0.1  # of the TokenBlock in the readout "sum"
INITIAL_GAINS = (0.5, 1.5)  # of the context's first and last component with time_scales

_READ_IN_PHASE2_ALONE = (
    "tie_weights", "freeze_embedding", "context_routing", "readout", "token_gate", "adapter_rank", "logit_scale",
)  # fmt: skip


@dataclass(frozen=True)
class Phase1Config:
    """Training of the ContextBlock without labels. Spec section 4."""

    objective: str = _choice("cvfp", "contrastive", "regression")  # fixed point, or prediction: predictive.py
    diversity_algorithm: str = "MCDL"  # a name in losses.DIVERSITY_ALGORITHMS
    dist_reg_weight: float = _number(0.9, low=0, high=1)  # w: (1 - w) · objective + w · diversity
    context_source: str = _choice("exact", "previous_iteration")
    context_noise: float = _number(0.1, low=0)  # std added to the input contexts while training
    learning_rate: float = _number(0.002, above=0)
    gradient_clip: float = _number(2.0, above=0)
    batch_tokens: int = _number(5000, low=2)  # tokens a loss is computed over
    min_last_batch: int = _number(1000, low=2)  # a shorter last batch joins the one before
    min_iterations: int = _number(5, low=1)
    max_iterations: int = _number(60, low=0)  # 0: an untrained block
    check_interval: int = _number(5, low=1)  # iterations between validation checks
    patience: int = _number(1, low=1)  # checks without a better validation effective rank
    effective_rank_tokens: int = _number(10_000, low=2)
    convergence_threshold: float = _number(0.03, above=0)  # mean squared change of a context
    validation_passes: int = _number(10, low=2)  # repeated passes of the convergence check
    # Of the objectives that predict; an iteration of theirs takes a step per segment.
    prediction_streams: int = _number(16, low=1)  # pieces of the text that are read side by side
    prediction_segment: int = _number(48, low=1)  # tokens between two steps, and how far gradients reach back
    prediction_negatives: int = _number(2048, low=0)  # contrastive: beside the other targets of the segment
    prediction_dropout: float = _number(0.3, low=0, high=0.99)  # of token embeddings, and of contexts before the map
    prediction_weight_decay: float = _number(0.01, low=0)

    def __post_init__(self) -> None:
        _validate(self)
        if 0 < self.max_iterations < self.min_iterations:
            raise ConfigError(
                f"Phase1Config: expected max_iterations 0 or at least min_iterations={self.min_iterations}, "
                f"given {self.max_iterations}"
            )
        if self.min_last_batch > self.batch_tokens:
            raise ConfigError(
                f"Phase1Config: expected min_last_batch <= batch_tokens={self.batch_tokens}, "
                f"given {self.min_last_batch}"
            )


@dataclass(frozen=True)
class Phase2Config:
    """Training of the TokenBlock on frozen contexts. Spec section 5."""

    learning_rate: float = _number(0.001, above=0)
    gradient_clip: float = _number(1.0, above=0)
    max_epochs: int = _number(20, low=1)
    patience: int = _number(1, low=1)  # epochs without a better validation loss
    effective_batch_size: int = _number(512, low=1)  # tokens an optimizer step averages over: the experiment's
    device_batch_size: int | None = _number(None, low=1)  # tokens computed at once; None: what fits the device
    shuffle: bool = True  # notes: False, batches in stream order
    head: str = _choice("auto", "direct", "blocks", "blocks-bf16")  # auto: head.py's constant for this device
    dropout: float = _number(0.0, low=0, high=0.99)  # of contexts, token embeddings, and hidden states
    weight_decay: float = _number(0.0, low=0)  # decoupled, as in AdamW
    unigram_bias: bool = False  # of the output, fixed: log probabilities of the smoothed unigram
    schedule: str = _choice("constant", "cosine")  # of the learning rate, over max_epochs
    # Training's softmax over all seen tokens and so many unseen ones, weighted; None: over the whole vocabulary.
    unseen_sample: int | None = _number(None, low=1)
    cache_weight: float = _number(0.0, low=0, high=0.99)  # of the continuous cache in every evaluation; 0: none
    cache_scale: float = _number(10.0, above=0)  # of its similarities, cosines
    cache_tokens: int = _number(2000, low=1)  # how far back it looks

    def __post_init__(self) -> None:
        _validate(self)


@dataclass(frozen=True)
class ScalingConfig:
    """Sample sizes and sliding windows of the α progression. Spec section 6."""

    init_samples: int = _number(50, low=1)
    multiplier: float = _number(2.0, above=1)
    window_size: int = _number(4, low=2)
    num_windows: int = _number(2, low=1)
    num_resamples: int = _number(4000, low=100)  # bootstrap draws behind every interval

    def __post_init__(self) -> None:
        _validate(self)


@dataclass(frozen=True)
class RunConfig:
    """What a run needs beside the experiment itself: its figures depend on all three."""

    seed: int = _number(42, low=0, high=2**32 - 1)  # what NumPy accepts
    num_threads: int = _number(2, low=1)  # sums of floats depend on it
    device: str = _choice("auto", "cpu", "cuda")

    def __post_init__(self) -> None:
        _validate(self)


@dataclass(frozen=True)
class Settings:
    """One complete set of configs, as a notebook's parameters give it."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    phase1: Phase1Config = Phase1Config()
    phase2: Phase2Config = Phase2Config()
    scaling: ScalingConfig = ScalingConfig()
    run: RunConfig = RunConfig()


def unknown_name_message(kind: str, name: str, known: typing.Iterable[str]) -> str:
    """What to say of a name that is not known: the nearest known one, and all of them."""
    known = sorted(known)
    # A name that sections share is known with its section in front only.
    nearest = [full for full in known if full.endswith(f"_{name}")] or difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    return f"unknown {kind} {name!r}.{hint} Expected one of: {', '.join(known)}"


def from_mapping(config_type: type[Config], values: Mapping[str, Any]) -> Config:
    """Build a config from a mapping such as parsed YAML or JSON; lists become tuples.

    Raises ConfigError for an unknown key or an impossible value.
    """
    known = {spec.name for spec in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ConfigError(unknown_name_message(f"key of {config_type.__name__}", name, known))
    return config_type(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


AnySettings = typing.TypeVar("AnySettings", bound=typing.Any)  # Settings, or another dataclass of such sections


def parameter_fields(settings_type: type = Settings) -> dict[str, tuple[str, str]]:
    """Notebook parameter -> (section, field). A field name that two sections share is prefixed by its section."""
    pairs = [
        (section.name, spec.name)
        for section in dataclasses.fields(settings_type)
        for spec in dataclasses.fields(section.type)  # type: ignore[arg-type]
    ]
    names = [name for _, name in pairs]
    return {(name if names.count(name) == 1 else f"{section}_{name}"): (section, name) for section, name in pairs}


def settings_of_type(
    settings_type: type[AnySettings], parameters: Mapping[str, Any], extra: typing.Iterable[str] = ()
) -> AnySettings:
    """Settings from a notebook's flat parameters (see ``parameter_fields`` for the names).

    ``parameters`` may be the notebook's ``globals()``: of these only plain values (numbers, strings, lists, None)
    without a leading underscore are parameters. One that is neither a field nor listed in ``extra`` is an error, so
    that a misspelled papermill parameter cannot run on with a default.
    """
    known = parameter_fields(settings_type)
    kinds = {section.name: section.type for section in dataclasses.fields(settings_type)}
    sections: dict[str, dict[str, Any]] = {name: {} for name in kinds}
    for name, value in parameters.items():
        plain = value is None or isinstance(value, str | int | float | list | tuple)
        # In is IPython's list of inputs.
        ignored = not plain or name.startswith("_") or name == "In" or name in extra
        if ignored and name not in known:
            continue
        if name not in known:
            raise ConfigError(unknown_name_message("parameter", name, [*known, *extra]))
        section, key = known[name]
        sections[section][key] = value
    return settings_type(**{name: from_mapping(kind, sections[name]) for name, kind in kinds.items()})  # type: ignore[arg-type]


def settings_from_parameters(parameters: Mapping[str, Any], extra: typing.Iterable[str] = ()) -> Settings:
    """Those of the language model; see ``settings_of_type``."""
    return settings_of_type(Settings, parameters, extra)


def config_hash(*configs: Any) -> str:
    """Eight hexadecimal digits that change with any field of any of the configs."""
    text = json.dumps([dataclasses.asdict(config) for config in configs], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
