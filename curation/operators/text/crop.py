"""A crop that leaves the text out, keeps the face with a margin, and keeps the picture's aspect; or none."""

from __future__ import annotations

from itertools import product

import numpy as np

from curation.clip import Rect

_MOST = 6  # boxes considered one by one; more are first joined by rows


def propose(
    texts: np.ndarray, faces: np.ndarray, width: int, height: int, keep: float, face_margin: float
) -> Rect | None:
    """The largest crop of the picture's own aspect without any text and with every face box.

    Args:
        texts: float [n, 4], x0, y0, x1, y1 in pixels, to be left out.
        faces: float [m, 4], to be kept with ``face_margin`` × their size around them (as far as the picture goes).
        keep: smallest share of the width and height that may remain.

    Returns:
        even values, or None where no such crop exists. No text: the whole picture is not a crop,
        so None.
    """
    if not len(texts):
        return None
    texts = _joined(np.asarray(texts, float)) if len(texts) > _MOST else np.asarray(texts, float)
    face = _face(faces, width, height, face_margin)
    best: tuple[float, tuple[float, float, float, float]] | None = None
    pad = 0.004 * max(width, height)
    lefts, tops = [0.0, *(texts[:, 2] + pad)], [0.0, *(texts[:, 3] + pad)]
    rights, bottoms = [float(width), *(texts[:, 0] - pad)], [float(height), *(texts[:, 1] - pad)]
    for free in product(lefts, tops, rights, bottoms):
        if free[2] - free[0] < keep * width or free[3] - free[1] < keep * height or _hits(texts, free):
            continue
        fitted = _fit(free, face, width / height)
        if fitted and (best is None or fitted[2] > best[0]) and fitted[2] >= keep * width:
            best = (fitted[2], fitted)
    return _even(best[1]) if best else None


def _hits(texts: np.ndarray, free: tuple[float, ...]) -> bool:
    apart = (texts[:, 2] <= free[0]) | (texts[:, 0] >= free[2]) | (texts[:, 3] <= free[1]) | (texts[:, 1] >= free[3])
    return not bool(apart.all())


def _fit(free: tuple[float, ...], face: np.ndarray | None, aspect: float) -> tuple[float, float, float, float] | None:
    """x, y, w, h of the largest rectangle of ``aspect`` inside ``free`` that holds the face; centred on it."""
    w = min(free[2] - free[0], (free[3] - free[1]) * aspect)
    h = w / aspect
    middle = [(free[0] + free[2]) / 2, (free[1] + free[3]) / 2]
    if face is not None:
        inside = face[0] >= free[0] and face[1] >= free[1] and face[2] <= free[2] and face[3] <= free[3]
        if not inside or face[2] - face[0] > w or face[3] - face[1] > h:
            return None
        middle = [(face[0] + face[2]) / 2, (face[1] + face[3]) / 2]
    x = float(np.clip(middle[0] - w / 2, free[0], free[2] - w))
    y = float(np.clip(middle[1] - h / 2, free[1], free[3] - h))
    return x, y, w, h


def _face(faces: np.ndarray, width: int, height: int, margin: float) -> np.ndarray | None:
    boxes = np.asarray(faces, float).reshape(-1, 4)
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    if not len(boxes):
        return None
    around = np.array([boxes[:, 0].min(), boxes[:, 1].min(), boxes[:, 2].max(), boxes[:, 3].max()])
    grow = margin * float(np.median(boxes[:, 2] - boxes[:, 0]))
    return np.clip(around + np.array([-grow, -grow, grow, grow]), 0, [width, height, width, height])


def _joined(texts: np.ndarray) -> np.ndarray:
    """Boxes that share rows become one box."""
    rows: list[np.ndarray] = []
    for box in texts[np.argsort(texts[:, 1])]:
        if rows and box[1] <= rows[-1][3]:
            rows[-1] = np.concatenate([np.minimum(rows[-1][:2], box[:2]), np.maximum(rows[-1][2:], box[2:])])
        else:
            rows.append(box)
    return np.stack(rows[:_MOST] if len(rows) <= _MOST else rows[: _MOST // 2] + rows[-_MOST // 2 :])


def _even(rect: tuple[float, float, float, float]) -> Rect:
    x, y = (int(np.ceil(v / 2)) * 2 for v in rect[:2])
    right, bottom = int(rect[0] + rect[2]), int(rect[1] + rect[3])
    return Rect(x, y, (right - x) // 2 * 2, (bottom - y) // 2 * 2)
