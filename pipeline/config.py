"""Typed configuration of `pipeline/`: one dataclass per section of a preset."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerShare:
    """What one worker of a stage asks of a machine, and how many there are."""

    count: int  # 0: as many as fit
    cpus: float
    gpus: float  # fractions share one GPU
    memory_mb: int  # a worker above it is replaced after its unit
    memory_limit_mb: int  # a worker above it is stopped at once and its unit retried alone


@dataclass(frozen=True)
class ExecutionConfig:
    """How units of work run, whatever they are."""

    curate: WorkerShare
    shard: WorkerShare
    object_store_mb: int  # of a Ray started here; only small rows travel
    budget_s: float  # wall seconds that any unit may take before it counts as hung …
    budget_per_mb: float  # … and how many more per megabyte of its source
    commit_s: float  # short units are committed together, about so many seconds of work at a time …
    commit_units: int  # … and at most so many units
    max_failures: int  # so many failed units in a row stop the run: then it is not the units
    node_losses: int  # a unit may lose so many nodes under it before it is suspected itself
    merge_parts: int  # more part files than this are merged when a run ends
    rows_per_file: int  # of the finished tables


@dataclass(frozen=True)
class PipelineConfig:
    """All sections that `pipeline/` reads."""

    execution: ExecutionConfig
