"""Metrics of videos: pure functions of frames and sound, each with what it needs.

A metric that lacks what it needs (a reference, weights, a sound) is *not measured*, with the reason; it is never 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from evaluation import temporal

VERSION = 2
"""Raise it when a metric gives another number for the same video. 2: colour drift and flicker are those of samples."""


class NotMeasured(Exception):
    """Why a metric has no value here."""


@dataclass(frozen=True)
class Video:
    """What a metric sees: ``frames`` uint8 [F, H, W, 3] RGB at 25 fps, ``pcm`` float32 [n] mono 16 kHz or None."""

    frames: np.ndarray
    pcm: np.ndarray | None = None


@dataclass(frozen=True)
class Metric:
    """``better``: 'higher', 'lower', or 'reference' (near the reference's own value)."""

    name: str
    unit: str
    better: str
    measure: Callable[[Video, Video | None], float]


def psnr(video: Video, reference: Video | None) -> float:
    """Peak signal-to-noise ratio in dB over all frames, 8 bits."""
    a, b = _pair(video, reference)
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def ssim(video: Video, reference: Video | None) -> float:
    """Structural similarity of the luma, mean over frames (Wang et al. 2004: Gaussian window σ 1.5, 11 px)."""
    a, b = _pair(video, reference)
    return float(np.mean([_ssim(_luma(x), _luma(y)) for x, y in zip(a, b, strict=True)]))


def colour_drift(video: Video, reference: Video | None = None) -> float:
    """CIELAB distance between the video's beginning and its end (`evaluation/temporal.py`)."""
    return temporal.colour_drift(video.frames)


def flicker(video: Video, reference: Video | None = None) -> float:
    """Mean absolute second difference of the lightness in time, 0..255 (`evaluation/temporal.py`)."""
    if len(video.frames) < 3:
        raise NotMeasured("fewer than 3 frames")
    return temporal.flicker(temporal.lightness(video.frames))


def motion(video: Video, reference: Video | None = None) -> float:
    """Mean optical-flow magnitude in pixels per frame (Farnebäck, OpenCV), every second frame."""
    if len(video.frames) < 2:
        raise NotMeasured("fewer than 2 frames")
    gray = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in video.frames]
    flows = [
        cv2.calcOpticalFlowFarneback(gray[i], gray[i + 1], None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
        for i in range(0, len(gray) - 1, 2)
    ]
    return float(np.mean([np.linalg.norm(flow, axis=-1).mean() for flow in flows]))


def sharpness(video: Video, reference: Video | None = None) -> float:
    """Variance of the Laplacian of the luma, median over frames."""
    return float(np.median([cv2.Laplacian(_luma(f), cv2.CV_32F).var() for f in video.frames]))


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("psnr", "dB", "higher", psnr),
        Metric("ssim", "", "higher", ssim),
        Metric("colour_drift", "ΔE", "lower", colour_drift),
        Metric("flicker", "levels", "reference", flicker),
        Metric("motion", "px/frame", "reference", motion),
        Metric("sharpness", "", "reference", sharpness),
    )
}


def _pair(video: Video, reference: Video | None) -> tuple[np.ndarray, np.ndarray]:
    if reference is None:
        raise NotMeasured("no reference video")
    length = min(len(video.frames), len(reference.frames))
    a, b = video.frames[:length], reference.frames[:length]
    if a.shape != b.shape:
        raise NotMeasured(f"sizes differ: {a.shape[2]}x{a.shape[1]} and {b.shape[2]}x{b.shape[1]}")
    return a, b


def _luma(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (11, 11), 1.5)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    score = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(score.mean())
