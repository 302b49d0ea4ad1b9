"""The engines by name. Each is imported when it is chosen: Ray and submitit are extras."""

from pathlib import Path

from newllm_core.batch.tasks import RETRIES, Engine

ENGINES = ("local", "ray", "slurm")


def engine_of(
    name: str, folder: Path, *, workers: int = 1, retries: int = RETRIES, address: str | None = None,
    cluster: str = "slurm", partition: str | None = None, minutes: int = 60,
) -> Engine:  # fmt: skip
    """One of ENGINES. ``folder``: for what SLURM writes. Raises EngineError where its package is not installed."""
    if name == "ray":
        from newllm_core.batch.ray_engine import RayEngine

        return RayEngine(workers, retries, address)
    if name == "slurm":
        from newllm_core.batch.slurm_engine import SlurmEngine

        return SlurmEngine(folder / "slurm", workers, retries, partition, minutes, cluster)
    from newllm_core.batch.local_engine import LocalEngine

    return LocalEngine(workers, retries)
