"""Hyperparameters: the dataclasses, their kinds and ranges."""

from newllm_core.config.hyperparameters import (
    INITIAL_GAINS,
    INITIAL_TOKEN_SHARE,
    DataConfig,
    ModelConfig,
    Phase1Config,
    Phase2Config,
    RunConfig,
    ScalingConfig,
    Settings,
)
from newllm_core.config.schema import (
    AnySettings,
    Config,
    ConfigError,
    changed,
    choice,
    config_hash,
    from_mapping,
    number,
    parameter_fields,
    unknown_name_message,
    validate,
)

__all__ = [
    "AnySettings",
    "Config",
    "ConfigError",
    "DataConfig",
    "INITIAL_GAINS",
    "INITIAL_TOKEN_SHARE",
    "ModelConfig",
    "Phase1Config",
    "Phase2Config",
    "RunConfig",
    "ScalingConfig",
    "Settings",
    "changed",
    "choice",
    "config_hash",
    "from_mapping",
    "number",
    "parameter_fields",
    "unknown_name_message",
    "validate",
]
