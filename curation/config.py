"""Typed configuration of `curation/`: one dataclass per section of a preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class VideoConfig:
    """How a file is read."""

    backend: Literal["pyav", "decord"]
    threads: int  # of one decoder
    budget_s: float  # CPU seconds that any file may take …
    budget_per_s: float  # … and how many more per second of its duration
    max_gap_s: float  # a longer hole between two timestamps means broken timestamps
    min_decoded: float  # share of the promised duration below which a file counts as truncated
    max_damaged: float  # share of frames that may be damaged; clips avoid the damaged ones


@dataclass(frozen=True)
class ShotsConfig:
    """Cuts by PySceneDetect's AdaptiveDetector, flashes taken back, cross-fades found by their linearity."""

    side: int  # longer side of the pictures compared
    adaptive_threshold: float
    min_content: float
    window: int  # frames on either side that a cut is compared with
    flash_frames: int  # a picture that comes back within so many frames was no cut
    flash_ratio: float  # … as near as this share of the jump
    fade_frames: int  # longest cross-fade looked for
    fade_residual: float  # how far the middle of a fade may be from the mean of its ends, in shares of the change
    fade_change: float  # mean change over a fade, grey levels
    fade_correlation: float  # two pictures more alike than this are one shot


@dataclass(frozen=True)
class ClipsConfig:
    """How shots are cut into clips; lengths are 4k+1 frames (Wan2.1's VAE halves time twice)."""

    min_frames: int
    max_frames: int
    stride: int | None  # from clip to clip within a shot; null: end to end
    margin: int  # frames kept away from every cut


@dataclass(frozen=True)
class FacesConfig:
    """Sparse detection and tracking."""

    detector: Literal["cascade", "yunet", "s3fd"]
    weights: str | None  # file of yunet or s3fd; null: where `weights fetch` puts it
    rate: float  # detections per second
    side: int  # longer side of the pictures searched
    min_score: float | None  # null: the detector's own
    min_share: float  # smallest face looked for, share of the shorter side
    iou: float  # overlap that continues a track
    max_gap_s: float  # a track may miss its face so long
    min_hits: int  # detections that make a track


@dataclass(frozen=True)
class SyncConfig:
    """Filled by the sync backend."""


@dataclass(frozen=True)
class TextConfig:
    """Filled by the text operator."""


@dataclass(frozen=True)
class QualityConfig:
    """Filled by the quality operator."""


@dataclass(frozen=True)
class SoundConfig:
    """Filled by the sound operator."""


@dataclass(frozen=True)
class DedupConfig:
    """Filled by the search for duplicates."""


@dataclass(frozen=True)
class CaptionsConfig:
    """Filled by the captions."""


@dataclass(frozen=True)
class DecideConfig:
    """Filled by the decision."""


@dataclass(frozen=True)
class PuppetsConfig:
    """Filled by the puppet world."""


@dataclass(frozen=True)
class CurationConfig:
    """All sections that `curation/` reads."""

    video: VideoConfig
    shots: ShotsConfig
    clips: ClipsConfig
    faces: FacesConfig
    sync: SyncConfig
    text: TextConfig
    quality: QualityConfig
    sound: SoundConfig
    dedup: DedupConfig
    captions: CaptionsConfig
    decide: DecideConfig
    puppets: PuppetsConfig
