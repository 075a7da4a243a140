"""Quality of the picture from luma alone: sharpness of the face, light, motion, still and black stretches, bars.

All measures are taken on what the pass already decoded; nothing is a network. Sharpness is how much detail there is
per pixel of a face of fixed size (Crete et al. 2007: blur the picture again and see how much of its gradients that
destroys), so a face enlarged from nothing counts as blurred whatever its resolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from curation.clip import Rect, Scores
from curation.config import QualityConfig
from curation.operators.base import ClipContext, FrameNeed, Picture, PictureOperator

_BLOCK = 8  # pixels: the transform of MPEG-1 … H.264
_KEPT = 960  # longer side of the pictures kept for the face, pixels


@dataclass(frozen=True)
class _Sight:
    """What is remembered of one small picture."""

    change: float | None  # mean |difference| to the picture before, grey levels
    still: bool
    black: bool
    shift: tuple[float, float] | None  # of the camera since the picture before, share of the width
    bars: tuple[np.ndarray, np.ndarray]  # brightest value of each row and column


class QualityOperator(PictureOperator[_Sight]):
    """Motion, stillness and bars, from small pictures."""

    name = "quality"
    version = 2
    section = "quality"
    keys = ("rate", "side", "still", "black", "min_content")
    columns = ("motion", "shake", "freeze_frac", "letterbox", "fps")

    def __init__(self, cfg: QualityConfig) -> None:
        super().__init__(cfg)
        self.needs = FrameNeed(rate=cfg.rate, side=cfg.side, gray=True)
        self._cfg = cfg
        self._last: np.ndarray | None = None

    def look(self, picture: Picture) -> _Sight:
        """See one luma picture, uint8 [h, w]."""
        small = picture.image
        last, self._last = self._last, small
        change = peak = shift = None
        if last is not None and last.shape == small.shape:
            difference = cv2.absdiff(small, last)
            change = float(difference.mean())
            peak = float(_eighth(difference).max())
            shift = camera_shift(last, small) if change > self._cfg.still else (0.0, 0.0)
        return _Sight(
            change,
            peak is not None and peak < self._cfg.still,
            float(np.percentile(small, 99)) < self._cfg.black,
            shift,
            (small.max(axis=1), small.max(axis=0)),
        )

    def score(self, seen: list[_Sight], context: ClipContext) -> Scores:
        """See :mod:`curation.schema`; freeze_frac 0..1, motion in grey levels per 1/rate s."""
        if not seen:
            return {"fps": context.fps}
        within = seen[1:]
        changes = [s.change for s in within if s.change is not None]
        shifts = np.array([s.shift for s in within if s.shift is not None]).reshape(-1, 2)
        idle = [s.still or s.black for s in within]
        return {
            "motion": float(np.mean(changes)) if changes else None,
            "shake": float(np.sqrt((np.diff(shifts, axis=0) ** 2).sum(1).mean())) if len(shifts) > 1 else None,
            "freeze_frac": float(np.mean(idle)) if idle else None,
            "letterbox": letterbox([s.bars for s in seen], context.width, context.height, self._cfg),
            "fps": context.fps,
        }


@dataclass(frozen=True)
class _Detail:
    """What is kept of one whole picture."""

    blocks: float
    gray: np.ndarray  # uint8, at most _KEPT large


class DetailOperator(PictureOperator[_Detail]):
    """Sharpness and light of the face, and blocks, from whole pictures, few of them."""

    name = "detail"
    version = 1
    section = "quality"
    keys = ("detail_rate", "face_side")
    requires = ("faces",)
    columns = ("sharpness", "exposure", "blockiness")

    def __init__(self, cfg: QualityConfig) -> None:
        super().__init__(cfg)
        self.needs = FrameNeed(rate=cfg.detail_rate, side=None, gray=True)
        self._side = cfg.face_side

    def look(self, picture: Picture) -> _Detail:
        """See one luma picture as displayed, uint8 [h, w]."""
        return _Detail(blockiness(picture.image), _small(picture.image, _KEPT))

    def score(self, seen: list[_Detail], context: ClipContext) -> Scores:
        """See :mod:`curation.schema`; exposure 0..1."""
        faces = [_face(kept.gray, context) for kept in seen]
        return {
            "sharpness": _median([sharpness(face, self._side) for face in faces]),
            "exposure": _median([float(face.mean()) / 255 for face in faces]),
            "blockiness": _median([kept.blocks for kept in seen]),
        }


def sharpness(gray: np.ndarray, side: int) -> float:
    """0 (blurred) … 1: share of the gradient energy that a 5-pixel blur destroys, at ``side`` pixels at most.

    Args:
        gray: uint8 [h, w]. Larger pictures are brought down to ``side`` first; smaller ones are measured as they are.
    """
    values = _small(gray, side).astype(np.float32)
    lost = []
    for kernel, axis in (((5, 1), 1), ((1, 5), 0)):
        before = np.abs(np.diff(values, axis=axis))
        after = np.abs(np.diff(cv2.blur(values, kernel), axis=axis))
        lost.append(float(np.maximum(before - after, 0).sum()) / max(float(before.sum()), 1e-6))
    return min(lost)


def blockiness(gray: np.ndarray) -> float:
    """Mean step across the 8-pixel grid over the mean step elsewhere (1: no grid to be seen)."""
    step = np.abs(np.diff(gray[::4].astype(np.int16), axis=1))
    columns = step.mean(axis=0)
    on_grid = np.arange(len(columns)) % _BLOCK == _BLOCK - 1
    if on_grid.sum() < 4 or not len(step):
        return 1.0
    return float((columns[on_grid].mean() + 0.5) / (columns[~on_grid].mean() + 0.5))


def _eighth(image: np.ndarray) -> np.ndarray:
    size = (max(1, round(image.shape[1] / 8)), max(1, round(image.shape[0] / 8)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def camera_shift(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Movement of the whole picture between two uint8 [h, w], share of the width; (0, 0) where none is certain."""
    if min(before.shape) < 8:  # a picture that is nearly a line
        return 0.0, 0.0
    window = cv2.createHanningWindow((before.shape[1], before.shape[0]), cv2.CV_32F)
    (x, y), certainty = cv2.phaseCorrelate(before.astype(np.float32), after.astype(np.float32), window)
    return (x / before.shape[1], y / before.shape[1]) if certainty > 0.3 else (0.0, 0.0)


