"""Every baseline, one entry each: words for tables and pictures, its kind, how it is built, and its hyperparameters."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from newllm_core.baselines.config import BaselineConfig
from newllm_core.baselines.gpt2 import gpt2_baseline
from newllm_core.baselines.networks import GptNetwork, MinGruNetwork, gru_network, lstm_network
from newllm_core.baselines.ngrams import kneser_ney_baseline
from newllm_core.config.schema import ConfigError, from_mapping, unknown_name_message
from newllm_core.head.unigram_bias import fit_unigram

KINDS = ("network", "counts", "pretrained")  # the last two have no seed


@dataclass(frozen=True)
class Baseline:
    """What is known of a baseline.

    Attributes:
        label: words for pictures.
        sentence: what it is.
        kind: "network" is trained end to end by `train_network`; "counts" and "pretrained" give figures at once.
        builder: of a network BaselineConfig -> module (`networks.SequenceNetwork`); of the others training tokens
            `[N]`, validation tokens `[M]` and the vocabulary's size -> nats `[M - 1]` of the validation targets, and
            what else a record should say.
        config: of a network, its own values of BaselineConfig; its `network` is the baseline's name if not given.
        seconds_per_token: of the training text, of those that are no network, for estimates.
    """

    label: str
    sentence: str
    kind: str
    builder: Callable[..., Any]
    config: Mapping[str, Any] | None = None
    seconds_per_token: float = 0.0


BASELINES: dict[str, Baseline] = {}


def register_baseline(name: str, baseline: Baseline) -> None:
    """Make ``baseline`` known under ``name``: it can take part in the leaderboard from now on.

    Rows are found by name and hyperparameters: a changed builder needs another name. Raises ConfigError that says which
    part is missing or impossible, and for a built-in name; one's own is replaced.
    """
    if name in _BUILT_IN:
        raise ConfigError(f"baseline {name!r} is built in; choose another name")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ConfigError(f"baseline {name!r}: expected letters, digits, '.', '_' and '-', as in a file name")
    if baseline.kind not in KINDS:
        raise ConfigError(f"baseline {name!r}: expected kind to be one of {', '.join(KINDS)}, given {baseline.kind!r}")
    for part in ("label", "sentence"):
        if not getattr(baseline, part):
            raise ConfigError(f"baseline {name!r}: expected a {part}, the words of tables and pictures, given none")
    if not callable(baseline.builder):
        raise ConfigError(f"baseline {name!r}: expected a builder that can be called, given {baseline.builder!r}")
    if (baseline.kind == "network") != (baseline.config is not None):
        given = "none" if baseline.config is None else "some"
        raise ConfigError(
            f"baseline {name!r}: expected values of BaselineConfig for a network and for nothing else, given {given} "
            f"and kind {baseline.kind!r}"
        )
    if baseline.config is not None:
        config = from_mapping(BaselineConfig, {"network": name, **baseline.config})  # refuses what is impossible
        other = BASELINES.get(config.network)
        if config.network != name and (other is None or other.builder is not baseline.builder):
            raise ConfigError(
                f"baseline {name!r}: expected its own name or a baseline with this builder as network, "
                f"given {config.network!r}"
            )
    BASELINES[name] = baseline


def baseline_config(name: str, **changes: Any) -> BaselineConfig:
    """Of a network, then ``changes``. Raises ConfigError for an unknown name or an impossible value."""
    known = {one: entry.config for one, entry in BASELINES.items() if entry.config is not None}
    if name not in known:
        raise ConfigError(unknown_name_message("network", name, known))
    return from_mapping(BaselineConfig, {"network": name, **known[name], **changes})


def build_network(config: BaselineConfig) -> nn.Module:
    """The network that ``config`` names; its weights are drawn from torch's global generator. Raises ConfigError."""
    baseline_config(config.network)  # refuses an unknown one
    network: nn.Module = BASELINES[config.network].builder(config)
    return network


def unigram_baseline(train: Tensor, validation: Tensor, vocab_size: int) -> tuple[Tensor, dict[str, Any]]:
    """Nats of the targets `[M - 1]` of ``validation`` `[M]` by the smoothed frequencies in ``train`` `[N]`."""
    unigram = fit_unigram(train.cpu(), vocab_size)
    return -unigram.log_probabilities[validation[1:].cpu()], {"added_count": unigram.added}


_BUILT_IN: frozenset[str] = frozenset()
# That of the better model, as are the n-grams: studies/variants.py.
_CACHE: Mapping[str, Any] = {"cache_weight": 0.14, "cache_scale": 8.0, "cache_horizon": 100.0}
# Networks have 1.05 million trained parameters each, within 10 %, at E = 384. The numbers of epochs, over which the
# learning rate falls to nothing, were chosen on conversations that are neither trained on nor judged.
for _name, _baseline in {
    "unigram": Baseline("token frequencies", "token frequencies", "counts", unigram_baseline),
    "kneser-ney-5": Baseline(
        "Kneser-Ney, five tokens", "interpolated modified Kneser-Ney, five tokens", "counts", kneser_ney_baseline,
        seconds_per_token=2e-6,
    ),
    "gru": Baseline("GRU", "GRU, trained end to end", "network", gru_network, {"width": 384}),
    "gru-cache": Baseline(
        "GRU with cache", "GRU with the same continuous cache, trained end to end", "network", gru_network,
        {"network": "gru", "width": 384, **_CACHE},
    ),
    "gru-cache-ngrams": Baseline(
        "GRU, cache, n-grams", "GRU with the same continuous cache and the same counted n-grams, trained end to end",
        "network", gru_network, {"network": "gru", "width": 384, **_CACHE, "ngram_weight": 0.15},
    ),
    "lstm": Baseline("LSTM", "LSTM, trained end to end", "network", lstm_network, {"width": 320}),
    "mingru": Baseline(
        "minGRU", "minGRU of two layers, trained end to end", "network", MinGruNetwork, {"width": 208, "num_layers": 2}
    ),
    "gpt": Baseline(
        "small GPT", "small GPT of four layers, trained end to end", "network", GptNetwork,
        {
            "width": 136, "num_layers": 4, "dropout": 0.2, "learning_rate": 0.001, "segment_tokens": 128,
            "max_epochs": 16,
        },
    ),
    "gpt2": Baseline(
        "GPT-2", "GPT-2 itself, 124 million parameters trained on some ten billion other tokens", "pretrained",
        gpt2_baseline,
    ),
}.items():  # fmt: skip
    register_baseline(_name, _baseline)
_BUILT_IN = frozenset(BASELINES)
