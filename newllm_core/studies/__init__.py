"""Many runs: lists of experiments, and who is compared."""

from newllm_core.studies.estimate import RowsEstimate, estimate_rows
from newllm_core.studies.phase1_rows import KeptPhase1, kept_phase1
from newllm_core.studies.runners import (
    CHECKPOINTS_FOLDER,
    LEADERBOARD_DIR,
    PHASE1_FOLDER,
    SEEDLESS,
    changed_contexts,
    points_of,
    read_rows,
    row_path,
    row_settings,
    run_row,
    run_rows,
)
from newllm_core.studies.sweep import (
    Folders,
    Series,
    SeriesError,
    SeriesEstimate,
    Variant,
    comparison_points,
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
    "LeaderboardVariant",
    "VARIANTS",
    "Variant",
    "known_variants",
    "variant",
    "BEST",
    "CHECKPOINTS_FOLDER",
    "LEADERBOARD_DIR",
    "CONTRASTIVE",
    "RowsEstimate",
    "Folders",
    "KeptPhase1",
    "PHASE1_FOLDER",
    "REGULARISED",
    "SEEDLESS",
    "Series",
    "SeriesError",
    "SeriesEstimate",
    "changed_contexts",
    "comparison_points",
    "row_settings",
    "estimate_rows",
    "grid",
    "kept_phase1",
    "one_axis_at_a_time",
    "points_of",
    "read_rows",
    "row_path",
    "run_row",
    "run_rows",
]
