"""Which picture size, crop and frames a clip is trained at: nothing is stretched, letters are cut away, faces kept.

Buckets keep the area and vary the aspect, so that podcast, square and portrait cost the same; sides are multiples of
16 and lengths 4k+1 frames, as the codec and the patches need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from configs.errors import ConfigError
from curation.clip import Clip, Rect, Track
from pipeline.config import BucketsConfig


def sizes(cfg: BucketsConfig) -> list[tuple[int, int]]:
    """All (width, height), smallest area first.

    Raises:
        ConfigError: a length is not 4k+1.
    """
    if wrong := [length for length in cfg.lengths if length % 4 != 1]:
        raise ConfigError(f"buckets.lengths holds {wrong[0]}, which is not 4k+1 frames.")
    found = []
    for area in sorted(cfg.areas):
        for w, h in cfg.aspects:
            width = max(round(math.sqrt(area * w / h) / cfg.step), 1) * cfg.step
            height = max(round(math.sqrt(area * h / w) / cfg.step), 1) * cfg.step
            found.append((width, height))
    return list(dict.fromkeys(found))


def windows(frames: int, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut ``frames`` into non-overlapping (start, length), longest lengths first; a rest too short is left out."""
    result, start = [], 0
    for length in sorted(lengths, reverse=True):
        while frames - start >= length:
            result.append((start, length))
            start += length
    return result


def face_centre(clip: Clip) -> tuple[float, float] | None:
    """Centre of what the active face covers over the clip, in displayed pixels; None without a track."""
    track = active_track(clip)
    if track is None:
        return None
    boxes = np.asarray(track.boxes, np.float32)
    return float(boxes[:, 0].min() + boxes[:, 2].max()) / 2, float(boxes[:, 1].min() + boxes[:, 3].max()) / 2


def active_track(clip: Clip) -> Track | None:
    """The track of the person who speaks; the first when none was named; None without boxes."""
    tracks = [track for track in clip.tracks if track.boxes]
    chosen = [track for track in tracks if track.track_id == clip.active_track]
    return next(iter(chosen or tracks), None)


def usable_region(clip: Clip) -> Rect:
    """The picture of a clip without its bars and without the text that a crop removes, in displayed pixels."""
    region = Rect(0, 0, clip.width, clip.height)
    for name in ("letterbox", "crop"):
        if isinstance(part := clip.scores.get(name), Rect):
            region = _common(region, part)
    return region


def _common(a: Rect, b: Rect) -> Rect:
    """The part of two rectangles that both cover; empty (w or h 0) when there is none."""
    x, y = max(a.x, b.x), max(a.y, b.y)
    w, h = min(a.x + a.w, b.x + b.w) - x, min(a.y + a.h, b.y + b.h) - y
    return Rect(x, y, max(w, 0), max(h, 0))


def choose(clip: Clip, cfg: BucketsConfig) -> tuple[tuple[int, int], Rect] | None:
    """Bucket size (width, height) and crop of a clip, or None when it is too small.

    The crop lies in the text-free part of the picture without its bars, has the bucket's shape to within a pixel, is
    as large as fits, and is centred on the face. Of the aspects the one that keeps most of the picture wins; of the
    areas the largest that needs no more enlargement than ``max_upscale``.
    """
    region = usable_region(clip)
    if min(region.w, region.h) < cfg.step:
        return None
    fits = [(size, *_largest(region, size)) for size in sizes(cfg)]
    usable = [fit for fit in fits if fit[0][0] / fit[1] <= cfg.max_upscale]
    if not usable:
        smallest = min(size[0] * size[1] for size, _, _ in fits)
        usable = [f for f in fits if f[0][0] * f[0][1] == smallest and (f[0][0] / f[1]) ** 2 <= cfg.min_area_fit]
    if not usable:
        return None
    kept = max(w * h for _, w, h in usable)
    # among those that keep (almost) the most of the picture, the largest
    best = [fit for fit in usable if fit[1] * fit[2] >= 0.98 * kept]
    size, _, _ = max(best, key=lambda fit: (fit[0][0] * fit[0][1], fit[1] * fit[2]))
    return size, crop_for(clip, size)


def crop_for(clip: Clip, size: tuple[int, int]) -> Rect:
    """The crop of a clip for a bucket size (width, height): the largest of its shape in the usable region, on the face."""
    region = usable_region(clip)
    w, h = _largest(region, size)
    cx, cy = face_centre(clip) or (region.x + region.w / 2, region.y + region.h / 2)
    x = min(max(round(cx - w / 2), region.x), region.x + region.w - w)
    y = min(max(round(cy - h / 2), region.y), region.y + region.h - h)
    return Rect(x, y, w, h)


def _largest(region: Rect, size: tuple[int, int]) -> tuple[int, int]:
    scale = min(region.w / size[0], region.h / size[1])
    return max(min(round(size[0] * scale), region.w), 1), max(min(round(size[1] * scale), region.h), 1)


def frame_boxes(
    track: Track | None,
    name: Literal["boxes", "mouth_boxes"],
    start: int,
    frames: int,
    crop: Rect,
    size: tuple[int, int],
    max_gap: int = 25,
) -> np.ndarray:
    """Boxes of a track on every frame [start, start + frames) of its clip: float32 [F, 4] in bucket pixels.

    Linear between detections; NaN where the nearest detections are further apart than ``max_gap`` frames (one second:
    the tracker's own patience), more than half that before the first or after the last, or outside the crop.
    """
    out = np.full((frames, 4), np.nan, np.float32)
    if track is None or not getattr(track, name):
        return out
    at = np.asarray(track.box_frames, np.float64)
    boxes = np.asarray(getattr(track, name), np.float64)
    wanted = np.arange(start, start + frames)
    values = np.stack([np.interp(wanted, at, boxes[:, k]) for k in range(4)], 1)
    after = np.searchsorted(at, wanted)
    low, high = at[np.clip(after - 1, 0, None)], at[np.clip(after, None, len(at) - 1)]
    near = np.minimum(abs(wanted - low), abs(high - wanted)) <= max_gap / 2
    near &= (high - low <= max_gap) | (wanted == low) | (wanted == high)
    scale = np.array([size[0] / crop.w, size[1] / crop.h] * 2)
    values = (values - [crop.x, crop.y, crop.x, crop.y]) * scale
    values = np.clip(values, 0, [*size, *size])
    near &= (values[:, 2] > values[:, 0]) & (values[:, 3] > values[:, 1])
    out[near] = values[near]
    return out
