"""Every hyperparameter of the baselines; their own values are in `registry`: a weak baseline is a false result."""

from dataclasses import dataclass

from newllm_core.config.schema import LARGEST_EPOCHS, LARGEST_ORDER, ConfigError, at_defaults, later, number, validate

NGRAM_ORDER = 5  # of the counts that stand alone


@dataclass(frozen=True)
class BaselineConfig:
    """A network that reads frozen embeddings and is judged by the tied, frozen head; all between is trained at once."""

    network: str = "gru"  # whose builder it takes: a name in registry.BASELINES
    embed_dim: int = number(384, low=2)  # E, of the frozen embeddings it stands between
    width: int = number(384, low=1)
    num_layers: int = number(1, low=1)
    num_heads: int = number(4, low=1)  # of the GPT
    mlp_ratio: int = number(4, low=1)  # of the GPT and the minGRU: width of an MLP over that of its block
    dropout: float = number(0.3, low=0, high=0.99)  # of embeddings, between layers, and before the head
    unigram_bias: bool = True  # of the output, fixed: log probabilities of the smoothed unigram
    learning_rate: float = number(0.002, above=0)
    weight_decay: float = number(0.01, low=0)
    gradient_clip: float = number(1.0, above=0)
    unseen_sample: int | None = number(2048, low=1)  # as in Phase2Config; None: the whole vocabulary in training
    num_streams: int = number(16, low=1)  # pieces of the training text that are read side by side
    segment_tokens: int = number(48, low=2)  # between two optimizer steps, and how far gradients reach back
    max_epochs: int = number(12, low=1, high=LARGEST_EPOCHS)
    patience: int = number(3, low=1)  # epochs without a better validation loss
    cache_weight: float = number(0.0, low=0, high=0.99)  # of the continuous cache, as in Phase2Config
    cache_scale: float = number(10.0, above=0)
    cache_tokens: int = number(2000, low=1)
    cache_horizon: float | None = later(number(None, above=0))
    ngram_weight: float = later(number(0.0, low=0, high=0.99))  # of counted n-grams, as in Phase2Config
    ngram_order: int = later(number(5, low=1, high=LARGEST_ORDER))

    def __post_init__(self) -> None:
        validate(self)
        if self.network == "gpt" and self.width % self.num_heads:
            raise ConfigError(
                f"BaselineConfig: expected width to be a multiple of num_heads={self.num_heads}, given {self.width}"
            )

    def training_part(self) -> "BaselineConfig":
        """What only the last judgement reads at its defaults: equal parts, equal networks."""
        return at_defaults(self, _READ_WHEN_JUDGED_ALONE)


_READ_WHEN_JUDGED_ALONE = (
    "cache_weight", "cache_scale", "cache_tokens", "cache_horizon", "ngram_weight", "ngram_order",
)  # fmt: skip
