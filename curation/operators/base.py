"""What an operator is: it declares the pictures it wants, sees them in order once, and answers per clip.

`curation/analysis/video.py` plans one decoding pass from the declarations of all operators, so a video is decoded once
however many operators look at it. An operator keeps small per-frame facts (numbers, boxes, hashes), never pictures.

To add one: write a module with the operator class and ``load(cfg) -> Callable[[], operator]`` (what is heavy, such as
a network, is loaded in ``load``, once per worker; the callable makes the light instance that serves one video), then
name it in ``FRAME_OPERATORS`` or ``SOUND_OPERATORS`` of `curation/analysis/registry.py`.

``clip`` is called once per clip, in order, soon after the pass has gone by the clip's end (not at the end of the
video); ``forget`` says what will not be asked for any more, also where there are no clips for a long time. Faces are
known by the time of ``clip`` and come in the context, so that an operator can weigh what it saw by where the face was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class FrameNeed:
    """Which frames an operator wants: ``rate`` per second of the 25 fps clock, scaled down to ``side`` pixels.

    ``side`` bounds the longer side (None: as displayed; never scaled up). Colour is RGB, or one plane when ``gray``.
    Frames come at every ``round(25 / rate)``-th number, the first one included.
    """

    rate: float
    side: int | None
    gray: bool = False


@dataclass(frozen=True)
class Span:
    """Half-open frame interval [start, end) on the 25 fps clock of the source."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Picture:
    """One frame as an operator sees it. ``image`` is shared between operators and read-only."""

    index: int  # on the 25 fps clock
    image: np.ndarray  # uint8 [h, w, 3] RGB or [h, w]
    scale: float  # displayed pixels per pixel of ``image`` (≥ 1)
    repeated: bool  # True: the same decoded frame as one tick earlier (a source slower than 25 fps)


@dataclass(frozen=True)
class ClipContext:
    """What is already known of a clip when operators answer for it. Boxes are x0, y0, x1, y1 in displayed pixels."""

    width: int  # of the displayed frame: after rotation and sample aspect
    height: int
    fps: float  # of the source
    tracks: tuple[dict[str, Any], ...]  # rows of the clips table's ``tracks``, but for the sync scores
    active: int | None  # index into ``tracks`` of the largest steady face, None: no face

    @property
    def face_boxes(self) -> np.ndarray:
        """float32 [n, 4]: the boxes of the active track, empty when there is no face."""
        boxes = self.tracks[self.active]["boxes"] if self.active is not None else []
        return np.asarray(boxes, np.float32).reshape(-1, 4)


class FrameOperator(Protocol):
    """Looks at pictures. One instance serves one video (or one span of it): state lives in the instance."""

    name: str
    version: int  # raise it when the numbers change: the ledger recomputes what depends on it
    needs: FrameNeed
    columns: tuple[str, ...]  # of the clips table

    def frame(self, picture: Picture) -> None:
        """See one picture; they come in order of ``index``."""

    def clip(self, span: Span, context: ClipContext) -> dict[str, Any]:
        """The values of :attr:`columns` for one clip, from what was seen inside ``span``."""

    def forget(self, before: int) -> None:
        """No clip to come begins before this frame: drop what was kept of earlier ones (called every few seconds)."""


class SoundOperator(Protocol):
    """Listens to the sound of a clip (not called for a video without sound: its columns stay null)."""

    name: str
    version: int
    columns: tuple[str, ...]

    def clip(self, pcm: np.ndarray, native: np.ndarray, native_rate: int) -> dict[str, Any]:
        """``pcm`` float32 [n] mono at 16 kHz; ``native`` float32 [n, channels] at ``native_rate`` Hz, same span."""
