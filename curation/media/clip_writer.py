"""Writing a clip: uint8 frames and 16 kHz sound → one MP4 (H.264 + AAC) through PyAV, whole or not at all."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import EchoForgeError
from configs.runtime import disk
from curation.schema import FPS, SAMPLE_RATE

if TYPE_CHECKING:
    import av

_AUDIO_FRAME = 1024  # samples in one AAC frame


_REPEATABLE = {"mbtree": "0"}
"""x264's macroblock tree is not: with it, one file in a hundred or two differs from its twin, even in one thread."""


def write_video(
    path: str | Path,
    frames: np.ndarray,
    pcm: np.ndarray | None,
    fps: int = FPS,
    *,
    sample_rate: int = SAMPLE_RATE,
    crf: int = 18,
    preset: str = "veryfast",
) -> Path:
    """Write ``frames`` with ``pcm`` as sound; both start at time 0. The file appears by rename when it is complete.

    Args:
        path: target, ``.mp4``; an existing file is replaced.
        frames: uint8 [F, H, W, 3] RGB; odd sizes lose their last row or column (H.264 4:2:0 needs even ones).
        pcm: float32 [n] mono in −1..1 (clipped) at ``sample_rate`` Hz; None: a video without sound.
        fps: frames per second.
        crf: x264's constant rate factor (18: visually lossless), ``preset`` its speed.

    Raises:
        EchoForgeError: empty or misshapen frames, or the file cannot be written.
    """
    import av

    path = Path(path)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or min(frames.shape[:3]) < 1:
        raise EchoForgeError(f"{path.name}: frames must be uint8 [F, H, W, 3], got {frames.dtype} {frames.shape}.")
    if min(frames.shape[1:3]) < 2:
        raise EchoForgeError(
            f"{path.name}: a video must be at least 2 × 2 pixels, got {frames.shape[2]} × {frames.shape[1]}."
        )
    try:
        with (
            disk.replacing(path) as part,
            av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container,
        ):
            _mux(container, frames, pcm, fps, sample_rate, {"crf": str(crf), "preset": preset} | _REPEATABLE)
    except (OSError, av.error.FFmpegError) as error:
        raise EchoForgeError(f"{path} could not be written: {error}.") from error
    return path


def _mux(
    container: av.container.OutputContainer,
    frames: np.ndarray,
    pcm: np.ndarray | None,
    fps: int,
    sample_rate: int,
    options: dict[str, str],
) -> None:
    """Encode second by second, picture before sound, so that the two streams lie interleaved in the file."""
    height, width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
    video = container.add_stream("libx264", rate=fps, options=options)
    video.width, video.height, video.pix_fmt = width, height, "yuv420p"
    video.codec_context.thread_count = 1  # callers parallelise over clips; one thread also makes the bytes repeatable
    sound = None
    if pcm is not None:
        sound = container.add_stream("aac", rate=sample_rate, layout="mono")
        sound.bit_rate = 64_000 if sample_rate <= 16_000 else 128_000
        pcm = np.clip(np.asarray(pcm, np.float32), -1.0, 1.0)
    heard = 0
    for index, image in enumerate(frames):
        _picture(container, video, np.ascontiguousarray(image[:height, :width]), index, fps)
        last = index == len(frames) - 1
        if sound is not None and pcm is not None and (last or (index + 1) % fps == 0):
            until = len(pcm) if last else (index + 1) * sample_rate // fps // _AUDIO_FRAME * _AUDIO_FRAME
            _sound(container, sound, pcm[:until], heard, sample_rate)
            heard = max(heard, until)
    container.mux(video.encode(None))
    if sound is not None:
        container.mux(sound.encode(None))


def _picture(
    container: av.container.OutputContainer, stream: av.VideoStream, image: np.ndarray, index: int, fps: int
) -> None:
    import av

    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    frame.pts, frame.time_base = index, Fraction(1, fps)
    container.mux(stream.encode(frame))


def _sound(
    container: av.container.OutputContainer, stream: av.AudioStream, pcm: np.ndarray, start: int, rate: int
) -> None:
    import av

    for at in range(start, len(pcm), _AUDIO_FRAME):
        frame = av.AudioFrame.from_ndarray(pcm[None, at : at + _AUDIO_FRAME], format="fltp", layout="mono")
        frame.pts, frame.sample_rate, frame.time_base = at, rate, Fraction(1, rate)
        container.mux(stream.encode(frame))
