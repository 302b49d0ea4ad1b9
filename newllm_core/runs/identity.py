"""When two runs are the same: the same configuration, and the same content of everything that they read.

Paths are not part of it: two paths to the same content are the same run, and the same path to other content is not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from newllm_core.runs.files import RunError

# What differs between two runs of the same experiment; everything else must be identical.
VOLATILE = ("start", "seconds", "commit", "paths")
_SHOWN_DIGITS = 12  # of a SHA-256, in messages


@dataclass(frozen=True)
class Identity:
    """What the figures of a run depend on.

    Attributes:
        config: configuration by section, as JSON gives it back; a path in it is null (`schema.config_values`).
        read: SHA-256 of everything that is read, by what it is ("text", "embeddings"), never by where it lies. What is
            downloaded by name has its name here.
    """

    config: Mapping[str, Mapping[str, Any]]
    read: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The keys that say in a record which run it is of."""
        return {"config": dict(self.config), "read": dict(self.read)}


def refuse_other_run(stored: Mapping[str, Any], identity: Identity, place: Path) -> None:
    """Raises RunError that names everything in which the record ``stored`` at ``place`` is another run's."""
    config, read = stored.get("config"), stored.get("read", {})
    if not (isinstance(config, Mapping) and isinstance(read, Mapping)):
        raise RunError(
            f"{place}: expected a record that says its configuration, found none. Delete it to make it again"
        )
    differences = [*_other_config(config, identity), *_other_content(read, identity)]
    if differences:
        raise RunError(
            f"{place} holds another run: {'; '.join(differences)}. Use another folder, or move this one away to start "
            "anew"
        )


def _other_config(stored: Mapping[str, Any], identity: Identity) -> Iterator[str]:
    for section, values in identity.config.items():
        kept = stored.get(section, {})
        if not isinstance(kept, Mapping):
            yield f"{section} = {kept!r:.80}"
            continue
        for name in {**kept, **values}:
            if kept.get(name) != values.get(name):
                yield f"{section}.{name} = {kept.get(name)!r}, asked for {values.get(name)!r}"


def _other_content(kept: Mapping[str, Any], identity: Identity) -> Iterator[str]:
    for name, digest in identity.read.items():
        if name not in kept:
            yield f"which {name} it read is not recorded"
        elif kept[name] != digest:
            yield f"it read other {name} (SHA-256 {str(kept[name])[:_SHOWN_DIGITS]}, now {digest[:_SHOWN_DIGITS]})"


def figures_of(record: Any) -> Any:
    """The record without what may differ between identical runs, at every depth: for comparing two of them."""
    if isinstance(record, Mapping):
        return {key: figures_of(value) for key, value in record.items() if key not in VOLATILE}
    return [figures_of(value) for value in record] if isinstance(record, list) else record
