"""What the report says of the run that decided a catalog: ``run.json``, as far as it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RunFacts:
    """Null and empty where the catalog does not know."""

    seconds: Mapping[str, float] = field(default_factory=dict)  # CPU seconds by operator
    video_seconds: float = 0.0  # of the videos analysed
    version: str | None = None
    config_digest: str | None = None

    @classmethod
    def from_json(cls, run: Mapping[str, Any]) -> RunFacts:
        """Of ``run.json``; may be empty."""
        return cls(
            run.get("seconds") or {}, run.get("video_seconds") or 0.0, run.get("version"), run.get("config_digest")
        )
