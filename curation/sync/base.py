"""What every sync backend takes and gives.

Sign, everywhere: ``offset_frames > 0`` means the sound is EARLY (it is heard before the lips move) and must be delayed
by that many frames of 40 ms. A file whose sound is late by 120 ms has the offset −3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch.nn import functional

from configs.errors import EchoForgeError
from curation.schema import SAMPLES_PER_FRAME


@dataclass(frozen=True)
class CropNeed:
    """The square pictures that a backend wants: of the whole ``face`` or of the ``mouth``, ``size`` px, RGB or gray."""

    kind: Literal["face", "mouth"]
    size: int
    gray: bool


@dataclass(frozen=True)
class SyncScore:
    """How well lips and sound of one clip agree.

    Attributes:
        offset_frames: shift of the best agreement; > 0: the sound is early.
        conf: median of the mean distances over all shifts, minus the least of them (SyncNet's confidence).
        dist: the least mean distance.
        distances: float32 [windows, 2·vshift + 1]; column c compares a picture window with the sound c − vshift frames
            later. NaN where there is no sound to compare with (a backend may count padding instead).
    """

    offset_frames: int
    conf: float
    dist: float
    distances: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """float32 [2·vshift + 1]: mean distance per shift."""
        return np.nanmean(self.distances, axis=0)

    @property
    def conf_at_zero(self) -> float:
        """The confidence that the clip has as it is: the median minus the mean distance without any shift."""
        mean = self.mean
        return float(np.median(mean) - mean[len(mean) // 2])


class SyncBackend(Protocol):
    """Scores lips against sound.

    ``unit`` is what one unit of reported confidence is worth: 1 for SyncNet v2, the threshold on its card for a fitted
    file, so that one limit (``decide.sync_min_fit_conf``) serves every file.
    """

    name: str
    crop: CropNeed
    unit: float

    def score(self, crops: np.ndarray, pcm: np.ndarray) -> SyncScore:
        """``crops`` uint8 [F, S, S, 3] RGB or [F, S, S] gray at 25 fps; ``pcm`` float32 [≈ F · 640] at 16 kHz."""

    def score_many(self, clips: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[SyncScore]:
        """The same for several clips; networks see them in common batches."""


def checked(crops: np.ndarray, pcm: np.ndarray, need: CropNeed, least: int) -> int:
    """Number of frames for which there are both pictures and sound.

    Raises:
        EchoForgeError: crops of another shape than ``need`` asks for, or fewer than ``least`` common frames.
    """
    shape = (need.size, need.size) if need.gray else (need.size, need.size, 3)
    if crops.dtype != np.uint8 or crops.shape[1:] != shape or pcm.ndim != 1:
        raise EchoForgeError(
            f"sync scoring wants uint8 crops [F, {', '.join(map(str, shape))}] and mono sound [n], got {crops.dtype} "
            f"{crops.shape} and {pcm.shape}."
        )
    frames = min(len(crops), len(pcm) // SAMPLES_PER_FRAME)
    if frames < least:
        raise EchoForgeError(f"sync scoring needs at least {least} frames with sound, got {frames}.")
    return frames


def distance_matrix(lips: torch.Tensor, sound: torch.Tensor, vshift: int, *, padded: bool) -> torch.Tensor:
    """Distances of every picture window to the sound windows −vshift … +vshift around it.

    Args:
        lips, sound: float [N, D], one row per window.
        padded: compare with zero vectors beyond the ends (SyncNet's own way); else NaN there.

    Returns:
        float32 [N, 2·vshift + 1].
    """
    count, width = len(lips), 2 * vshift + 1
    around = functional.pad(sound, (0, 0, vshift, vshift)).unfold(0, width, 1).transpose(1, 2)  # [N, width, D], a view
    rows = [  # in pieces: the differences of a long clip would not fit in memory
        functional.pairwise_distance(lips[at : at + 256, None], around[at : at + 256]) for at in range(0, count, 256)
    ]
    matrix = torch.cat(rows).float()
    if not padded:
        heard = torch.arange(count)[:, None] + torch.arange(width)[None] - vshift
        matrix[(heard < 0) | (heard >= count)] = float("nan")
    return matrix


def summarise(matrix: torch.Tensor, vshift: int, least: int = 1) -> SyncScore:
    """Distance matrix [N, 2·vshift + 1] → score; shifts with fewer than ``least`` comparisons are left out."""
    known = (~matrix.isnan()).sum(0) >= least
    mean = matrix.nanmean(0)
    mean = torch.where(known, mean, torch.full_like(mean, float("nan")))
    best = int(torch.where(known, mean, torch.full_like(mean, float("inf"))).argmin())
    dist = float(mean[best])
    return SyncScore(vshift - best, float(mean.nanmedian()) - dist, dist, matrix.numpy())
