"""Videos as metrics see them: whole, on the 25 fps clock, at one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from configs.errors import EchoForgeError
from curation.media.clip_reader import read_clip
from curation.media.clock import scaled
from curation.media.container import named
from curation.media.video_file import VideoFile
from evaluation.metrics import Video

MAX_FRAMES = 25 * 60
"""A minute: metrics hold all frames in memory; longer videos are measured on their beginning."""


def read(path: Path, side: int) -> Video:
    """The first minute of a video with the longer side at ``side`` pixels (never enlarged).

    Raises:
        EchoForgeError: not a video.
    """
    with named(path, "give a video"), VideoFile(str(path), identify=False) as video:
        info = video.info
    if not info.duration_s:
        raise EchoForgeError(f"{path} does not say how long it is; remux it.")
    width, height = scaled(info.width, info.height, side)
    frames = min(MAX_FRAMES, max(1, int(info.duration_s * 25)))
    with named(path, "give a video that can be decoded"):
        clip = read_clip(str(path), 0, frames, width=width, height=height)
    return Video(np.asarray(clip.frames), clip.pcm if clip.has_sound else None)
