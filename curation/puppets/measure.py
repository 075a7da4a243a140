"""How far a puppet's mouth is open, read off a picture (a blurry one too), and whether it follows a sound."""

from __future__ import annotations

import numpy as np

from curation.schema import SAMPLES_PER_FRAME

_NOT_SKIN = 60.0  # distance from the skin, grey levels, that counts in full
_PAD = 0.12  # of the region's size: generated heads sway differently


def mouth_region(mouth_boxes: np.ndarray, size: int) -> tuple[int, int, int, int]:
    """The part of the picture where the mouth ever is: x0, y0, x1, y1 in px, from boxes float [F, 4]."""
    low, high = mouth_boxes[:, :2].min(0), mouth_boxes[:, 2:].max(0)
    pad = _PAD * (high - low)
    x0, y0 = np.floor(np.maximum(low - pad, 0)).astype(int)
    x1, y1 = np.ceil(np.minimum(high + pad, size)).astype(int)
    return int(x0), int(y0), int(x1), int(y1)


def mouth_opening(frames: np.ndarray, mouth_boxes: np.ndarray) -> np.ndarray:
    """Height of what is not skin in the middle of the mouth region per frame (lips included), px, float32 [F].

    Args:
        frames: uint8 [F, S, S, 3] RGB.
        mouth_boxes: the puppet's true boxes, float [n, 4] (of any of its videos with the same framing).
    """
    x0, y0, x1, y1 = mouth_region(mouth_boxes, frames.shape[1])
    region = frames[:, y0:y1, x0:x1].astype(np.float32)
    height, width = max((y1 - y0) // 5, 1), max((x1 - x0) // 6, 1)
    corners = [
        region[:, rows, columns].reshape(-1, 3)
        for rows in (slice(height), slice(-height, None))
        for columns in (slice(width), slice(-width, None))
    ]
    skin = np.median(np.concatenate(corners), axis=0)
    middle = region[:, :, (x1 - x0) * 3 // 8 : (x1 - x0) * 5 // 8 + 1]
    other = np.sqrt(((middle - skin) ** 2).sum(-1))
    return np.clip(other / _NOT_SKIN, 0, 1).mean(2).sum(1).astype(np.float32)


def loudness(pcm: np.ndarray) -> np.ndarray:
    """Root mean square per video frame, float32 [F], of sound float32 [F · 640]."""
    frames = len(pcm) // SAMPLES_PER_FRAME
    return np.sqrt(np.mean(pcm[: frames * SAMPLES_PER_FRAME].reshape(frames, -1) ** 2, axis=1)).astype(np.float32)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of two tracks over their common length; NaN where one of them never moves."""
    count = min(len(a), len(b))
    a, b = a[:count] - a[:count].mean(), b[:count] - b[:count].mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale > 1e-9 else float("nan")


def follows(frames: np.ndarray, mouth_boxes: np.ndarray, mouth_px: np.ndarray) -> float:
    """How well the mouth in a video follows the opening that its sound asks for: r of opening and ``mouth_px`` [F]."""
    return correlation(mouth_opening(frames, mouth_boxes), mouth_px)
