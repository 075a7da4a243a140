"""Typed configuration of `curation/`: one dataclass per section of a preset."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CurationConfig:
    """All sections that `curation/` reads."""
