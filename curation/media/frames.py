"""Decoded frames, shown as on a screen: aspect, rotation, colour range and tone curve applied, at any size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from curation.media.tone_mapping import HLG, PQ, tone_curve

cv2.setNumThreads(1)  # workers are processes; OpenCV's own threads would fight over the cores

_UNSPECIFIED, _BT709 = 2, 1  # AVColorSpace


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
