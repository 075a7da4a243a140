"""How shots become clips: 4k+1 frames each, whole, away from cuts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from curation.config import ClipsConfig
from curation.operators.base import Span
from curation.schema import FPS

_BEFORE = 100  # frames


def whole_length(frames: int, cfg: ClipsConfig) -> int:
    """The longest 4k+1 ≤ ``frames`` within the configured bounds; 0 when there is none."""
    length = (min(frames, cfg.max_frames) - 1) // 4 * 4 + 1
    return length if length >= max(1, cfg.min_frames) else 0


def cut_clips(shot: Span, cfg: ClipsConfig, *, cut_before: bool, cut_after: bool) -> Iterator[Span]:
    """Clips of one shot, in order: as long as allowed, ``stride`` apart, ``margin`` frames away from its cuts.

    ``cut_before`` and ``cut_after``: whether the shot begins and ends at a cut rather than at the file's end.
    """
    start = shot.start + (cfg.margin if cut_before else 0)
    stop = shot.end - (cfg.margin if cut_after else 0)
    while length := whole_length(stop - start, cfg):
        yield Span(start, start + length)
        start += cfg.stride or length


def on_clock_spans(spans: Sequence[tuple[float, float]]) -> list[Span]:
    """Seconds [start, end) → frames of the 25 fps clock, in order."""
    return sorted((Span(round(a * FPS), round(b * FPS)) for a, b in spans), key=lambda s: (s.start, s.end))


def wanted(spans: Sequence[Span], frame: int) -> bool:
    """Does a frame lie in one of the spans? No spans: all frames do."""
    return not spans or any(s.start <= frame < s.end for s in spans)


def first_tick(spans: Sequence[Span]) -> int:
    """Where a pass may begin: so long before the first wanted frame that a cut or a fade at it is seen."""
    return max(0, spans[0].start - _BEFORE) if spans else 0


class ClipCutter:
    """The same, while the video is still being read: clips come out as soon as no cut can touch them any more."""

    def __init__(self, cfg: ClipsConfig) -> None:
        self._cfg = cfg
        self._start = 0  # of the next clip

    def advance(self, safe_until: int) -> Iterator[Span]:
        """No cut lies in the shot before frame ``safe_until``: the full-length clips that are certain now."""
        longest = whole_length(self._cfg.max_frames, self._cfg)
        while self._start + longest + self._cfg.margin <= safe_until:
            yield Span(self._start, self._start + longest)
            self._start += self._cfg.stride or longest

    def close(self, shot_end: int, next_start: int, *, cut: bool) -> Iterator[Span]:
        """The shot ends at ``shot_end``, the next one begins at ``next_start``; no ``cut``: the same scene goes on."""
        yield from cut_clips(Span(self._start, shot_end), self._cfg, cut_before=False, cut_after=cut)
        self._start = max(self._start, next_start + self._cfg.margin if cut else next_start)

    @property
    def oldest(self) -> int:
        """Nothing before this frame can become part of a clip any more."""
        return self._start
