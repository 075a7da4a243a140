"""Sync scores of a clip's tracks, and the speaking face: the one whose lips fit the sound best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from curation import schema
from curation.analysis.tracks import with_speaker
from curation.clip import Clip, Scores
from curation.sync import Residual, SyncBackend, SyncScore, measure_residual

_SCORED = 0.5  # a track in at least so much of the clip is asked whether it speaks

Crops = Mapping[int, np.ndarray]
"""Crops of one face, by frame of the clip."""


@dataclass(frozen=True)
class _Scored:
    """The sync score of one track, and what was scored: crops [F, …] and their sound float32 [F · 640]."""

    score: SyncScore
    crops: np.ndarray
    pcm: np.ndarray


def sync_scored(clip: Clip, crops: Sequence[Crops], pcm: np.ndarray, backend: SyncBackend, least: int) -> Clip:
    """The clip with its tracks' sync scores, the sync columns and the speaking face; as it is where nothing is scored.

    Args:
        crops: one for each track.
        pcm: float32 [frames · 640], the clip's sound at 16 kHz.
        least: fewest frames that are scored.
    """
    tracks = list(clip.tracks)
    best: _Scored | None = None  # the crops of one face at a time stay in memory beside the best's
    speaking = 0
    for i, track in enumerate(clip.tracks):
        result = _score(crops[i], pcm, backend, least) if track.frac_present >= _SCORED else None
        if result is None:
            continue
        score = result.score
        conf = score.conf / backend.unit
        tracks[i] = replace(track, av_offset=_int8(score.offset_frames), conf=conf, dist=score.dist)
        if best is None or score.conf > best.score.conf:
            speaking, best = i, result
    if best is None:
        return clip
    residual = measure_residual(backend, best.crops, best.pcm, best.score.offset_frames, least)
    scored = clip.scored(_columns(best.score, residual, backend))
    return with_speaker(scored, tracks, speaking, scored=True)


def _score(crops: Crops, pcm: np.ndarray, backend: SyncBackend, least: int) -> _Scored | None:
    """Score the longest unbroken stretch of a track's crops against its sound; None where it is too short."""
    have = sorted(crops)
    runs = np.split(np.asarray(have), np.flatnonzero(np.diff(have) > 1) + 1) if have else []
    run = max(runs, key=len, default=np.empty(0, int))
    if len(run) < least:
        return None
    first = int(run[0])
    part = pcm[first * schema.SAMPLES_PER_FRAME : (first + len(run)) * schema.SAMPLES_PER_FRAME]
    cut = np.stack([crops[int(frame)] for frame in run])
    return _Scored(backend.score(cut, part), cut, part)


def _columns(score: SyncScore, residual: Residual, backend: SyncBackend) -> Scores:
    columns: Scores = {
        "sync_backend": backend.name,
        "av_offset_frames": _int8(score.offset_frames),
        "residual_offset": None if residual.offset_frames is None else _int8(residual.offset_frames),
        "residual_frames": residual.frames,
    }
    if backend.name == "syncnet_v2":
        return columns | {"sync_c": score.conf, "sync_d": score.dist}
    return columns | {"sync_fit_conf": score.conf / backend.unit}


def _int8(offset: int) -> int:
    return int(np.clip(offset, -128, 127))
