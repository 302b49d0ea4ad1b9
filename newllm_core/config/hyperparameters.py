"""Every hyperparameter of the project, once, as frozen dataclasses.

A field's metadata says which values it takes; ``validate`` enforces that when a config is built, so an
impossible value is an error where it is written, not an hour into a run. Unknown names are errors too:
``from_mapping`` and ``Settings.from_parameters`` say which name was given and which one is nearest to it.
"""

import itertools
from dataclasses import dataclass, field

from newllm_core.config.notebook import NotebookSettings
from newllm_core.config.schema import (
    LARGEST_EPOCHS,
    LARGEST_ORDER,
    LARGEST_RATE,
    ConfigError,
    at_defaults,
    choice,
    later,
    location,
    number,
    resource,
    validate,
)

RANGES = {"train_range": "training", "selection_range": "selection", "validation_range": "validation"}
_OVERLAP = {
    ("train_range", "validation_range"): "a model would be judged on text it was trained on",
    ("train_range", "selection_range"): "a model would be chosen by text it was trained on",
    ("selection_range", "validation_range"): "a model would be judged on text it was chosen by; "
    "selection_range=None chooses on the judged text, and says so",
}


@dataclass(frozen=True)
class DataConfig:
    """Which text, which conversations of it, and which frozen token embeddings."""

    corpus: str = choice("chitchat", "ultrachat", "file", "brown")
    # Of corpus "file", .jsonl or .parquet (data/conversations.py); of "brown" a folder or zip, if NLTK has none.
    conversations_file: str | None = location()
    # What to do in it with a message that has no text (null beside a tool call), or a conversation without messages.
    missing_text: str = later(choice("refuse", "skip-message", "skip-conversation"))
    num_samples: int = number(80, low=1)  # training conversations, in corpus order
    train_range: tuple[int, int] | None = None  # (first, past the last) to take them from; None: all but validation
    validation_range: tuple[int, int] = (1000, 1020)  # notes: samples 1000–1019; judged once, at the end
    # The text that chooses: iterations, epochs, hyperparameters. None, the notes' way: they are chosen on the text that
    # is judged, which flatters every figure.
    selection_range: tuple[int, int] | None = later(field(default=(980, 1000)), before=None)
    # The embeddings' own tokenizer, GPT-2's unless they are of the Hub; or a vocabulary of the words that the training
    # text, or the whole corpus, has more than three times: data/word_vocabulary.py.
    tokenizer: str = later(choice("gpt2", "words", "words-of-corpus"))
    # The last: of any causal model on the Hub, with its tokenizer.
    embeddings: str = choice(
        "whisper-tiny.en", "gpt2", "ppmi-svd", "random",
        pattern=r"hub:[\w.-]+/[\w.-]+(@[\w./-]+)?", example="hub:owner/name@revision",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if "auto_split" in (self.validation_range, self.selection_range, self.train_range, self.corpus):
            raise ConfigError(
                "auto_split is refused: validation text cut from the training data leaks. "
                f"Expected validation_range=(first, past the last), e.g. {DataConfig.validation_range}."
            )
        validate(self)
        for name in RANGES:
            bounds = getattr(self, name)
            if bounds is not None and not 0 <= bounds[0] < bounds[1]:
                raise ConfigError(f"DataConfig.{name}: expected 0 <= first < past the last, given {bounds}")
        if self.corpus != "brown" and (self.corpus == "file") != (self.conversations_file is not None):
            raise ConfigError(
                "DataConfig: corpus='file' and conversations_file go together, "
                f"given corpus={self.corpus!r} and conversations_file={self.conversations_file!r}"
            )
        if self.corpus != "file" and self.missing_text != "refuse":
            raise ConfigError(f"DataConfig.missing_text: only for corpus='file', given corpus={self.corpus!r}")
        if self.tokenizer != "gpt2" and self.embeddings not in ("ppmi-svd", "random"):
            raise ConfigError(
                f"DataConfig.tokenizer: expected 'gpt2', whose ids embeddings={self.embeddings!r} are on, given "
                f"{self.tokenizer!r}; embeddings='ppmi-svd' are computed for any vocabulary"
            )
        self._refuse_overlap()

    @property
    def held_out(self) -> tuple[tuple[int, int], ...]:
        """The ranges that nothing is trained on."""
        chooses = () if self.selection_range is None else (self.selection_range,)
        return (*chooses, self.validation_range)

    def _refuse_overlap(self) -> None:
        for (name, one), (other_name, other) in itertools.combinations(RANGES.items(), 2):
            pair = getattr(self, name), getattr(self, other_name)
            if None in pair:
                continue
            first, last = max(bounds[0] for bounds in pair), min(bounds[1] for bounds in pair)
            if first < last:
                shown = " and ".join(
                    f"{words} samples {bounds[0]}–{bounds[1] - 1}" for words, bounds in zip((one, other), pair)
                )
                raise ConfigError(f"{shown} overlap in {first}–{last - 1}: {_OVERLAP[name, other_name]}")


@dataclass(frozen=True)
class ModelConfig:
    """Widths, depth and what is trained. docs/method.md, section 2."""

    context_dim: int = number(500, low=2)  # C; of a single component LayerNorm would leave nothing
    embed_dim: int = number(384, low=2)  # E: 384 for Whisper tiny.en, 768 for GPT-2
    num_layers: int = number(1, low=1)  # L, of both blocks
    num_input_tokens: int = number(1, low=1)  # T: the last T embeddings enter the ContextBlock
    tie_weights: bool = True  # head = embedding matrix
    freeze_embedding: bool = True
    weight_std: float = number(0.1, above=0)  # notes: every Linear ~ N(0, 0.1²)
    bias_std: float = number(0.01, low=0)
    # Initial Lyapunov exponent, nats a token, that the recurrent weights are scaled to; None: as drawn.
    initial_exponent: float | None = number(None, above=-1, high=0)
    token_input: str = choice("every-layer", "first-layer")  # where the token enters the ContextBlock
    time_scales: bool = False  # a learned gain of each component of the context that is carried on
    context_routing: str = choice("per-layer", "final")  # what a token layer reads: plan E, plan A
    # What Phase 2 trains: a TokenBlock, a linear map of the last context, or their sum.
    readout: str = choice("token-block", "linear", "sum")
    token_gate: bool = False  # a sigmoid gate on what a token layer adds
    adapter_rank: int = number(0, low=0)  # of a low-rank adapter between TokenBlock and head; 0: none
    logit_scale: float | None = number(None, above=0)  # where a learned scale of the logits starts; None: none

    def __post_init__(self) -> None:
        validate(self)

    def phase1_part(self) -> "ModelConfig":
        """What only Phase 2 reads at its defaults: equal parts, equal ContextBlocks."""
        return at_defaults(self, _READ_IN_PHASE2_ALONE)


# Where two learned parameters start. No fields, since nobody varies them: no record is named by them, so after a change
# every kept run with "sum" or time_scales is to be deleted.
INITIAL_TOKEN_SHARE = 0.1  # of the TokenBlock in the readout "sum"
INITIAL_GAINS = (0.5, 1.5)  # of the context's first and last component with time_scales

_READ_IN_PHASE2_ALONE = (
    "tie_weights", "freeze_embedding", "context_routing", "readout", "token_gate", "adapter_rank", "logit_scale",
)  # fmt: skip


@dataclass(frozen=True)
class Phase1Config:
    """Training of the ContextBlock without labels. docs/method.md, section 4."""

    objective: str = choice("cvfp", "contrastive", "regression")  # fixed point, or prediction: predictive.py
    diversity_algorithm: str = "MCDL"  # a name in losses.DIVERSITY_ALGORITHMS
    dist_reg_weight: float = number(0.9, low=0, high=1)  # w: (1 - w) · objective + w · diversity
    context_source: str = choice("exact", "previous_iteration")
    # Largest jump of the exact contexts that training starts from, far below the noise; reported ones keep to 1e-5.
    context_tolerance: float = later(number(0.01, low=1e-6, high=1))
    # What the fixed-point objective multiplies: bfloat16 always, or where this CPU is faster with it (auto).
    products: str = later(choice("float32", "auto", "bfloat16"))
    context_noise: float = number(0.1, low=0)  # std added to the input contexts while training
    learning_rate: float = number(0.002, above=0, high=LARGEST_RATE)
    gradient_clip: float = number(2.0, above=0)
    batch_tokens: int = number(5000, low=2)  # tokens a loss is computed over
    min_last_batch: int = number(1000, low=2)  # a shorter last batch joins the one before
    min_iterations: int = number(5, low=1)
    max_iterations: int = number(60, low=0)  # 0: an untrained block
    check_interval: int = number(5, low=1)  # iterations between validation checks
    patience: int = number(1, low=1)  # checks without a better validation effective rank
    effective_rank_tokens: int = number(10_000, low=2)
    convergence_threshold: float = number(0.03, above=0)  # mean squared change of a context
    validation_passes: int = number(10, low=2, high=1000)  # repeated passes of the convergence check
    # Of the objectives that predict; an iteration of theirs takes a step per segment.
    prediction_streams: int = number(16, low=1)  # pieces of the text that are read side by side
    prediction_segment: int = number(48, low=1)  # tokens between two steps, and how far gradients reach back
    prediction_negatives: int = number(2048, low=0)  # contrastive: beside the other targets of the segment
    prediction_dropout: float = number(0.3, low=0, high=0.99)  # of token embeddings, and of contexts before the map
    prediction_weight_decay: float = number(0.01, low=0)

    def __post_init__(self) -> None:
        validate(self)
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
    """Training of the TokenBlock on frozen contexts. docs/method.md, section 5."""

    learning_rate: float = number(0.001, above=0, high=LARGEST_RATE)
    gradient_clip: float = number(1.0, above=0)
    max_epochs: int = number(20, low=1, high=LARGEST_EPOCHS)
    patience: int = number(1, low=1)  # epochs without a better validation loss
    effective_batch_size: int = number(512, low=1)  # tokens an optimizer step averages over: the experiment's
    device_batch_size: int | None = number(None, low=1)  # tokens computed at once; None: what fits the device
    shuffle: bool = True  # notes: False, batches in stream order
    # Tokens of the segments that are shuffled over the whole text, for one that lies in a file: data/order.py. None:
    # all tokens are shuffled at once.
    shuffle_segment: int | None = later(number(None, low=1))
    head: str = choice("auto", "direct", "blocks", "blocks-bf16", "fused")  # auto: by device
    dropout: float = number(0.0, low=0, high=0.99)  # of contexts, token embeddings, and hidden states
    weight_decay: float = number(0.0, low=0)  # decoupled, as in AdamW
    unigram_bias: bool = False  # of the output, fixed: log probabilities of the smoothed unigram
    schedule: str = choice("constant", "cosine")  # of the learning rate, over max_epochs
    # Training's softmax over all seen tokens and so many unseen ones, weighted; None: over the whole vocabulary.
    unseen_sample: int | None = number(None, low=1)
    cache_weight: float = number(0.0, low=0, high=0.99)  # of the continuous cache in every evaluation; 0: none
    cache_scale: float = number(10.0, above=0)  # of its similarities, cosines
    cache_tokens: int = number(2000, low=1)  # how far back it looks
    # Tokens after which a cached one weighs 1/e of what it did; None: it always weighs the same.
    cache_horizon: float | None = later(number(None, above=0))
    # Of the training text's counted n-grams in every evaluation (head/kneser_ney.py), beside model and cache; 0: none.
    ngram_weight: float = later(number(0.0, low=0, high=0.99))
    ngram_order: int = later(number(5, low=1, high=LARGEST_ORDER))  # tokens of the longest ones

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class ScalingConfig:
    """Sample sizes and sliding windows of the α progression. docs/method.md, section 6."""

    init_samples: int = number(50, low=1)
    multiplier: float = number(2.0, above=1, high=100)
    window_size: int = number(4, low=2, high=100)
    num_windows: int = number(2, low=1, high=100)
    num_resamples: int = number(4000, low=100, high=1_000_000)  # bootstrap draws behind every interval

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class GenerationConfig:
    """How text is written; no part of a run, whose samples are written with these values."""

    num_tokens: int = number(40, low=0)  # after the prompt, unless a stop text comes first
    temperature: float = number(0.8, low=0)  # 0: the most probable token, always
    top_k: int | None = number(40, low=1)  # drawn from so many most probable tokens; None: from all
    top_p: float = number(1.0, above=0, high=1)  # from the fewest most probable ones that have this probability
    min_p: float = number(0.0, low=0, high=1)  # from those with at least this share of the largest probability
    repetition_penalty: float = number(1.0, above=0)  # of tokens that the text has; above 1: fewer repetitions
    seed: int = number(42, low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class RunConfig:
    """What a run needs beside the experiment itself: its figures depend on the first three."""

    seed: int = number(42, low=0, high=2**32 - 1)  # what NumPy accepts
    num_threads: int = number(2, low=1, high=64)  # sums of floats depend on it
    device: str = choice("auto", "cpu", "cuda")
    # A second folder for checkpoints and results, e.g. of a mounted drive; a fresh machine goes on from there.
    copy_to: str | None = later(location())
    # GiB to stay within: what would not fit lives in a file beside the results, and figures are the same up to
    # rounding. None: what is free.
    memory_budget_gb: float | None = later(resource(number(None, above=0)))

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class Settings(NotebookSettings):
    """One complete set of configs, as a notebook's parameters give it."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    phase1: Phase1Config = Phase1Config()
    phase2: Phase2Config = Phase2Config()
    scaling: ScalingConfig = ScalingConfig()
    run: RunConfig = RunConfig()
