"""Typed configuration of `evaluation/`: one dataclass per section of a preset."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EvaluationConfig:
    """All sections that `evaluation/` reads."""
