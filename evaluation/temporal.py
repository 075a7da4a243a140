"""Colour drift and flicker: what changes over a video that should not. One definition, for samples and for tables."""

from __future__ import annotations

import cv2
import numpy as np


def colour_drift(frames: np.ndarray) -> float:
    """CIELAB distance between the mean colours of the first and the last quarter second (of a short video: quarter).

    Args:
        frames: uint8 [F, H, W, 3] RGB at 25 fps.
    """
    edge = ends(len(frames))
    first, last = (_mean_colour(part) for part in (frames[:edge], frames[-edge:]))
    return float(np.linalg.norm(first - last))


def flicker(luma: np.ndarray) -> float:
    """Mean absolute second difference in time.

    Args:
        luma: float32 [F, H, W] of 3 frames or more, 0..255, as :func:`lightness` gives it.
    """
    return float(np.abs(luma[2:] - 2 * luma[1:-1] + luma[:-2]).mean())


def ends(frames: int) -> int:
    """How many frames at each end of a video stand for it: about a quarter second at 25 fps."""
    return max(1, min(frames // 4, 6))


def lightness(frames: np.ndarray) -> np.ndarray:
    """CIELAB's L of uint8 [F, H, W, 3] RGB frames: float32 [F, H, W], 0..255."""
    return np.stack([cv2.extractChannel(cv2.cvtColor(f, cv2.COLOR_RGB2LAB), 0) for f in frames]).astype(np.float32)


def lab(frame: np.ndarray) -> np.ndarray:
    """OpenCV's 8-bit CIELAB of uint8 [H, W, 3] RGB: float32 [H, W, 3], 0..255."""
    return cv2.cvtColor(frame, cv2.COLOR_RGB2LAB).astype(np.float32)


def _mean_colour(frames: np.ndarray) -> np.ndarray:
    mean = np.stack([lab(frame) for frame in frames]).reshape(-1, 3).mean(0)
    return np.asarray([mean[0] * 100 / 255, mean[1] - 128, mean[2] - 128])  # OpenCV's 8 bits → CIELAB units
