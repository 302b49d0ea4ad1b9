"""Impossible configs are errors where they are written, and the errors say what would have been possible."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newllm_core.config.hyperparameters import (
    DataConfig,
    GenerationConfig,
    ModelConfig,
    Phase1Config,
    Phase2Config,
    RunConfig,
    ScalingConfig,
    Settings,
)
from newllm_core.config.schema import (
    ConfigError,
    config_hash,
    config_values,
    from_mapping,
    from_sections,
    parameter_fields,
)

CONFIG_TYPES = (DataConfig, ModelConfig, Phase1Config, Phase2Config, ScalingConfig, RunConfig)  # of Settings
ALL_TYPES = (*CONFIG_TYPES, GenerationConfig)
FIELDS = [(config, spec.name) for config in ALL_TYPES for spec in dataclasses.fields(config)]
NUMBERS = [(owner, spec.name) for owner in ALL_TYPES for spec in dataclasses.fields(owner) if "low" in spec.metadata]


def test_the_defaults_are_the_notes() -> None:
    phase1, phase2 = Phase1Config(), Phase2Config()
    assert (phase1.dist_reg_weight, phase1.learning_rate, phase1.batch_tokens) == (0.9, 0.002, 5000)
    assert (phase2.learning_rate, phase2.max_epochs, phase2.effective_batch_size) == (0.001, 20, 512)
    assert DataConfig().validation_range == (1000, 1020)
    assert RunConfig().seed == 42


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().context_dim = 3  # type: ignore[misc]


@pytest.mark.parametrize(("config_type", "name"), FIELDS)
def test_every_field_refuses_a_value_of_another_type(config_type: type, name: str) -> None:
    message = rf"{config_type.__name__}\.{name}: expected .*, given b'x' \(bytes\)"
    with pytest.raises(ConfigError, match=message):
        config_type(**{name: b"x"})


@pytest.mark.parametrize(("config_type", "name"), NUMBERS)
def test_every_number_refuses_text_booleans_and_nan(config_type: type, name: str) -> None:
    for value in ("1e-3", "5", True, math.nan):
        with pytest.raises(ConfigError, match=rf"{config_type.__name__}\.{name}: expected .*, given {value!r}"):
            config_type(**{name: value})


@pytest.mark.parametrize(("config_type", "name"), NUMBERS)
def test_every_number_refuses_what_is_below_its_limit(config_type: type, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: expected (at least|more than) .*, given -1"):
        config_type(**{name: -1})


@pytest.mark.parametrize("name", ["learning_rate", "context_noise", "gradient_clip"])
def test_numbers_are_finite(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: expected .*, given inf"):
        Phase1Config(**{name: math.inf})


@pytest.mark.parametrize(
    ("config_type", "values", "message"),
    [
        (Phase1Config, {"dist_reg_weight": 1.01}, "dist_reg_weight: expected at most 1, given 1.01"),
        (Phase1Config, {"learning_rate": 0.0}, "learning_rate: expected more than 0, given 0.0"),
        (ScalingConfig, {"multiplier": 1.0}, "multiplier: expected more than 1, given 1.0"),
        (ModelConfig, {"embed_dim": 1}, "embed_dim: expected at least 2, given 1"),
        (ModelConfig, {"num_layers": 2.0}, r"num_layers: expected int, given 2.0 \(float\)"),
        (ModelConfig, {"tie_weights": 1}, r"tie_weights: expected bool, given 1 \(int\)"),
        (Phase2Config, {"device_batch_size": 0}, "device_batch_size: expected at least 1, given 0"),
        (Phase2Config, {"device_batch_size": 2.0}, r"device_batch_size: expected int \| None, given 2.0 \(float\)"),
        (Phase2Config, {"head": "flash"}, "head: expected one of 'auto', .*'fused', given 'flash'"),
        (DataConfig, {"corpus": "wiki"}, "corpus: expected one of 'chitchat', .*'file', 'brown', given 'wiki'"),
        (RunConfig, {"device": "tpu"}, "device: expected one of 'auto', 'cpu', 'cuda', given 'tpu'"),
        (DataConfig, {"validation_range": (5, 5)}, r"_range: expected 0 <= first < past the last, given \(5, 5\)"),
        (DataConfig, {"train_range": (-1, 5)}, r"train_range: expected 0 <= first < past the last, given \(-1, 5\)"),
        (DataConfig, {"train_range": (1.0, 5)}, r"train_range: expected tuple\[int, int\] \| None, given \(1.0, 5\)"),
        (DataConfig, {"validation_range": [1, 5]}, r"validation_range: expected tuple.*, given \[1, 5\] \(list\)"),
        (DataConfig, {"corpus": "file"}, "go together, given corpus='file' and conversations_file=None"),
        (DataConfig, {"conversations_file": "a"}, "go together, given corpus='chitchat' and conversations_file='a'"),
        (Phase1Config, {"max_iterations": 4}, "expected max_iterations 0 or at least min_iterations=5, given 4"),
        (Phase1Config, {"batch_tokens": 999}, "expected min_last_batch <= batch_tokens=999, given 1000"),
    ],
)  # fmt: skip
def test_impossible_values_and_pairs_are_refused(config_type: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_type(**values)


def test_a_tuple_of_the_wrong_length_is_refused_with_the_length_expected() -> None:
    with pytest.raises(ConfigError, match=r"validation_range: expected tuple.*given \(1, 2, 3\)"):
        DataConfig(validation_range=(1, 2, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        DataConfig(corpus="file", conversations_file="a.jsonl"),
        DataConfig(train_range=(0, 980)),
        DataConfig(train_range=(0, 1000), selection_range=None),
        DataConfig(train_range=(1020, 1021)),
        Phase1Config(max_iterations=0),
        Phase1Config(max_iterations=5),
        Phase1Config(dist_reg_weight=0),
        Phase1Config(dist_reg_weight=1),
        Phase2Config(device_batch_size=None),
    ],
)
def test_possible_values_at_the_edge_are_taken(config: Any) -> None:
    assert config == type(config)(**dataclasses.asdict(config))


@pytest.mark.parametrize("field", ["validation_range", "selection_range", "train_range", "corpus"])
def test_auto_split_is_refused_as_a_value(field: str) -> None:
    with pytest.raises(ConfigError, match=r"auto_split is refused: .* e\.g\. \(1000, 1020\)"):
        DataConfig(**{field: "auto_split"})


def test_auto_split_is_refused_as_a_key() -> None:
    with pytest.raises(ConfigError, match="auto_split"):
        from_mapping(DataConfig, {"auto_split": True})
    with pytest.raises(ConfigError, match="auto_split"):
        Settings.from_parameters({"auto_split": 0.2})


RANGES = st.tuples(st.integers(0, 40), st.integers(0, 40)).filter(lambda pair: pair[0] < pair[1])


@given(RANGES, RANGES)
@settings(deadline=None)
def test_overlapping_ranges_are_refused_with_both_named(train: tuple[int, int], validation: tuple[int, int]) -> None:
    shared = sorted(set(range(*train)) & set(range(*validation)))
    if not shared:
        assert DataConfig(train_range=train, validation_range=validation).train_range == train
        assert DataConfig(selection_range=train, validation_range=validation).held_out == (train, validation)
        assert DataConfig(train_range=train, selection_range=validation).train_range == train
        return
    named = {"train_range": "training", "selection_range": "selection", "validation_range": "validation"}
    for one, other in itertools.combinations(named, 2):
        with pytest.raises(ConfigError) as caught:
            DataConfig(**{one: train, other: validation})  # type: ignore[arg-type]
        assert f"{named[one]} samples {train[0]}–{train[1] - 1}" in str(caught.value)
        assert f"{named[other]} samples {validation[0]}–{validation[1] - 1}" in str(caught.value)
        assert f"overlap in {shared[0]}–{shared[-1]}" in str(caught.value)


def test_a_record_without_a_selection_text_was_chosen_on_the_judged_one() -> None:
    """Before there was a selection text, so what records and names leave out is not the default."""
    assert DataConfig().selection_range == (980, 1000)
    earlier = DataConfig(selection_range=None)
    assert "selection_range" not in config_values(earlier) and config_hash(earlier) != config_hash(DataConfig())
    for data in (DataConfig(), earlier):
        assert from_sections(Settings, {"data": config_values(data)}).data == data


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="unknown key of ModelConfig 'context_dims'. Did you mean 'context_dim'\\?"):
        from_mapping(ModelConfig, {"context_dims": 3})


def test_a_key_that_resembles_none_is_refused_with_the_known_ones() -> None:
    known = "copy_to, device, memory_budget_gb, num_threads, seed"
    with pytest.raises(ConfigError, match=f"unknown key of RunConfig 'xyz'. Expected one of: {known}"):
        from_mapping(RunConfig, {"xyz": 3})


def test_lists_of_a_parsed_file_become_tuples() -> None:
    assert from_mapping(DataConfig, {"train_range": [0, 20]}) == DataConfig(train_range=(0, 20))


@pytest.mark.parametrize("config_type", CONFIG_TYPES)
def test_a_config_comes_back_from_its_mapping(config_type: type) -> None:
    assert from_mapping(config_type, dataclasses.asdict(config_type())) == config_type()


def test_every_field_is_one_parameter_and_shared_names_carry_their_section() -> None:
    fields = parameter_fields(Settings)
    assert len(fields) == len(set(fields.values())) == sum(owner in CONFIG_TYPES for owner, _ in FIELDS)
    assert fields["phase1_learning_rate"] == ("phase1", "learning_rate")
    assert fields["phase2_learning_rate"] == ("phase2", "learning_rate")
    assert fields["context_dim"] == ("model", "context_dim")
    assert "learning_rate" not in fields


def test_parameters_reach_their_section() -> None:
    found = Settings.from_parameters({"phase2_patience": 3, "context_dim": 7, "train_range": [0, 5], "seed": 1})
    assert found == Settings(
        data=DataConfig(train_range=(0, 5)),
        model=ModelConfig(context_dim=7),
        phase2=Phase2Config(patience=3),
        run=RunConfig(seed=1),
    )


def test_no_parameters_are_the_defaults() -> None:
    assert Settings.from_parameters({}) == Settings()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("num_sample", "num_samples"),
        ("learning_rate", "phase1_learning_rate' or 'phase2_learning_rate"),
        ("Seed", "seed"),
    ],
)
def test_a_misspelled_parameter_is_refused_with_the_nearest_one(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown parameter '{name}'. Did you mean '{nearest}'\\?"):
        Settings.from_parameters({name: 3})


@pytest.mark.parametrize("value", [np.int64(5), {5}, {"first": 5}])
def test_a_parameter_of_another_type_is_never_ignored(value: Any) -> None:
    with pytest.raises(ConfigError, match="num_samples"):
        Settings.from_parameters({"num_samples": value})


def test_extra_names_are_left_out_and_named_in_errors() -> None:
    assert Settings.from_parameters({"experiment": "mine"}, own=["experiment"]) == Settings()
    with pytest.raises(ConfigError, match="Did you mean 'experiment'"):
        Settings.from_parameters({"experimemt": "mine"}, own=["experiment"])


UNLIKE_THE_DEFAULT = {
    "train_range": (0, 5), "device_batch_size": 8, "diversity_algorithm": "ODCM", "initial_exponent": -0.1,
    "logit_scale": 0.5, "dropout": 0.1, "unseen_sample": 5, "cache_weight": 0.1, "min_p": 0.1, "shuffle_segment": 5,
    "cache_horizon": 5.0, "ngram_weight": 0.1, "multiplier": 3.0, "selection_range": (960, 980),
}  # fmt: skip


def changed(value: Any, spec: dataclasses.Field[Any]) -> Any:
    """Another possible value of the same field."""
    if spec.name in UNLIKE_THE_DEFAULT:
        return UNLIKE_THE_DEFAULT[spec.name]
    if "choices" in spec.metadata:
        return spec.metadata["choices"][1]
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return value[0], value[1] + 1
    return value * 0.5 if isinstance(value, float) and spec.metadata["high"] else value + 1


@pytest.mark.parametrize(
    ("config_type", "name"),
    [
        pair
        for pair in FIELDS
        if pair[1] not in ("conversations_file", "missing_text", "tokenizer", "copy_to", "memory_budget_gb")
    ],
)
def test_the_hash_changes_with_any_field(config_type: type, name: str) -> None:
    spec = next(spec for spec in dataclasses.fields(config_type) if spec.name == name)
    default = config_type()
    other = dataclasses.replace(default, **{name: changed(getattr(default, name), spec)})
    assert config_hash(DataConfig(), other) != config_hash(DataConfig(), default)


def test_a_file_is_no_part_of_the_hash_by_its_place_but_what_is_left_out_of_it_is() -> None:
    one, other = (DataConfig(corpus="file", conversations_file=name) for name in "ab")
    skipping = DataConfig(corpus="file", conversations_file="a", missing_text="skip-message")
    words = (DataConfig(tokenizer=kind, embeddings="random") for kind in ("gpt2", "words", "words-of-corpus"))
    assert len(set(map(config_hash, words))) == 3
    assert config_hash(one) == config_hash(other) != config_hash(skipping)
    assert config_values(one)["conversations_file"] is None and "missing_text" not in config_values(one)
    assert config_values(skipping)["missing_text"] == "skip-message"
    # A location that came later is in no record at all: names of earlier runs stay what they are.
    assert config_values(RunConfig(copy_to="a")) == config_values(RunConfig()) == {
        "seed": 42, "num_threads": 2, "device": "auto",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="missing_text: only for corpus='file', given corpus='chitchat'"):
        DataConfig(missing_text="skip-message")


PHASE1_CONFIGS = st.builds(
    Phase1Config, learning_rate=st.floats(1e-9, 1e3), dist_reg_weight=st.floats(0, 1), patience=st.integers(1, 9)
)


@given(PHASE1_CONFIGS, PHASE1_CONFIGS)
@settings(deadline=None)
def test_hashes_are_equal_when_configs_are(one: Phase1Config, other: Phase1Config) -> None:
    assert config_hash(one) == config_hash(dataclasses.replace(one))
    assert (config_hash(one) == config_hash(other)) == (one == other)


def test_the_hash_depends_on_which_config_and_on_their_order() -> None:
    one, two = RunConfig(seed=1), RunConfig(seed=2)
    assert len({config_hash(one), config_hash(one, two), config_hash(two, one)}) == 3
    assert config_hash(one, two) == config_hash(RunConfig(seed=1), RunConfig(seed=2))
    assert len(config_hash(one)) == 8 and int(config_hash(one), 16) >= 0


def test_equal_configs_have_equal_hashes() -> None:
    whole, point = Phase1Config(dist_reg_weight=1), Phase1Config(dist_reg_weight=1.0)
    assert whole == point and config_hash(whole) == config_hash(point)
