"""Opening a file that may be anything: what is in it, and its decoded frames in displayed geometry.

Files are opened as bytes, never by a name that FFmpeg would parse, so ``concat:``, a leading dash or a newline are
only names; playlists and still-image demuxers, which would open other files, are refused.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Self, cast

import av
import av.error
import cv2
import fsspec
import numpy as np
from av.video.reformatter import VideoReformatter

from configs.errors import EchoForgeError
from curation import schema
from curation.media.tone_mapping import HLG, PQ, tone_curve

cv2.setNumThreads(1)  # workers are processes; OpenCV's own threads would fight over the cores

FORMATS = (
    "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,mxf,rm,nut,gif,ivf,obu,h264,hevc,m4v,dv,wtv,"
    "yuv4mpegpipe,wav,mp3,aac,flac,ac3,amr,aiff,caf,w64"
)
"""Demuxers that are used. Left out: playlists (hls, dash, concat) and still images (image2, ``*_pipe``)."""

_LEAST_SIDE, _MOST_STRETCHED = 16, 16  # pixels; and the longer side over the shorter one
_MOST_PIXELS = 36_000_000  # 8K is 33 million; a few dozen decoded frames are held at a time
_RATES = 4_000, 384_000  # Hz: half of a telephone's, and the fastest converters'; beyond, buffers of a second burst
_MOST_CHANNELS = 64  # ambisonics of the 7th order; FFmpeg decodes up to 64 channels of most formats
_PROBE_BYTES = 64 << 20  # read at most before the first frame: an 8K frame without compression is 50 MB
_SEEK_FROM_S = 10.0  # decoding from the start is exact and cheaper than a seek before this
_PREROLL_S = 1.0  # the key frame before it is where decoding begins
_MICRO = Fraction(1, 1_000_000)
_UNSPECIFIED, _BT709 = 2, 1  # AVColorSpace


class MediaError(EchoForgeError):
    """A file that cannot be used. ``stage`` says where it failed: open, probe, decode, budget."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


@contextlib.contextmanager
def named(path: str | os.PathLike[str], wanted: str) -> Iterator[None]:
    """Name the file in the errors of its reader, which say only what is wrong; ``wanted`` says what to give instead."""
    try:
        yield
    except MediaError as error:
        raise MediaError(error.stage, f"{os.fspath(path)}: {str(error).rstrip('.')}; {wanted}.") from error


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


