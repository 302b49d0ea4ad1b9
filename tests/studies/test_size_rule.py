"""The rule of size: nothing changes at the leaderboard's size, everything else moves one way and stays possible."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm_core.baselines.registry import baseline_config
from newllm_core.config.hyperparameters import Settings
from newllm_core.config.schema import ConfigError
from newllm_core.studies.size_rule import LAWS, REFERENCE_TOKENS, SizeLaw, laws_of, own_value, size_changes
from newllm_core.studies.variants import LeaderboardVariant, known_variants, variant

NETWORKS = [name for name, one in known_variants().items() if one.kind == "network"]
RULED = [*LAWS, *NETWORKS]
tokens = st.integers(1, 10**9)
laws = st.builds(
    SizeLaw,
    st.floats(-2.0, 2.0),
    st.integers(1, 20),
    st.integers(21, 400),
)
owns = st.integers(0, 60).map(lambda count: 8 * count) | st.integers(0, 5000).map(lambda count: count / 1000)


def by_rule(name: str, train_tokens: int) -> LeaderboardVariant:
    one = variant(name)
    return dataclasses.replace(one, changes={**one.changes, **size_changes(name, train_tokens)})


@given(laws, owns)
def test_at_the_leaderboards_size_a_value_is_its_own_and_what_is_off_stays_off(law: SizeLaw, own: float) -> None:
    assert law.value(own, REFERENCE_TOKENS) == own
    assert law.value(0, 10**9) == law.value(0.0, 1) == 0


@given(laws, owns, tokens, tokens)
def test_a_value_moves_one_way_with_the_text_and_stays_in_its_bounds(
    law: SizeLaw, own: float, one: int, other: int
) -> None:
    fewer, more = (law.value(own, size) for size in sorted((one, other)))
    assert (more - fewer) * law.exponent >= 0 or fewer == more
    low, high = min(law.low, own), max(law.high, own)
    for value in (fewer, more):
        assert type(value) is type(own)
        assert own == 0 or low <= value <= high


def test_the_law_is_the_power_law_it_says() -> None:
    law = SizeLaw(-0.5, 0.01, 10.0)
    assert law.value(0.4, 4 * REFERENCE_TOKENS) == pytest.approx(0.2, rel=1e-3)
    assert SizeLaw(-0.5, 1, 100).value(16, REFERENCE_TOKENS // 4) == 32
    assert law.value(0.4, 10**15) == 0.01 and SizeLaw(-0.5, 0.01, 0.6).value(0.4, 1) == 0.6


@pytest.mark.parametrize("name", known_variants())
def test_no_variant_is_another_at_its_own_size(name: str) -> None:
    if name in NETWORKS:
        assert baseline_config(name, **size_changes(name, REFERENCE_TOKENS)) == baseline_config(name)
    elif variant(name).kind in ("model", "control"):
        assert by_rule(name, REFERENCE_TOKENS).settings(Settings()) == variant(name).settings(Settings())
    else:
        assert size_changes(name, 10**6) == {}


@settings(deadline=None)
@given(st.sampled_from(RULED), tokens)
def test_every_size_gives_a_possible_configuration(name: str, train_tokens: int) -> None:
    if name in NETWORKS:
        assert baseline_config(name, **size_changes(name, train_tokens)).network
        return
    phase1 = by_rule(name, train_tokens).settings(Settings()).phase1
    assert not phase1.max_iterations or phase1.check_interval <= phase1.max_iterations  # the last pass is not alone


def test_more_text_means_fewer_passes_and_less_restraint() -> None:
    little, much = (by_rule("best", 7_141).settings(Settings()), by_rule("best", 1_969_014).settings(Settings()))
    assert little.phase1.max_iterations > variant("best").settings(Settings()).phase1.max_iterations
    assert little.phase1.max_iterations > much.phase1.max_iterations >= much.phase1.min_iterations
    assert little.phase2.max_epochs >= much.phase2.max_epochs and little.phase2.dropout >= much.phase2.dropout


def test_the_notes_stay_as_they_are_and_a_control_without_training_stays_untrained() -> None:
    assert size_changes("notes", 10**6) == {}
    assert by_rule("untrained", 10**6).settings(Settings()).phase1.max_iterations == 0


def test_a_law_names_parameters_that_exist_and_their_own_values_are_the_variants() -> None:
    assert own_value("best", "max_iterations") == variant("best").settings(Settings()).phase1.max_iterations
    assert own_value("gpt", "width") == baseline_config("gpt").width
    for name in RULED:
        assert all(own_value(name, parameter) is not None for parameter in laws_of(name))


def test_an_unknown_variant_and_no_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'best'"):
        size_changes("besst", 100)
    with pytest.raises(ConfigError, match="at least one training token, given 0"):
        size_changes("best", 0)
