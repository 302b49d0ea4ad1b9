"""The list of contenders: possible settings, references that exist, sizes that compare."""

import pytest
import torch

from newllm_core.baselines.config import BASELINES, baseline_config
from newllm_core.baselines.networks import build_network
from newllm_core.config.language import ModelConfig, Settings
from newllm_core.config.profiles import load_profile
from newllm_core.config.schema import ConfigError
from newllm_core.model import NewLLM
from newllm_core.runs.files import PROJECT_ROOT
from newllm_core.studies.runners import contender_settings
from newllm_core.studies.variants import CONTENDERS, DECISIONS, GROUPS, OBJECTIVES, PARTS, contender

PROFILES = PROJECT_ROOT / "notebooks" / "profiles"
EVERYONE = [name for group in GROUPS.values() for name in group]
MODELS = [name for name in EVERYONE if contender(name).kind == "model"]


def test_no_name_stands_for_two() -> None:
    assert len(set(EVERYONE)) == len(EVERYONE)


@pytest.mark.parametrize("name", MODELS)
def test_every_models_settings_are_possible(name: str) -> None:
    assert isinstance(contender_settings(name, Settings()), Settings)


@pytest.mark.parametrize("name", [*DECISIONS, *OBJECTIVES, *PARTS])
def test_what_has_a_reference_differs_from_it_and_says_what_was_expected(name: str) -> None:
    chosen = contender(name)
    assert chosen.reference is not None and chosen.expected
    other = contender(chosen.reference)
    assert (contender_settings(name, Settings()), chosen.contexts) != (
        contender_settings(chosen.reference, Settings()), other.contexts,
    )  # fmt: skip
    assert contender_settings(name, Settings()).data == contender_settings(chosen.reference, Settings()).data


def test_the_parts_differ_from_the_best_in_what_they_say_alone() -> None:
    best = contender_settings("best", Settings())
    without = contender_settings("best-no-cache", Settings())
    assert best.phase2.cache_weight > 0 == without.phase2.cache_weight
    assert (best.data, best.model, best.phase1) == (without.data, without.model, without.phase1)


def test_the_profile_of_the_better_model_is_its_contender() -> None:
    cpu, best = (Settings.from_parameters(load_profile(PROFILES / f"{name}.yaml")) for name in ("cpu", "best"))
    assert contender_settings("best", cpu) == best


def test_neural_contenders_train_about_as_many_parameters() -> None:
    """1.05 million within 10 %, at E = 384 (issue 5), with the map that Phase 1 throws away; the notes' own model has
    784,108."""
    counts = {}
    for name in BASELINES:
        parameters = build_network(baseline_config(name)).parameters()
        counts[name] = sum(parameter.numel() for parameter in parameters)
    best = contender_settings("best", Settings()).model
    trained = NewLLM(best, torch.zeros(7, 384)).parameter_counts()
    thrown_away = (best.context_dim + 1) * best.embed_dim
    counts["best"] = trained["trained_in_phase1"] + trained["trained_in_phase2"] + thrown_away
    assert all(0.9 * 1.05e6 <= count <= 1.1 * 1.05e6 for count in counts.values()), counts
    notes = NewLLM(ModelConfig(), torch.zeros(7, 384)).parameter_counts()
    assert notes["trained_in_phase1"] + notes["trained_in_phase2"] == 784_108


def test_an_unknown_name_is_refused() -> None:
    assert "best" in CONTENDERS
    with pytest.raises(ConfigError, match="Did you mean 'untrained'"):
        contender("untraind")
