"""One entry makes a baseline known; an entry that lacks something says so when it is registered."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from newllm_core.baselines.config import BaselineConfig
from newllm_core.baselines.networks import RecurrentNetwork
from newllm_core.baselines.registry import (
    BASELINES,
    Baseline,
    baseline_config,
    build_network,
    register_baseline,
    unigram_baseline,
)
from newllm_core.config.schema import ConfigError
from newllm_core.studies.variants import known_variants, variant


class MyNetwork(RecurrentNetwork):
    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(nn.GRU, config)


MINE = Baseline("mine", "a network of my own", "network", MyNetwork, {"width": 8})


@pytest.fixture(autouse=True)
def _registry_as_before() -> Iterator[None]:
    kept = dict(BASELINES)
    yield
    BASELINES.clear()
    BASELINES.update(kept)


def test_one_entry_makes_a_network_known_everywhere() -> None:
    register_baseline("mine", MINE)
    config = baseline_config("mine", embed_dim=6)
    assert (config.network, config.width) == ("mine", 8)
    outputs, _ = build_network(config)(torch.zeros(2, 3, 6), None)
    assert isinstance(build_network(config), MyNetwork) and outputs.shape == (2, 3, 6)
    assert variant("mine").record() == {
        "name": "mine", "label": "mine", "kind": "network", "group": "leaderboard", "sentence": "a network of my own",
        "reference": None, "expected": None,
    }  # fmt: skip
    register_baseline("mine", dataclasses.replace(MINE, config={"width": 9}))
    assert baseline_config("mine").width == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": ""}, "expected a label"),
        ({"sentence": ""}, "expected a sentence"),
        ({"kind": "netwrok"}, "expected kind to be one of network, counts, pretrained, given 'netwrok'"),
        ({"builder": None}, "expected a builder"),
        ({"config": None}, "expected values of BaselineConfig for a network"),
        ({"kind": "counts"}, "expected values of BaselineConfig for a network and for nothing else, given some"),
        ({"config": {"widht": 8}}, "Did you mean 'width'"),
        ({"config": {"width": 0}}, "BaselineConfig.width: expected at least 1"),
        ({"config": {"network": "gru"}}, "a baseline with this builder as network, given 'gru'"),
        ({"config": {"network": "gur"}}, "a baseline with this builder as network, given 'gur'"),
    ],
    ids=str,
)
def test_what_an_entry_lacks_is_said_when_it_is_registered(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register_baseline("mine", dataclasses.replace(MINE, **changes))
    assert "mine" not in BASELINES and "mine" not in known_variants()


@pytest.mark.parametrize("name", ["gru", "unigram", "../mine", ""])
def test_names_that_are_taken_or_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="baseline "):
        register_baseline(name, MINE)


def test_unknown_networks_name_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="unknown network 'gur'. Did you mean 'gru'"):
        build_network(BaselineConfig(network="gur"))
    with pytest.raises(ConfigError, match="unknown network 'unigram'"):
        baseline_config("unigram")


def test_counts_take_part_without_a_seed() -> None:
    register_baseline("frequencies", Baseline("frequencies", "the same again", "counts", unigram_baseline))
    nats, details = BASELINES["frequencies"].builder(torch.tensor([0, 1, 0]), torch.tensor([0, 1]), 3)
    assert nats.shape == (1,) and details["added_count"] > 0
