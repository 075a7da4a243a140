"""A clip, exactly as the catalog names it: frames on the 25 fps clock, cropped and scaled, with its corrected sound."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np

from curation.media.audio import SoundReader
from curation.media.clock import Tick, on_clock
from curation.media.container import MediaError
from curation.media.frames import Display
from curation.media.video_file import VideoFile
from curation.schema import FPS

_MAX_GAP_S = 3600.0


class ReadClip(NamedTuple):
    """What :func:`read_clip` returns."""

    frames: np.ndarray  # uint8 [F, height, width, 3] RGB
    pcm: np.ndarray  # float32 [F·640] mono at 16 kHz, corrected by the offset
    context: np.ndarray  # float32 [(F + 2·context_frames)·640]: the same with sound before and after; zeros outside
    has_sound: bool


def read_clip(
    uri: str,
    start_frame: int,
    end_frame: int,
    *,
    width: int,
    height: int,
    crop: Mapping[str, int] | None = None,
    offset_samples: int = 0,
    context_frames: int = 0,
    threads: int = 1,
) -> ReadClip:
    """Read frames [start_frame, end_frame) of a video.

    Args:
        crop: x, y, w, h in displayed pixels; None: the whole picture. It is scaled to ``width`` × ``height`` as it
            is, so choose it with their shape. Areas are averaged when shrinking, Lanczos when enlarging.
        offset_samples: > 0 delays the sound by so many 16 kHz samples (an early one), < 0 advances it.
        context_frames: frames' worth of sound wanted on either side, for encoders with a wide view.

    Raises:
        MediaError: the file cannot be read, or ends before ``end_frame``.
    """
    frames = np.empty((end_frame - start_frame, height, width, 3), np.uint8)
    with VideoFile(uri, threads, identify=False) as video:
        size = video.display.size
        x, y, w, h = (crop["x"], crop["y"], crop["w"], crop["h"]) if crop else (0, 0, *size)
        if x < 0 or y < 0 or w < 1 or h < 1 or x + w > size[0] or y + h > size[1]:
            raise MediaError("crop", f"the crop {w}x{h}+{x}+{y} does not lie in the {size[0]}x{size[1]} picture.")
        method = cv2.INTER_AREA if w >= width and h >= height else cv2.INTER_LANCZOS4
        origin, count, last = video.info.origin_s, 0, None
        ticks = on_clock(video.frames_from(start_frame / FPS), origin, _MAX_GAP_S, start_frame)
        for tick in islice(ticks, len(frames)):
            if not tick.repeated or last is None:
                part = full_picture(tick, video.display)[y : y + h, x : x + w]
                last = part if (w, h) == (width, height) else cv2.resize(part, (width, height), interpolation=method)
                tick.frame.release()
            frames[count] = last
            count += 1
    if count < len(frames):
        message = f"the video ends at frame {start_frame + count}, before frame {end_frame} of the clip."
        raise MediaError("decode", message)
    pcm, context, present = _read_sound(uri, origin, start_frame, end_frame, offset_samples, context_frames)
    return ReadClip(frames, pcm, context, present)


def read_still(uri: str, start_frame: int, end_frame: int, *, width: int, height: int) -> np.ndarray:
    """Some picture of frames [start_frame, end_frame), the one that is decoded soonest: uint8 [height, width, 3] RGB.

    Raises:
        MediaError: the file cannot be read, or none of these frames.
    """
    with VideoFile(uri, identify=False) as video:
        begin, end = (video.info.origin_s + frame / FPS for frame in (start_frame, end_frame))
        video.seek(end - 1 / FPS)
        for frame in video.frames():
            if frame.time >= begin - 0.5 / FPS:
                return frame.picture(width, height)
    raise MediaError("decode", f"the video ends before frame {start_frame}.")


def full_picture(tick: Tick, display: Display) -> np.ndarray:
    """The frame at its displayed size: uint8 [height, width, 3] RGB."""
    return tick.frame.picture(*display.size)


def _read_sound(
    uri: str, origin_s: float, start: int, end: int, shift: int, context: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    begin = max(0.0, (start - context) / FPS - abs(shift) / 16_000)
    with SoundReader(uri, origin_s, begin) as sound:
        wide = sound.read(start - context, end + context, shift).pcm
        pcm = wide if not context else sound.read(start, end, shift).pcm
        return pcm, wide, sound.present