def letterbox(bars: list[tuple[np.ndarray, np.ndarray]], width: int, height: int, cfg: QualityConfig) -> Rect | None:
    """The content inside black bars, in displayed pixels; None: there are no bars."""
    if len({(len(r), len(c)) for r, c in bars}) != 1:
        return None
    edges = []
    for values, size in ((np.max([c for _, c in bars], axis=0), width), (np.max([r for r, _ in bars], axis=0), height)):
        lit = np.flatnonzero(values >= cfg.black)
        if not len(lit) or (lit[-1] - lit[0] + 1) < cfg.min_content * len(values):
            return None
        before, after = lit[0], len(values) - 1 - lit[-1]
        if abs(int(before) - int(after)) > 0.05 * len(values):  # bars come in pairs; a dark corner does not
            edges.append((0, size // 2 * 2))
            continue
        scale = size / len(values)
        first = int(np.ceil(lit[0] * scale / 2)) * 2 + (2 if lit[0] else 0)
        last = int((lit[-1] + 1) * scale) - (2 if lit[-1] + 1 < len(values) else 0)
        edges.append((first, (last - first) // 2 * 2))
    (x, w), (y, h) = edges
    return Rect(x, y, w, h) if w < 0.97 * width or h < 0.97 * height else None


def _face(gray: np.ndarray, context: ClipContext) -> np.ndarray:
    """The median face box cut from a kept picture, or all of it."""
    boxes = context.face_boxes
    boxes = boxes[np.isfinite(boxes).all(axis=1)] if len(boxes) else boxes
    if not len(boxes):
        return gray
    scale = gray.shape[1] / max(context.width, 1)
    x0, y0, x1, y1 = (np.median(boxes, axis=0) * scale).astype(int)
    cut = gray[max(0, y0) : y1, max(0, x0) : x1]
    return cut if min(cut.shape) >= 8 else gray


def _small(gray: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(gray.shape)
    if scale >= 1:
        return gray
    size = (max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale)))
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA))


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None
