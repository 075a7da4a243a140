"""Clips for `sync fit`: from puppets in memory, or from those of a catalog (cut with their tracked boxes)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from configs.runtime import stopping
from curation.clip import Box, Clip, Track
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


def boxes_per_frame(track: Track, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Face and mouth boxes float32 [frames, 4] each, interpolated between the frames where a track has them."""
    at = np.asarray(track.box_frames, np.float32)

    def spread(boxes: Sequence[Box]) -> np.ndarray:
        known = np.asarray(boxes, np.float32)
        return np.stack([np.interp(np.arange(frames), at, column) for column in known.T], 1).astype(np.float32)

    return spread(track.boxes), spread(track.mouth_boxes)


def usable(clip: Clip) -> bool:
    """Whether a clip may be taken for one in sync.

    It has a face that may speak, is not rejected, and is not held with an offset that the decision does not correct.
    """
    rejected = clip.decision is not None and clip.decision.verdict in ("reject", "error")
    out_of_sync = bool(clip.scores.get("av_offset_frames")) and not _delay(clip)
    return not rejected and clip.active is not None and not out_of_sync


def catalog_clips(clips: Iterable[Clip], need: CropNeed = CROP) -> Iterator[SyncClip]:
    """Read the clips of a catalog that are :func:`usable` and have sound."""
    for clip in clips:
        if not usable(clip) or clip.active is None:
            continue
        stopping.check()
        face, mouth = boxes_per_frame(clip.active, len(clip))
        seen = read_clip(
            clip.source_uri,
            clip.start_frame,
            clip.end_frame,
            width=clip.width,
            height=clip.height,
            offset_samples=_delay(clip),
        )
        if seen.has_sound:
            yield SyncClip(clip.video_id, cut_all(seen.frames, face, mouth, need), seen.pcm)


def _delay(clip: Clip) -> int:
    """Samples that the decision delays the sound by."""
    return (clip.decision.offset_samples if clip.decision else None) or 0
