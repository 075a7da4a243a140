"""One pass over the frames of a video, put on the 25 fps clock.

Tick ``i`` shows the latest frame whose time is before (i + ½)/25 s after the first frame's: the nearest frame for
sources at 25 fps or faster, the one on screen for slower and variable ones. Time stamps decide, never frame counts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from configs.runtime import stopping
from curation.config import VideoConfig
from curation.media.container import MediaError
from curation.media.decord_reader import DecordFile
from curation.media.frames import Frame
from curation.media.video_file import VideoFile
from curation.operators.base import FrameNeed, Picture
from curation.schema import FPS


@dataclass(frozen=True)
class Tick:
    """One step of the clock."""

    index: int
    frame: Frame
    repeated: bool  # the same frame as one tick earlier


def on_clock(frames: Iterable[Frame], origin_s: float, max_gap_s: float, first: int = 0) -> Iterator[Tick]:
    """Frames in order of presentation → one tick per 1/25 s, from tick ``first`` to the end of the last frame.

    Raises:
        MediaError: a hole of more than ``max_gap_s`` between two time stamps.
    """
    index, shown, current = 0, None, None
    for frame in frames:
        start = frame.time - origin_s
        if current is not None:
            gap = frame.time - current.time
            if gap <= 0:
                continue  # out of order: the frame before it stays on screen
            if gap > max_gap_s:
                at = current.time - origin_s
                raise MediaError("decode", f"the time stamps jump by {gap:.0f} s at {at:.1f} s; remux the file.")
            while (index + 0.5) / FPS <= start:
                if index >= first:
                    yield Tick(index, current, current is shown)
                    shown = current
                index += 1
        current = frame
    if current is None:
        return
    last = max(first + 1 if shown is None else 0, round((current.time - origin_s + current.duration) * FPS), 1)
    while index < last:
        if index >= first:
            yield Tick(index, current, current is shown)
            shown = current
        index += 1


def open_video(uri: str, cfg: VideoConfig, *, identify: bool = True) -> VideoFile | DecordFile:
    """The file through the configured reader; both give ``info``, ``frames()`` and ``damaged_packets``."""
    if cfg.backend == "decord":
        return DecordFile(uri, cfg.threads, identify=identify)
    return VideoFile(uri, cfg.threads, identify=identify)


class FramePass:
    """The ticks of one video, with what can only be known by decoding: damage, rate, true duration, the time spent."""

    def __init__(self, video: VideoFile | DecordFile, cfg: VideoConfig, first: int = 0) -> None:
        """``first``: the tick to begin with; what lies before it is jumped over where the file allows."""
        self._video = video
        self._cfg = cfg
        self._first = first
        self.ticks = 0
        self.frames = 0
        self.damaged: list[int] = []  # ticks that show a damaged frame
        self.deltas = _Deltas()
        seconds = video.info.duration_s or 0.0
        self.budget_s = cfg.budget_s + cfg.budget_per_s * seconds
        self._deadline = time.process_time() + self.budget_s

    def run(self) -> Iterator[Tick]:
        """Every tick of the video.

        Raises:
            MediaError: over budget, broken time stamps, truncated or damaged beyond what the configuration allows.
        """
        for tick in on_clock(self._counted(), self._video.info.origin_s, self._cfg.max_gap_s, self._first):
            stopping.check()
            if time.process_time() > self._deadline:
                at = tick.index / FPS
                message = f"analysis took more than its {self.budget_s:.0f} CPU seconds (reached {at:.1f} s of video)."
                raise MediaError("budget", message)
            if tick.frame.damaged:
                self.damaged.append(tick.index)
            self.ticks = tick.index + 1
            yield tick
        self._check()

    def _counted(self) -> Iterator[Frame]:
        video, begin = self._video, self._first / FPS
        for frame in video.frames_from(begin) if isinstance(video, VideoFile) else video.frames():
            self.frames += 1
            self.deltas.add(frame.time)
            yield frame

    def _check(self) -> None:
        promised, got = self._video.info.duration_s, self.ticks / FPS
        if promised and got < self._cfg.min_decoded * promised:
            message = f"the file is truncated: {got:.1f} s of {promised:.1f} s of video can be decoded."
            raise MediaError("decode", message)
        broken = len(self.damaged) + self._video.damaged_packets
        if broken > self._cfg.max_damaged * max(1, self.frames):
            raise MediaError("decode", f"{broken} of about {self.frames} frames are damaged; find a better copy.")


class _Deltas:
    """Running facts about the time between frames."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._last = 0.0
        self._n = 0
        self._counts: dict[int, int] = {}  # milliseconds between frames → how often

    def add(self, seconds: float) -> None:
        if self._first is None:
            self._first = seconds
        else:
            delta = round(1000 * (seconds - self._last))
            self._counts[delta] = self._counts.get(delta, 0) + 1
        self._last = seconds
        self._n += 1

    @property
    def fps(self) -> float | None:
        """Mean rate; None for a single frame."""
        if self._first is None or self._last <= self._first:
            return None
        return (self._n - 1) / (self._last - self._first)

    @property
    def variable(self) -> bool:
        """More than 2 % of the steps differ from the usual one by more than 2 ms (rounding) and a tenth of it."""
        if not self._counts:
            return False
        usual = max(self._counts, key=lambda d: self._counts[d])
        off = sum(n for d, n in self._counts.items() if abs(d - usual) > max(2, 0.1 * usual))
        return off > 0.02 * (self._n - 1)


def every(need: FrameNeed) -> int:
    """Ticks from one wanted frame to the next."""
    return max(1, round(FPS / need.rate))


def picture(tick: Tick, need: FrameNeed, width: int, height: int) -> Picture:
    """The picture of a tick as ``need`` asks for it; ``width`` × ``height`` is the displayed size."""
    small = scaled(width, height, need.side)
    image: np.ndarray = tick.frame.picture(*small, need.gray)
    return Picture(tick.index, image, width / small[0], tick.repeated)


def scaled(width: int, height: int, side: int | None) -> tuple[int, int]:
    """The size with the longer side at most ``side``, shape kept."""
    scale = 1.0 if side is None else min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
