"""Clips for `sync fit`: from puppets in memory, or from rows of a catalog (cut with their tracked boxes)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from configs.runtime import stopping
from curation.media.clip_reader import read_clip
from curation.puppets import Puppet
from curation.sync.base import CropNeed
from curation.sync.crops import cut_all
from curation.sync.fit import SyncClip
from curation.sync.fitted import CROP

_MOUTH_Y = 0.82  # of a puppet's face box


def puppet_clip(name: str, puppet: Puppet, need: CropNeed = CROP) -> SyncClip:
    """A rendered puppet as it would come out of curation; the mouth box follows the face, not the truth."""
    face = puppet.truth.face_boxes
    width, height = face[:, 2] - face[:, 0], face[:, 3] - face[:, 1]
    x, y = (face[:, 0] + face[:, 2]) / 2, face[:, 1] + _MOUTH_Y * height
    mouth = np.stack([x - 0.3 * width, y - 0.18 * height, x + 0.3 * width, y + 0.18 * height], 1)
    return SyncClip(name, cut_all(puppet.frames, face, mouth, need), puppet.pcm)


def boxes_per_frame(track: Mapping[str, Any], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Face and mouth boxes float32 [frames, 4] each, interpolated between the frames where a track has them."""
    at = np.asarray(track["box_frames"], np.float32)

    def spread(boxes: Any) -> np.ndarray:
        known = np.asarray([list(b) for b in boxes], np.float32)
        return np.stack([np.interp(np.arange(frames), at, column) for column in known.T], 1).astype(np.float32)

    return spread(track["boxes"]), spread(track["mouth_boxes"])


def usable(row: Mapping[str, Any]) -> bool:
    """Whether a clip (schema `catalog.CLIPS`) may be taken for one in sync.

    It has a face that may speak, is not rejected, and is not held with an offset that the decision does not correct.
    """
    out_of_sync = bool(row.get("av_offset_frames")) and not row.get("offset_samples")
    return (
        row.get("verdict") not in ("reject", "error")
        and row.get("active_track") is not None
        and bool(row.get("tracks"))
        and not out_of_sync
    )


def catalog_clips(rows: Iterable[Mapping[str, Any]], need: CropNeed = CROP) -> Iterator[SyncClip]:
    """Read the clips of catalog rows that are :func:`usable` and have sound."""
    for row in filter(usable, rows):
        stopping.check()
        start, end = int(row["start_frame"]), int(row["end_frame"])
        face, mouth = boxes_per_frame(row["tracks"][int(row["active_track"])], end - start)
        clip = read_clip(
            row["source_uri"],
            start,
            end,
            width=int(row["width"]),
            height=int(row["height"]),
            offset_samples=int(row.get("offset_samples") or 0),
        )
        if clip.has_sound:
            yield SyncClip(str(row["video_id"]), cut_all(clip.frames, face, mouth, need), clip.pcm)
