"""Who is compared: possible settings, references that exist, sizes that compare."""

import pytest
import torch

from newllm_core.baselines.registry import BASELINES, baseline_config, build_network
from newllm_core.config.hyperparameters import DataConfig, ModelConfig, Settings
from newllm_core.config.profiles import load_profile
from newllm_core.config.schema import ConfigError, changed
from newllm_core.model import NewLLM
from newllm_core.runs.files import PROJECT_ROOT
from newllm_core.studies.variants import VARIANTS, known_variants, variant

PROFILES = PROJECT_ROOT / "notebooks" / "profiles"
WITH_REFERENCE = [name for name, one in VARIANTS.items() if one.group != "leaderboard"]


def test_no_name_and_no_label_of_a_group_stands_for_two() -> None:
    assert not VARIANTS.keys() & BASELINES.keys()
    everyone = known_variants()
    assert len({(one.group, one.label) for one in everyone.values()}) == len(everyone)
    assert all(one.name == name != one.label and one.sentence for name, one in everyone.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_every_models_settings_are_possible(name: str) -> None:
    assert isinstance(variant(name).settings(Settings()), Settings)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_what_has_a_reference_differs_from_it_and_says_what_was_expected(name: str) -> None:
    chosen = variant(name)
    assert chosen.reference is not None and chosen.expected
    other = variant(chosen.reference)
    mine, theirs = chosen.settings(Settings()), other.settings(Settings())
    assert (mine, chosen.contexts) != (theirs, other.contexts) and mine.data == theirs.data


def test_the_parts_differ_from_the_best_in_what_they_say_alone() -> None:
    best = variant("best").settings(Settings())
    without = variant("best-no-cache").settings(Settings())
    assert best.phase2.cache_weight > 0 == without.phase2.cache_weight
    assert (best.data, best.model, best.phase1) == (without.data, without.model, without.phase1)


def test_the_profile_of_the_better_model_is_its_variant() -> None:
    cpu, best = (Settings.from_parameters(load_profile(PROFILES / f"{name}.yaml")) for name in ("cpu", "best"))
    assert variant("best").settings(changed(cpu, {"selection_range": DataConfig.selection_range})) == best


def test_neural_rows_train_about_as_many_parameters() -> None:
    """1.05 million within 10 %, at E = 384, with the map that Phase 1 throws away; the notes' own model has
    784,108."""
    counts = {}
    for name in (name for name, one in BASELINES.items() if one.kind == "network"):
        parameters = build_network(baseline_config(name)).parameters()
        counts[name] = sum(parameter.numel() for parameter in parameters)
    best = variant("best").settings(Settings()).model
    trained = NewLLM(best, torch.zeros(7, 384)).parameter_counts()
    thrown_away = (best.context_dim + 1) * best.embed_dim
    counts["best"] = trained["trained_in_phase1"] + trained["trained_in_phase2"] + thrown_away
    assert all(0.9 * 1.05e6 <= count <= 1.1 * 1.05e6 for count in counts.values()), counts
    notes = NewLLM(ModelConfig(), torch.zeros(7, 384)).parameter_counts()
    assert notes["trained_in_phase1"] + notes["trained_in_phase2"] == 784_108


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'untrained'"):
        variant("untraind")
