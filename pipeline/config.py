"""Typed configuration of `pipeline/`: one dataclass per section of a preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WorkerShare:
    """What one worker of a stage asks of a machine, and how many there are."""

    count: int  # 0: as many as fit
    cpus: float
    gpus: float  # fractions share one GPU
    memory_mb: int  # a worker that grows above it is replaced after its unit
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
    dashboard: bool = False  # of a Ray started here (needs ray[default]); a cluster's own is linked in any case


@dataclass(frozen=True)
class BucketsConfig:
    """The picture sizes and lengths that samples are cut to."""

    areas: tuple[int, ...]  # pixels of a frame, smallest first
    aspects: tuple[tuple[int, int], ...]  # width : height
    step: int  # sides are multiples of it: 8 (codec) times 2 (patch)
    lengths: tuple[int, ...]  # video frames, 4k+1
    max_upscale: float  # the largest area that needs no more enlargement than this is taken …
    min_area_fit: float  # … and a clip too small even for the smallest by more than this factor is left out


@dataclass(frozen=True)
class EncodeConfig:
    """What is computed for a sample, and how."""

    device: str
    dtype: Literal["float32", "bfloat16"]  # of the networks
    batch: int  # samples encoded together; part of what makes a rerun byte-identical
    tasks: tuple[Literal["i2v", "flf2v", "lip_sync", "avatar_sync"], ...]  # whose conditions are stored
    sound_frames: int  # sound heard before and after a sample when it is encoded, video frames
    jpeg_quality: int
    mp4: bool  # store the clip itself at bucket size


@dataclass(frozen=True)
class ShardsConfig:
    """How samples are put into tars."""

    target_mb: int
    seed: int  # of the order within a generation and of the splits
    splits: dict[str, float]  # share of the sources in each split, in order; the rest goes to `train`


@dataclass(frozen=True)
class GatherConfig:
    """Gathering of negatives: generation by a checkpoint, measures, flags."""

    share: WorkerShare
    batch: int  # videos generated together
    quantile: float  # a measure beyond this quantile of real clips …
    margin: float  # … by so many interquartile ranges of them is flagged
    device: str


@dataclass(frozen=True)
class PipelineConfig:
    """All sections that `pipeline/` reads."""

    execution: ExecutionConfig
    buckets: BucketsConfig
    encode: EncodeConfig
    shards: ShardsConfig
    gather: GatherConfig
