"""Hyperparameters: the dataclasses, their kinds and ranges."""

from newllm_core.config.hyperparameters import (
    DataConfig,
    ModelConfig,
    Phase1Config,
    Phase2Config,
    RunConfig,
    ScalingConfig,
    Settings,
)
from newllm_core.config.schema import ConfigError, config_hash

__all__ = [
    "ConfigError",
    "DataConfig",
    "ModelConfig",
    "Phase1Config",
    "Phase2Config",
    "RunConfig",
    "ScalingConfig",
    "Settings",
    "config_hash",
]
