"""Typed configuration of `pipeline/`: one dataclass per section of a preset."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PipelineConfig:
    """All sections that `pipeline/` reads."""
