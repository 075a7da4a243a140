"""Where one shot ends and the next begins.

Hard cuts are PySceneDetect's `AdaptiveDetector`, fed from the pass (a moving camera raises its neighbours' scores too
and so is no cut). What it proposes is taken back when the picture returns within a few frames (a flash, a hand across
the lens). Cross-fades and fades to black, which it does not see, are found as stretches where the middle picture is
the mean of two different end pictures.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np

from curation.config import ShotsConfig
from curation.operators.base import FrameNeed, Picture, Span
from curation.schema import FPS

_THUMB = 32  # longer side of the pictures kept for flashes and fades
_STEP = 2  # ticks between two looks for a fade
_TEXTURE = 15.0  # grey levels: a picture with less contrast than this shows nothing


@dataclass
class _Thumb:
    index: int
    pixels: np.ndarray  # float32 [h·w·3]
    structure: np.ndarray  # float32 [h·w], grey, zero mean, unit length; zeros when flat


class ShotDetector:
    """Sees every picture of the pass once; knows the transitions up to :attr:`safe_until`."""

    def __init__(self, cfg: ShotsConfig) -> None:
        self.needs = FrameNeed(FPS, cfg.side)
        self.cuts: list[int] = []  # first frame of each new shot, hard cuts only
        self.fades: list[Span] = []
        self._cfg = cfg
        self._detector = _adaptive_detector()(
            adaptive_threshold=cfg.adaptive_threshold,
            min_scene_len=1,
            window_width=cfg.window,
            min_content_val=cfg.min_content,
        )
        self._fed: deque[int] = deque()  # tick of each picture that the detector has not judged yet
        self._number = 0  # of pictures fed
        self._ticks: dict[int, int] = {}  # number fed → tick, of the recent ones
        self._doubtful: list[int] = []  # proposed cuts that may still turn out to be flashes
        self._last_image: np.ndarray | None = None
        self._thumbs: deque[_Thumb] = deque(maxlen=cfg.fade_frames + 2 * cfg.flash_frames + 4)
        self._seen = 0  # ticks
        self._known: tuple[Any, list[Span]] = ((0, 0, None), [])  # transitions, and from what they were made

    def frame(self, picture: Picture) -> None:
        """The next tick of the pass (every tick, repeated ones included)."""
        self._seen = picture.index + 1
        if picture.repeated:
            return
        image = cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR)
        for _ in range(1 if self._number else self._cfg.window + 1):  # padded, so that the first frames are judged
            self._feed(image, picture.index)
        self._last_image = image
        self._thumbs.append(_thumb(picture))
        self._settle(picture.index - self._cfg.flash_frames)
        if self._number % _STEP == 0:
            self._look_for_fade()

    def finish(self) -> None:
        """The pass is over."""
        if self._last_image is not None:
            for _ in range(self._cfg.window):
                self._feed(self._last_image, self._seen)
        self._settle(self._seen)
        self._fed.clear()

    @property
    def cuts_until(self) -> int:
        """All hard cuts before this frame are known."""
        open_ = min([*self._doubtful, self._fed[0] if self._fed else self._seen])
        return max(0, min(open_, self._seen - self._cfg.flash_frames if self._fed else self._seen))

    @property
    def safe_until(self) -> int:
        """No transition that is not yet known can begin before this frame."""
        return max(0, min(self.cuts_until, self._seen - self._cfg.fade_frames - _STEP if self._fed else self._seen))

    def transitions(self) -> list[Span]:
        """Known transitions in order: [c, c) for a cut before frame c, [a, b) for the frames of a fade."""
        now = (len(self.cuts), len(self.fades), self.fades[-1] if self.fades else None)
        if now != self._known[0]:  # a long film has thousands, and this is asked at every frame
            starts = [f.start for f in self.fades]  # in order, apart from each other
            within = [bisect_right(starts, c) - 1 for c in self.cuts]
            cuts = [Span(c, c) for c, w in zip(self.cuts, within, strict=True) if w < 0 or c > self.fades[w].end]
            self._known = now, sorted([*cuts, *self.fades], key=lambda s: (s.start, s.end))
        return self._known[1]

    def _feed(self, image: np.ndarray, tick: int) -> None:
        self._ticks[self._number] = tick
        self._fed.append(tick)
        for number in self._detector.process_frame(self._number, image):
            insort(self._doubtful, self._ticks[number])
        self._number += 1
        while len(self._fed) > self._cfg.window:
            self._fed.popleft()
        self._ticks.pop(self._number - 3 * self._cfg.window - 2, None)

    def _settle(self, until: int) -> None:
        """Decide the proposed cuts before ``until``: enough has been seen after them."""
        while self._doubtful and self._doubtful[0] <= until:
            cut = self._doubtful.pop(0)
            if not self._is_flash(cut):
                self.cuts.append(cut)

    def _is_flash(self, cut: int) -> bool:
        reach = self._cfg.flash_frames
        before = [t for t in self._thumbs if cut - reach <= t.index < cut]
        after = [t for t in self._thumbs if cut <= t.index <= cut + reach]
        if not before or not after:
            return False
        jump = _distance(before[-1], after[0])
        for a in before:
            for b in after:
                if 0 < b.index - a.index <= reach + 1 and _distance(a, b) < self._cfg.flash_ratio * jump:
                    return not any(_foreign(t, a) for t in (*before, *after) if a.index < t.index < b.index)
        return False

    def _look_for_fade(self) -> None:
        for frames in _fade_lengths(self._cfg.fade_frames):
            if span := self._fade(frames):
                if self.fades and span.start <= self.fades[-1].end:
                    span = Span(min(self.fades[-1].start, span.start), max(self.fades[-1].end, span.end))
                    self.fades.pop()
                self.fades.append(span)
                return

    def _fade(self, frames: int) -> Span | None:
        """The last ``frames`` frames as a fade, if they are one."""
        if len(self._thumbs) <= frames:
            return None
        begin, middle, end = self._thumbs[-1 - frames], self._thumbs[-1 - frames // 2], self._thumbs[-1]
        change = _distance(begin, end)
        if change < self._cfg.fade_change or float(begin.structure @ end.structure) > self._cfg.fade_correlation:
            return None
        quarter, last = self._thumbs[-1 - 3 * frames // 4], self._thumbs[-1 - frames // 4]
        for share, thumb in ((0.25, quarter), (0.5, middle), (0.75, last)):
            mixed = (1 - share) * begin.pixels + share * end.pixels
            if float(np.abs(thumb.pixels - mixed).mean()) > self._cfg.fade_residual * change:
                return None
        if not _mixed(begin, middle, end):
            return None
        if any(begin.index < c <= end.index for c in (*self.cuts, *self._doubtful)):
            return None
        return Span(begin.index + 1, end.index)


@cache
def _adaptive_detector() -> Any:
    """PySceneDetect's `AdaptiveDetector`, imported without the package's ``__init__``.

    That ``__init__`` runs ``ffmpeg`` and ``mkvmerge`` to see whether they are installed. An ffmpeg that is given a
    terminal by a process in the background is stopped by the system, and its parent waits for it for ever.
    """
    name = "scenedetect"
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:  # imported by somebody already, or not installed: the import says so
        return importlib.import_module(f"{name}.detectors").AdaptiveDetector
    sys.modules[name] = importlib.util.module_from_spec(spec)  # not executed; its modules are found through it
    try:
        return importlib.import_module(f"{name}.detectors").AdaptiveDetector
    finally:  # whoever imports the package later gets the whole of it
        for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[module]


def shots(transitions: list[Span], end: int) -> Iterator[Span]:
    """The stretches of [0, ``end``) between transitions."""
    start = 0
    for transition in transitions:
        if transition.start > start:
            yield Span(start, transition.start)
        start = max(start, transition.end)
    if end > start:
        yield Span(start, end)


def _fade_lengths(longest: int) -> tuple[int, ...]:
    return tuple(n for n in (8, 12, 18, 26, 36, 50, 70, 100) if n <= longest)


def _thumb(picture: Picture) -> _Thumb:
    height, width = picture.image.shape[:2]
    scale = _THUMB / max(width, height)
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    small = cv2.resize(picture.image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    grey = small.mean(axis=2).ravel()
    grey -= grey.mean()
    norm = float(np.linalg.norm(grey))
    flat = norm < 3.0 * np.sqrt(grey.size)
    return _Thumb(picture.index, small.ravel(), np.zeros_like(grey) if flat else grey / norm)


def _distance(a: _Thumb, b: _Thumb) -> float:
    return float(np.abs(a.pixels - b.pixels).mean())


def _mixed(begin: _Thumb, middle: _Thumb, end: _Thumb) -> bool:
    """Is the middle as flat as a mixture of two pictures is? A moving camera keeps its contrast on the way."""
    (a, shared), (_, b) = np.cov(begin.pixels, end.pixels)
    mixture, either = (a + b + 2 * shared) / 4, (a + b) / 2
    return bool(np.var(middle.pixels) < (mixture + either) / 2)


def _foreign(thumb: _Thumb, around: _Thumb) -> bool:
    """A picture of something else, rather than the same one lit up or washed out."""
    return bool(thumb.pixels.std() > _TEXTURE and float(thumb.structure @ around.structure) < 0.5)
