"""From a sync score to a correction: pure functions, sign fixed by tests (offset > 0: the sound is early)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from curation.catalog import SAMPLES_PER_FRAME
from curation.config import SyncConfig
from curation.sync.base import SyncBackend, SyncScore

State = Literal["in_sync", "corrected", "too_far", "unstable", "foreign"]


@dataclass(frozen=True)
class Correction:
    """``offset_samples`` delays the sound (> 0) or advances it (< 0); ``residual`` is measured after it, in frames."""

    state: State
    score: SyncScore
    offset_samples: int
    residual: int | None

    @property
    def good(self) -> bool:
        """In sync, as it is or once corrected."""
        return self.state in ("in_sync", "corrected")


def offset_samples(offset_frames: int) -> int:
    """Delay in 16 kHz samples that mends an offset: early sound is delayed."""
    return offset_frames * SAMPLES_PER_FRAME


def delayed(pcm: np.ndarray, samples: int) -> np.ndarray:
    """Sound float32 [n] moved later by ``samples`` (earlier when negative), same length, zeros where nothing is."""
    out = np.zeros_like(pcm)
    if samples >= 0:
        out[samples:] = pcm[: len(pcm) - samples]
    else:
        out[:samples] = pcm[-samples:]
    return out


def common(crops: np.ndarray, pcm: np.ndarray, offset_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops and corrected sound, trimmed to the frames that have both: nothing padded is measured."""
    shift = abs(offset_frames)
    keep = len(crops) - shift
    sound = shift * SAMPLES_PER_FRAME if offset_frames < 0 else 0
    picture = shift if offset_frames > 0 else 0
    return crops[picture : picture + keep], pcm[sound : sound + keep * SAMPLES_PER_FRAME]


def correct(backend: SyncBackend, crops: np.ndarray, pcm: np.ndarray, cfg: SyncConfig) -> Correction:
    """Score, and where the offset can be mended, mend it and measure again.

    ``foreign``: no shift makes lips and sound agree (other speech, or none). ``too_far``: they agree at a shift beyond
    ``max_offset``. ``unstable``: after the correction the offset is not within ``max_residual`` of 0.

    Args:
        crops: as the backend wants them, [F, …].
        pcm: float32 [F · 640].
    """
    score = backend.score(crops, pcm)
    offset = score.offset_frames
    if score.conf < backend.threshold:
        return Correction("foreign", score, 0, None)
    if abs(offset) > cfg.max_offset:
        return Correction("too_far", score, 0, None)
    if offset == 0:
        return Correction("in_sync", score, 0, 0)
    if len(crops) - abs(offset) < cfg.min_frames:
        return Correction("unstable", score, 0, None)
    again = backend.score(*common(crops, pcm, offset))
    if abs(again.offset_frames) > cfg.max_residual:
        return Correction("unstable", score, 0, again.offset_frames)
    return Correction("corrected", score, offset_samples(offset), again.offset_frames)
