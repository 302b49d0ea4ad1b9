"""Where the leaderboard lies: committed rows, the list made of them, page and picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from newllm_core.config.schema import config_hash
from newllm_core.runs.files import PROJECT_ROOT, REFERENCE_DIR, read_json
from reproduce.leaderboard.rules import GROUP, Row

Record = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """``reference``: the folder of committed records, which has a list of SHA-256 (`SHA256SUMS`)."""

    reference: Path = REFERENCE_DIR
    page: Path = PROJECT_ROOT / "docs" / "leaderboard.md"

    @property
    def rows(self) -> Path:
        return self.reference / "leaderboard"

    @property
    def board(self) -> Path:
        return self.reference / "leaderboard.json"

    @property
    def picture(self) -> Path:
        return self.reference / "leaderboard.png"

    def committed(self) -> dict[str, Record]:
        """Rows of entries by file name. Raises RunError for one that was altered."""
        found = {path.name: read_json(path) for path in sorted(self.rows.glob("*.json"))}
        return {name: row for name, row in found.items() if row["variant"]["group"] == GROUP}


def file_name(row: Row) -> str:
    """As ``RowRunner.key``, of the row itself: one name for one configuration, whatever the file was called."""
    config = row["config"]
    seed = f"-seed{row['seed']}" if "run" in config else ""
    samples = row["provenance"]["train"]["num_samples"]
    return f"{row['variant']['name']}-{samples}s{seed}-{config_hash(*config.values())}.json"
