"""The sound of a video on the clock of its pictures: sample 0 is the time of the first frame.

A second demuxer reads the audio packets alone, on demand, so that memory stays bounded however the file interleaves
its streams. Time stamps place the samples: holes become silence, overlaps are cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self, cast

import av
import av.error
import numpy as np
from scipy.signal import resample_poly

from curation.media.container import BoundedFile, MediaError, check_sound, open_bytes, open_container, sound_stream
from curation.schema import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

_LONGEST_HOLE_S = 3600.0  # a time stamp further ahead is taken for damage
_TOLERANCE_S = 0.02  # time stamps off by less are jitter (containers round to 1 ms, 1/90 s …)
_MARGIN_S = 0.05  # context for the resampling filter on either side
_SEEK_FROM_S = 30.0  # decode from the start when the wanted sound begins earlier: always exact, and cheap
_PREROLL_S = 2.0
_PLANES = 8  # AV_NUM_DATA_POINTERS of FFmpeg's frame.h


@dataclass(frozen=True)
class Sound:
    """Sound of a span of frames."""

    pcm: np.ndarray  # float32 [frames·640] mono, 16 kHz
    native: np.ndarray  # float32 [n, channels]
    rate: int  # of ``native``
    measured: float  # share of the span that the file has sound for, 0..1


class SoundReader:
    """Reads forward. ``start_s``: nothing before it will be asked for. A context manager.

    ``present`` is False for a file without sound; every span of it is silence with ``measured`` 0.

    Raises:
        MediaError: the file cannot be opened, or its sound is none that anything records; from ``read`` as well,
            as a stream may change midway.
    """

    def __init__(self, uri: str, origin_s: float, start_s: float = 0.0) -> None:
        self._stack = ExitStack()
        try:
            file = BoundedFile(self._stack.enter_context(open_bytes(uri)))
            container = self._stack.enter_context(open_container(file))
            file.unbound()
            stream = sound_stream(container)
            self.present = stream is not None
            self.rate = int(stream.codec_context.sample_rate) if stream else SAMPLE_RATE
            self.channels = int(stream.codec_context.channels) if stream else 1
        except BaseException:
            self._stack.close()
            raise
        self._origin = origin_s
        self._base = 0  # native sample number of the first kept sample
        self._end = 0  # … and of the first sample not yet decoded
        self._blocks: list[np.ndarray] = []  # float32 [n, channels], contiguous
        self._source = self._decode(container, stream, start_s) if stream else iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def read(self, start_frame: int, end_frame: int, shift: int = 0) -> Sound:
        """Sound of frames [start, end), from 16 kHz sample ``640·start − shift`` on; silence where there is none.

        ``shift`` > 0 delays the sound (what an early one needs), as `offset_samples` of the catalog.
        """
        first, count = start_frame * SAMPLES_PER_FRAME - shift, (end_frame - start_frame) * SAMPLES_PER_FRAME
        step = self.rate // math.gcd(self.rate, SAMPLE_RATE)  # native samples after which both grids meet
        margin = math.ceil(_MARGIN_S * self.rate / step) * step
        grid = SAMPLE_RATE * step // self.rate
        begin = (first // grid) * step - margin
        end = -(-(first + count) // grid) * step + margin
        native, heard = self._native(begin, end)
        down = resample_poly(native.mean(axis=1), SAMPLE_RATE // math.gcd(self.rate, SAMPLE_RATE), step)
        skip = first - begin * SAMPLE_RATE // self.rate
        low = round(start_frame * self.rate / FPS) - begin
        high = round(end_frame * self.rate / FPS) - begin
        if shift:
            low, high = (n - round(shift * self.rate / SAMPLE_RATE) for n in (low, high))
        measured = float(np.clip((heard - low) / max(1, high - low), 0, 1))
        low = max(0, low)
        return Sound(down[skip : skip + count].astype(np.float32), native[low:high], self.rate, measured)

    def forget(self, before_frame: int) -> None:
        """Drop what lies more than a second before a frame; it will not be asked for again."""
        keep = round((before_frame / FPS - 1) * self.rate)
        while self._blocks and self._base + len(self._blocks[0]) <= keep:
            self._base += len(self._blocks.pop(0))

    def _native(self, begin: int, end: int) -> tuple[np.ndarray, int]:
        """Samples [begin, end) with zeros where nothing is kept; and how many of them come before the sound's end."""
        while self._end < end and (block := next(self._source, None)) is not None:
            self._blocks.append(block)
            self._end += len(block)
        out = np.zeros((end - begin, self.channels), np.float32)
        at = self._base
        for block in self._blocks:
            low, high = max(begin, at), min(end, at + len(block))
            if low < high:
                out[low - begin : high - begin] = block[low - at : high - at]
            at += len(block)
        return out, min(end, self._end) - begin

    def _decode(self, container: Any, stream: Any, start_s: float) -> Iterator[np.ndarray]:
        if start_s > _SEEK_FROM_S:
            container.seek(int((self._origin + start_s - _PREROLL_S) / stream.time_base), stream=stream)
            self._base = self._end = int((start_s - _PREROLL_S) * self.rate)
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all
        position, placed = self._end, False
        for frame in _frames(container, stream):
            samples = _samples(frame, self.rate, self.channels)
            if frame.pts is not None:
                wanted = round((cast(float, frame.time) - self._origin) * self.rate)
                if abs(wanted - position) > _TOLERANCE_S * self.rate or not placed:
                    placed, hole = True, wanted - position
                    while (missing := wanted - position) > 0 and hole <= _LONGEST_HOLE_S * self.rate:
                        silence = np.zeros((min(missing, self.rate), self.channels), np.float32)  # a second at a time
                        yield silence
                        position += len(silence)
                    samples = samples[-hole:] if hole < 0 else samples
            if len(samples):
                yield samples
                position += len(samples)


def _frames(container: Any, stream: Any) -> Iterator[av.AudioFrame]:
    packets, broken = container.demux(stream), 0
    while broken < 1000:
        try:
            yield from next(packets).decode()
        except (StopIteration, EOFError):
            return
        except av.error.FFmpegError:
            broken += 1


def _samples(frame: av.AudioFrame, rate: int, channels: int) -> np.ndarray:
    """float32 [n, channels] at ``rate``, whatever the sample format; a stream that changes midway is conformed.

    Eight planes and more are interleaved by FFmpeg first: PyAV looks for the end of a frame's planes by a null pointer,
    which after the eighth is not there, and crashes.
    """
    own = frame.layout.nb_channels
    if frame.sample_rate != rate or own != channels or frame.format.name != "fltp" or own >= _PLANES:
        check_sound(frame.sample_rate, own)
        layout = frame.layout.name if own == channels else ("mono" if channels == 1 else "stereo")
        resampler = av.AudioResampler(format="flt", layout=layout, rate=rate)
        try:
            parts = [*resampler.resample(frame), *resampler.resample(None)]
            arrays = [f.to_ndarray().reshape(-1, f.layout.nb_channels) for f in parts]
        except (av.error.FFmpegError, ValueError) as error:
            message = f"its sound cannot be converted ({frame.format.name}, {frame.layout.name}); save it as WAV first."
            raise MediaError("decode", message) from error
        data = np.concatenate(arrays) if arrays else np.zeros((0, channels), np.float32)
    else:
        data = frame.to_ndarray().T
    if data.shape[1] != channels:
        data = np.repeat(data.mean(axis=1, keepdims=True), channels, axis=1)
    return np.ascontiguousarray(data, np.float32)
