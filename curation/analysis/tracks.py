"""The faces of a clip: which of the tracker's belong to it, where they are, and which one speaks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from curation.clip import Box, Clip, Track
from curation.config import FacesConfig
from curation.faces import FaceTracker, TrackBox
from curation.operators.base import Span

_BOX_EVERY = 4  # boxes are stored for every 4th frame (one latent frame); clips have 4k+1 frames, so the ends are in
_PRESENT = 0.3  # a track in less of the clip than this is a passer-by or a mistake of the detector


@dataclass
class SeenFrame:
    """What became of one frame once its boxes were certain."""

    boxes: list[TrackBox]
    crops: dict[int, np.ndarray] = field(default_factory=dict)  # for the sync network, by the tracker's number


def clip_tracks(
    span: Span, seen: Mapping[int, SeenFrame], tracker: FaceTracker, step: int, cfg: FacesConfig
) -> dict[int, Track]:
    """The tracks of a clip, numbered from 0 within it, by the tracker's own numbers of them.

    Args:
        seen: by frame.
        step: frames between two detections.
    """
    places: dict[int, dict[int, TrackBox]] = defaultdict(dict)
    for frame in range(span.start, span.end):
        for box in seen[frame].boxes if frame in seen else []:
            places[box.track][frame - span.start] = box
    tracks: dict[int, Track] = {}
    for number, found in sorted(places.items()):
        if len(found) >= _PRESENT * len(span) and _certain(number, span, tracker, step, cfg):
            tracks[number] = _track(len(tracks), found, len(span))
    return tracks


def _track(track_id: int, found: Mapping[int, TrackBox], frames: int) -> Track:
    """A track from its boxes by frame of the clip, in order."""
    boxes = np.stack([b.box for b in found.values()])
    sizes = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    kept = [f for f in found if f % _BOX_EVERY == 0 or f == frames - 1] or list(found)[:1]
    return Track(
        track_id=track_id,
        boxes=tuple(_box(found[f].box) for f in kept),
        mouth_boxes=tuple(_box(found[f].mouth) for f in kept),
        box_frames=tuple(kept),
        size_px=float(np.median(sizes)),
        jitter=_jitter(boxes, sizes),
        frac_present=len(found) / frames,
    )


def _certain(number: int, span: Span, tracker: FaceTracker, step: int, cfg: FacesConfig) -> bool:
    """Was the face detected often enough, and in most looks from its first to its last within the clip?"""
    track = next((t for t in tracker.tracks if t.number == number), None)
    hits = [f for f in track.frames if span.start <= f < span.end] if track else []
    least = max(1, min(cfg.min_hits, len(span) // step // 3))  # short clips hold few looks: a third is asked for
    return len(hits) >= least and len(hits) >= cfg.min_hit_share * ((hits[-1] - hits[0]) // step + 1)


def largest(tracks: Sequence[Track]) -> int | None:
    """Index of the largest steady face; None: there is none."""
    return max(range(len(tracks)), key=lambda i: tracks[i].weight, default=None)


def with_speaker(clip: Clip, tracks: Sequence[Track], active: int | None, *, scored: bool) -> Clip:
    """The clip with its tracks, the speaking one, and what made it that: it is alone, its lips fit the sound best
    (``scored``), or it is the largest."""
    best = tracks[active] if active is not None else None
    if len(tracks) < 2:
        by = "alone" if tracks else None
    else:
        by = "sync" if scored else "size"
    return replace(
        clip,
        tracks=tuple(tracks),
        active_track=active,
        active_by=by,
        face_frac=best.frac_present if best else 0.0,
        face_px=best.size_px if best else None,
    )


def _box(box: np.ndarray) -> Box:
    x0, y0, x1, y1 = box.tolist()
    return x0, y0, x1, y1


def _jitter(boxes: np.ndarray, sizes: np.ndarray) -> float:
    """Mean absolute second difference of the centre, in shares of the face."""
    if len(boxes) < 3:
        return 0.0
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return float(np.abs(np.diff(centres, 2, axis=0)).mean() / max(float(np.median(sizes)), 1.0))
