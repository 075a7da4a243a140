"""The video stream of a file: what the header and the first frame say, and the decoded frames in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Self, cast

import av
import av.error

from curation import schema
from curation.media.container import BoundedFile, MediaError, open_bytes, open_container, sound_stream
from curation.media.frames import AvFrame, Deinterlacer, Display, Frame, Scalers
from curation.media.tone_mapping import HLG, PQ

_LEAST_SIDE, _MOST_STRETCHED = 16, 16  # pixels; and the longer side over the shorter one
_MOST_PIXELS = 36_000_000  # 8K is 33 million; a few dozen decoded frames are held at a time
_SEEK_FROM_S = 10.0  # decoding from the start is exact and cheaper than a seek before this
_PREROLL_S = 1.0  # the key frame before it is where decoding begins
_MICRO = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class MediaInfo:
    """What the header and the first frame say."""

    uri: str
    video_id: str
    bytes: int
    container: str
    vcodec: str
    acodec: str | None
    duration_s: float | None  # promised by the header, of the video stream where it says so
    fps: float
    width: int  # displayed: after sample aspect and rotation
    height: int
    rotation: int  # degrees, counter-clockwise, that the frame is turned for display: 0, 90, 180, 270
    sample_rate: int | None
    channels: int | None
    hdr: bool  # PQ or HLG: shown through a tone curve
    interlaced: bool
    origin_s: float  # time stamp of the first frame: zero of the 25 fps clock and of the sound


class VideoFile:
    """An open video: ``info`` and the decoded frames, in order of presentation. A context manager.

    Raises:
        MediaError: not a video, or no frame of it can be decoded.
    """

    def __init__(self, uri: str, threads: int = 1, *, identify: bool = True) -> None:
        self.damaged_packets = 0
        self._scalers = Scalers()
        self._stack = ExitStack()
        try:
            file = BoundedFile(self._stack.enter_context(open_bytes(uri)))
            self.container = self._stack.enter_context(open_container(file))
            self.stream = self._pick_stream(threads)
            self._first, first = self._decode_first()
            file.unbound()
            self.info, self.display = self._describe(uri, file.size, first)
            if identify:  # last: what is no video is not read to its end
                with open_bytes(uri) as whole:
                    self.info = replace(self.info, video_id=schema.video_id(whole))
            self._deinterlace = Deinterlacer(self.stream) if self.info.interlaced else None
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def frames(self) -> Iterator[Frame]:
        """Every frame from where the file stands; damaged ones are marked, undecodable packets counted."""
        for frame in self._filtered():
            yield self._wrap(frame)

    def frames_from(self, seconds: float) -> Iterator[Frame]:
        """Frames from a key frame at or before ``seconds`` after the first frame; from the start where a seek is worse."""
        if seconds > _SEEK_FROM_S:
            self.seek(self.info.origin_s + seconds - _PREROLL_S)
            frames = self.frames()
            first = next(frames, None)
            if first is not None and first.time - self.info.origin_s <= seconds:
                yield first
                yield from frames
                return
            self.seek(self.info.origin_s)  # no usable index: the seek went past the place
        yield from self.frames()

    def seek(self, seconds: float) -> None:
        """Go to the key frame at or before ``seconds`` on the container's clock."""
        self._first = iter(())
        base = cast(Any, self.stream.time_base)
        self.container.seek(int(seconds / base), stream=self.stream, backward=True)
        self._first = self._packets()

    def _filtered(self) -> Iterator[av.VideoFrame]:
        if self._deinterlace is None:
            yield from self._first
        else:
            yield from self._deinterlace.run(self._first)

    def _wrap(self, frame: av.VideoFrame) -> Frame:
        base = frame.time_base or self.stream.time_base
        duration = float((frame.duration or 0) * base) if base else 0.0
        return AvFrame(frame, cast(float, frame.time), duration or 1 / self.info.fps, self.display, self._scalers)

    def _pick_stream(self, threads: int) -> av.VideoStream:
        for stream in self.container.streams.video:
            if not stream.disposition & av.stream.Disposition.attached_pic and stream.codec_context is not None:
                self._check_pixels(stream.codec_context.width, stream.codec_context.height)
                stream.codec_context.options = {"max_pixels": str(_MOST_PIXELS)}  # the stream may change its mind
                stream.thread_count = threads
                stream.thread_type = "AUTO" if threads > 1 else "NONE"
                for other in self.container.streams:
                    if other is not stream:
                        other.discard = av.stream.Discard.all
                return stream
        raise MediaError("probe", "there is no video stream in the file; give a file that holds pictures.")

    def _packets(self) -> Iterator[av.VideoFrame]:
        step = 1 / float(self.stream.average_rate or self.stream.guessed_rate or 25)
        time = None
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
                decoded = packet.decode()
            except (StopIteration, EOFError):
                return
            except av.error.FFmpegError:
                self.damaged_packets += 1
                if self.damaged_packets > 1000:  # a file of noise: demuxing on would find nothing
                    return
                continue
            for frame in cast(list[av.VideoFrame], decoded):
                if frame.pts is None:  # raw streams carry no time stamps
                    time = 0.0 if time is None else time + step
                    frame.time_base, frame.pts = _MICRO, round(time * 1_000_000)
                time = cast(float, frame.time)
                yield frame

    def _decode_first(self) -> tuple[Iterator[av.VideoFrame], av.VideoFrame]:
        packets = self._packets()
        first = next(packets, None)
        if first is None:
            raise MediaError("decode", "no frame can be decoded; the file is damaged or its codec is unknown.")

        def chained() -> Iterator[av.VideoFrame]:
            yield first
            yield from packets

        return chained(), first

    @staticmethod
    def _check_pixels(width: int, height: int) -> None:
        if width * height > _MOST_PIXELS:
            most = _MOST_PIXELS / 1e6
            message = f"the picture is {width}x{height} pixels; scale it below {most:.0f} megapixels first."
            raise MediaError("probe", message)

    def _describe(self, uri: str, size: int, first: av.VideoFrame) -> tuple[MediaInfo, Display]:
        stream, audio = self.stream, sound_stream(self.container)
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        rotation = round(first.rotation / 90) * 90 % 360
        display = Display(first.width, first.height, aspect, rotation)
        width, height = display.size
        if min(width, height) < _LEAST_SIDE or max(width, height) > _MOST_STRETCHED * min(width, height):
            raise MediaError("probe", f"the picture is {width}x{height} pixels; nobody can be seen in that.")
        self._check_pixels(width, height)
        info = MediaInfo(
            uri=uri,
            video_id="",
            bytes=size,
            container=self.container.format.name.split(",")[0],
            vcodec=stream.codec_context.name,
            acodec=audio.codec_context.name if audio else None,
            duration_s=self._promised(cast(float, first.time)),
            fps=float(stream.average_rate or stream.guessed_rate or 25),
            width=display.size[0],
            height=display.size[1],
            rotation=rotation,
            sample_rate=audio.codec_context.sample_rate if audio else None,
            channels=audio.codec_context.channels if audio else None,
            hdr=first.color_trc in (PQ, HLG),
            interlaced=bool(first.interlaced_frame),
            origin_s=cast(float, first.time),
        )
        return info, display

    def _promised(self, origin_s: float) -> float | None:
        """Seconds of video that the header promises; None where it promises none for the video alone.

        Matroska counts from time 0 to the end of the last frame, so what comes before the first one is taken off.
        """
        if self.stream.duration:
            return float(self.stream.duration * cast(Any, self.stream.time_base))
        if tag := re.fullmatch(r"(\d+):(\d+):([\d.]+)", self.stream.metadata.get("DURATION", "")):
            return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) - max(0.0, origin_s)
        alone = len(self.container.streams) == 1 and self.container.duration
        return self.container.duration / 1_000_000 - max(0.0, origin_s) if alone else None
