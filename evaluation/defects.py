"""What a good *generated* sample is: measures of a finished video, and flags by comparison with real clips.

No network is needed: every measure compares the video with itself over time or with its own reference frame. What
counts as too much is not a constant but a quantile of the same measure on real clips that went through the same
codec (`real`), so the codec's own blur is not held against a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from evaluation import temporal

VERSION = 1
"""Raise it when a measure gives another number for the same video: what was gathered before is then gathered again."""

MEASURES: dict[str, str] = {
    "colour_shift": "colour_shift",
    "flicker": "flicker",
    "blur": "blur",
    "identity": "identity",
    "background": "background",
    "lip_sync": "lip_sync",
}
"""Measure → issue label (:data:`configs.dataset_schema.ISSUES`). All measures grow with the defect."""


@dataclass(frozen=True)
class Flag:
    """One suspected defect: ``severity`` is the share of real clips that score lower (0..1)."""

    issue: str
    severity: float
    reason: str


def measure(
    frames: np.ndarray,
    reference: np.ndarray,
    face_boxes: np.ndarray | None = None,
    sync_confidence: float | None = None,
) -> dict[str, float]:
    """Defect measures of one sample; larger is worse. A measure that cannot be taken is absent, never zero.

    Args:
        frames: uint8 [F, H, W, 3] RGB, the generated video.
        reference: uint8 [H, W, 3] RGB, the frame it was asked to continue.
        face_boxes: float [F, 4] pixels (x0, y0, x1, y1; NaN where absent) of the face that conditions it.
        sync_confidence: a sync backend's confidence that the mouth follows the sound, when there is one.

    Returns:
        colour_shift: colour drift as `evaluation/temporal.py` has it.
        flicker: flicker as there.
        blur: 1 − (gradient energy of the second half) / (that of the reference), in the face box if given.
        identity: mean CIELAB distance between face and reference face at 8×8 pixels.
        background: mean absolute luma change outside the widened face box, last quarter second to reference.
        lip_sync: minus the confidence.
    """
    luma = temporal.lightness(frames)
    scores = {"colour_shift": temporal.colour_drift(frames)}
    if len(frames) > 2:
        scores["flicker"] = temporal.flicker(luma)
    box = _median_box(face_boxes, frames.shape[1:3])
    reference_lab = temporal.lab(reference)
    half = luma[len(luma) // 2 :]
    energy = np.mean([_gradient_energy(_cut(f, box)) for f in half])
    scores["blur"] = float(1.0 - energy / max(_gradient_energy(_cut(reference_lab[..., 0], box)), 1e-6))
    if box is not None:
        scores["identity"] = _small_distance(_cut(temporal.lab(frames[-1]), box), _cut(reference_lab, box))
        outside = _outside(box, frames.shape[1:3])
        if outside.any():
            end = luma[-temporal.ends(len(frames)) :]
            scores["background"] = float(np.abs(end.mean(0) - reference_lab[..., 0])[outside].mean())
    if sync_confidence is not None:
        scores["lip_sync"] = -float(sync_confidence)
    return scores


def real_quantiles(scores: Mapping[str, float], real: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """For each measure, the share of real clips with a lower score (0..1); absent where there is no real clip."""
    return {
        name: float((np.asarray(real[name]) < value).mean())
        for name, value in scores.items()
        if name in real and len(real[name])
    }


def flag(
    scores: Mapping[str, float], real: Mapping[str, Sequence[float]], quantile: float, margin: float
) -> list[Flag]:
    """Flags of one sample: measures beyond the real ``quantile`` by more than ``margin`` × the real spread.

    Args:
        real: per measure, the scores of real clips that went through the same codec.
        quantile: e.g. 0.95; the level that a real clip exceeds one time in twenty.
        margin: in units of the interquartile range of the real scores.
    """
    shares = real_quantiles(scores, real)
    flags = []
    for name, share in shares.items():
        values = np.asarray(real[name], dtype=np.float64)
        spread = float(np.subtract(*np.quantile(values, [0.75, 0.25])))
        limit = float(np.quantile(values, quantile)) + margin * spread
        if scores[name] > limit:
            reason = f"{name} {scores[name]:.3g} > {limit:.3g} (real clips: median {np.median(values):.3g})"
            flags.append(Flag(MEASURES[name], share, reason))
    return sorted(flags, key=lambda f: -f.severity)


def _gradient_energy(gray: np.ndarray) -> float:
    if min(gray.shape) < 3:
        return 0.0
    gx = cv2.Sobel(gray, cv2.CV_32F, 1, 0)
    gy = cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    return float((gx**2 + gy**2).mean())


def _median_box(boxes: np.ndarray | None, size: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    if boxes is None or not np.isfinite(boxes).all(1).any():
        return None
    x0, y0, x1, y1 = np.nanmedian(boxes, axis=0)
    x0, x1 = np.clip([x0, x1], 0, size[1])
    y0, y1 = np.clip([y0, y1], 0, size[0])
    return (int(x0), int(y0), int(x1), int(y1)) if x1 - x0 >= 8 and y1 - y0 >= 8 else None


def _cut(image: np.ndarray, box: tuple[int, int, int, int] | None) -> np.ndarray:
    return image if box is None else image[box[1] : box[3], box[0] : box[2]]


def _outside(box: tuple[int, int, int, int], size: tuple[int, ...]) -> np.ndarray:
    """Mask of what is neither the face nor the body below it nor its near surroundings (half a box around)."""
    x0, y0, x1, y1 = box
    grow_x, grow_y = (x1 - x0) // 2, (y1 - y0) // 2
    mask = np.ones(size[:2], bool)
    mask[max(0, y0 - grow_y) :, max(0, x0 - grow_x) : x1 + grow_x] = False
    return mask


def _small_distance(a: np.ndarray, b: np.ndarray) -> float:
    small_a, small_b = (cv2.resize(x, (8, 8), interpolation=cv2.INTER_AREA) for x in (a, b))
    return float(np.linalg.norm(small_a - small_b, axis=-1).mean())
