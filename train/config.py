"""Typed configuration of `train/`: one dataclass per section of a preset."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """All sections that `train/` reads."""
