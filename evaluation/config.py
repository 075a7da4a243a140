"""Typed configuration of `evaluation/`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricsConfig:
    """Which metrics a table shows, in order, and the size that pictures are compared at.

    Attributes:
        metrics: names from :data:`evaluation.metrics.METRICS`.
        side: longer side in pixels of the frames that are measured; a fixed protocol, since every number depends on it.
    """

    metrics: tuple[str, ...]
    side: int


@dataclass(frozen=True)
class EvaluationConfig:
    """All sections that `evaluation/` reads."""

    evaluation: MetricsConfig
