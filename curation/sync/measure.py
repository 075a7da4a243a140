"""What sync scoring measures of a clip; nothing is decided here.

`curation/decision/decide.py` alone turns these numbers into a correction, a verdict and reasons, so that a new threshold never
needs a new measurement. Sign everywhere: offset > 0 means that the sound is early and must be delayed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.schema import SAMPLES_PER_FRAME
from curation.sync.base import SyncBackend


@dataclass(frozen=True)
class Residual:
    """The offset that is left after correcting a measured one.

    Attributes:
        offset_frames: the second measurement, in frames; None where ``frames`` are too few to measure it.
        frames: frames that have both picture and sound after the correction.
    """

    offset_frames: int | None
    frames: int


def common(crops: np.ndarray, pcm: np.ndarray, offset_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops and corrected sound, trimmed to the frames that have both, so that no padding is measured."""
    shift = abs(offset_frames)
    keep = max(len(crops) - shift, 0)
    sound = shift * SAMPLES_PER_FRAME if offset_frames < 0 else 0
    picture = shift if offset_frames > 0 else 0
    return crops[picture : picture + keep], pcm[sound : sound + keep * SAMPLES_PER_FRAME]


def measure_residual(
    backend: SyncBackend, crops: np.ndarray, pcm: np.ndarray, offset_frames: int, min_frames: int
) -> Residual:
    """Correct any offset that the search range can give, and measure again.

    Every offset is corrected and measured, large or small, sure or not: which offsets are worth a correction is a
    threshold, and thresholds belong to the decision.

    Args:
        crops: as the backend wants them, [F, …].
        pcm: float32 [F · 640].
        offset_frames: as the backend measured it.
        min_frames: fewest frames that are measured.

    Raises:
        EchoForgeError: crops of another shape than the backend wants.
    """
    if offset_frames == 0:
        return Residual(0, len(crops))
    seen, heard = common(crops, pcm, offset_frames)
    if len(seen) < min_frames:
        return Residual(None, len(seen))
    return Residual(backend.score(seen, heard).offset_frames, len(seen))