@dataclass(frozen=True)
class Display:
    """From the pixels of the codec to those of the screen: stretched by the sample aspect, then turned."""

    coded_width: int
    coded_height: int
    sample_aspect: float = 1.0
    rotation: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Displayed (width, height)."""
        width, height = max(1, round(self.coded_width * self.sample_aspect)), self.coded_height
        return (height, width) if self.rotation in (90, 270) else (width, height)

    def turn(self, image: np.ndarray) -> np.ndarray:
        """Rotate an image of the codec's orientation into the displayed one."""
        return np.ascontiguousarray(np.rot90(image, self.rotation // 90)) if self.rotation else image


class Frame:
    """One decoded frame. Pictures of it are made on demand, each size once."""

    def __init__(self, time: float, duration: float, damaged: bool) -> None:
        self.time = time  # seconds, on the container's clock
        self.duration = duration
        self.damaged = damaged
        self._pictures: dict[tuple[int, int, bool], np.ndarray] = {}

    def picture(self, width: int, height: int, gray: bool = False) -> np.ndarray:
        """The whole displayed frame at ``width`` × ``height``: uint8 [h, w, 3] RGB, or [h, w] when ``gray``."""
        key = (width, height, gray)
        if key not in self._pictures:
            self._pictures[key] = self._render(width, height, gray)
        return self._pictures[key]

    def release(self) -> None:
        """Drop the pictures made so far (the decoded frame stays)."""
        self._pictures.clear()

    def _render(self, width: int, height: int, gray: bool) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} cannot be shown")


class AvFrame(Frame):
    """A frame decoded by PyAV; swscale converts and scales in one go."""

    def __init__(self, frame: av.VideoFrame, time: float, duration: float, display: Display, scalers: Scalers) -> None:
        super().__init__(time, duration, bool(frame.is_corrupt))
        self._frame = frame
        self._display = display
        self._scalers = scalers

    def _render(self, width: int, height: int, gray: bool) -> np.ndarray:
        turned = self._display.rotation in (90, 270)
        image = self._scalers.scale(self._frame, *((height, width) if turned else (width, height)), gray)
        return self._display.turn(image)


class ArrayFrame(Frame):
    """A frame that is already an array (decord): uint8 [h, w, 3] RGB as displayed."""

    def __init__(self, image: np.ndarray, time: float, duration: float) -> None:
        super().__init__(time, duration, damaged=False)
        self._image = image

    def _render(self, width: int, height: int, gray: bool) -> np.ndarray:
        image = self._image
        if (width, height) != (image.shape[1], image.shape[0]):
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if gray else image


class Scalers:
    """swscale contexts, one per output size, kept: making one costs as much as a small picture."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int, bool], VideoReformatter] = {}

    def scale(self, frame: av.VideoFrame, width: int, height: int, gray: bool) -> np.ndarray:
        """uint8 [height, width(, 3)] by area averaging, range and matrix as tagged (BT.709 when HD says nothing)."""
        scaler = self._kept.setdefault((width, height, gray), VideoReformatter())
        matrix = frame.colorspace
        if matrix == _UNSPECIFIED and min(frame.width, frame.height) >= 720:
            matrix = _BT709
        same = (width, height) == (frame.width, frame.height)
        small = scaler.reformat(
            frame,
            width=width,
            height=height,
            format="gray8" if gray else "rgb24",
            src_colorspace=matrix,
            src_color_range=frame.color_range,
            dst_color_range=2,  # full: 0..255
            interpolation="POINT" if same else "AREA",
            threads=1,
        )
        image = cast(np.ndarray, small.to_ndarray())
        return cv2.LUT(image, tone_curve(frame.color_trc)) if frame.color_trc in (PQ, HLG) else image


def open_bytes(uri: str) -> IO[bytes]:
    """The bytes of a local path, or of an fsspec URL (``s3://…``), seekable.

    Raises:
        MediaError: missing, not a file, empty or unreadable.
    """
    try:
        if re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]*://", uri):
            return cast(IO[bytes], fsspec.open(uri, "rb").open())
        path = Path(uri)
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise MediaError("open", "it is not a file that holds bytes (a folder, a pipe or a device).")
        if path.is_file() and path.stat().st_size == 0:
            raise MediaError("open", "the file is empty (0 bytes); copy or download it again.")
        return path.open("rb")
    except (OSError, ValueError) as error:
        if not_utf8(uri):
            raise MediaError("open", "its name is not valid UTF-8; rename the file.") from error
        raise MediaError("open", f"the file cannot be read ({_short(error)}).") from error


def not_utf8(name: str) -> bool:
    """Was this name (as :func:`utf8` writes it) made of bytes that are no text?"""
    return re.search(r"\\udc[89a-f][0-9a-f]", name) is not None


def utf8(name: str) -> str:
    r"""A file name that any table can hold: bytes that are not UTF-8 as ``\udcXX``."""
    return name.encode("utf-8", "backslashreplace").decode()


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


class Deinterlacer:
    """bwdif over the frames that are marked as interlaced, one frame out per frame in."""

    def __init__(self, stream: av.VideoStream) -> None:
        self._stream = stream

    def run(self, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """The frames, whole."""
        graph = av.filter.Graph()
        source = graph.add_buffer(template=self._stream)
        bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
        sink = graph.add("buffersink")
        source.link_to(bwdif)
        bwdif.link_to(sink)
        graph.configure()
        for frame in frames:
            graph.push(frame)
            yield from self._pull(graph)
        graph.push(None)
        yield from self._pull(graph)

    @staticmethod
    def _pull(graph: av.filter.Graph) -> Iterator[av.VideoFrame]:
        while True:
            try:
                yield cast(av.VideoFrame, graph.pull())
            except (av.error.BlockingIOError, av.error.EOFError):
                return


class BoundedFile:
    """An open file that ends after some megabytes until :meth:`unbound`, so that junk is not searched to its end.

    Demuxers skip what they do not understand, gigabytes of it if need be.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.name = getattr(file, "name", "")
        self.size = file.seek(0, 2)
        file.seek(0)
        self.seek, self.tell = file.seek, file.tell
        self._read, self._left = file.read, float(_PROBE_BYTES)

    def read(self, size: int = -1) -> bytes:
        """As of any file; nothing once the limit is reached."""
        data = self._read(size) if self._left > 0 else b""
        self._left -= len(data)
        return data

    def unbound(self) -> None:
        """Something was found: read as much as is asked for from here on.

        Raises:
            MediaError: it was found at the limit, so the demuxer took that for the end of the file.
        """
        if self._left <= 0:
            raise MediaError("open", f"nothing to show is found in its first {_PROBE_BYTES >> 20} MB; it is no video.")
        self._left = math.inf


def open_container(file: BoundedFile) -> Any:
    """The demuxer of an open file, by content and not by name. It opens no other file and no address.

    Raises:
        MediaError: no known container.
    """
    try:
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        return av.open(file, options=options, metadata_errors="replace", buffer_size=262_144)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        message = f"the file is not a video that can be opened ({_short(error)}); it is damaged or of another kind."
        raise MediaError("open", message) from error


def sound_stream(container: Any) -> Any:
    """The audio stream that a player would choose, or None.

    Raises:
        MediaError: see :func:`check_sound`.
    """
    usable = [s for s in container.streams.audio if (c := s.codec_context) is not None and c.sample_rate and c.channels]
    best = container.streams.best("audio") if usable else None
    chosen = best if best in usable else (usable[0] if usable else None)
    if chosen is not None:
        check_sound(chosen.codec_context.sample_rate, chosen.codec_context.channels)
    return chosen


def check_sound(rate: int, channels: int) -> None:
    """Refuse sound that nothing records: a header of a few bytes can promise two billion samples a second.

    Raises:
        MediaError: ``rate`` (Hz) or ``channels`` beyond what there is.
    """
    if not _RATES[0] <= rate <= _RATES[1] or channels > _MOST_CHANNELS:
        message = f"its sound has {rate} Hz and {channels} channels; convert it to 16 or 48 kHz, mono or stereo, first."
        raise MediaError("probe", message)


def probe(uri: str) -> MediaInfo:
    """Header and first frame of a video.

    Raises:
        MediaError: not a video, or no frame of it can be decoded.
    """
    with VideoFile(uri) as file:
        return file.info


def _short(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:120]
