"""Many runs: variants × seeds, and who is compared."""

from newllm_core.studies.phase1_rows import KeptPhase1, kept_phase1
from newllm_core.studies.rows import CHECKPOINTS_FOLDER, PHASE1_FOLDER, changed_contexts, read_rows
from newllm_core.studies.runners import LEADERBOARD_DIR, ExperimentRunner, Folders, RowRunner
from newllm_core.studies.sweep import (
    Axes,
    Cost,
    Point,
    Runner,
    Sweep,
    SweepError,
    SweepEstimate,
    Variant,
    grid,
    one_axis_at_a_time,
)
from newllm_core.studies.variants import (
    BEST,
    CONTRASTIVE,
    REGULARISED,
    VARIANTS,
    LeaderboardVariant,
    known_variants,
    variant,
)

__all__ = [
    "Axes",
    "BEST",
    "CHECKPOINTS_FOLDER",
    "CONTRASTIVE",
    "Cost",
    "ExperimentRunner",
    "Folders",
    "KeptPhase1",
    "LEADERBOARD_DIR",
    "LeaderboardVariant",
    "PHASE1_FOLDER",
    "Point",
    "REGULARISED",
    "RowRunner",
    "Runner",
    "Sweep",
    "SweepError",
    "SweepEstimate",
    "VARIANTS",
    "Variant",
    "changed_contexts",
    "grid",
    "kept_phase1",
    "known_variants",
    "one_axis_at_a_time",
    "read_rows",
    "variant",
]
