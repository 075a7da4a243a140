"""What an operator is: it looks at pictures, or listens, and answers with scores of each clip.

An operator is one class in one module of this package, found there by itself (`curation/analysis/stages.py`): it names
its columns, the section of the configuration that it reads and the operators whose results it uses, and everything else
(what the ledger records, what runs again after a change, what a worker loads) follows. CONTRIBUTING.md shows one.

One decoding pass serves all operators (`curation/analysis/video_pass.py`). ``clip`` is called once per clip, in order,
soon after the pass has gone by the clip's end; ``forget`` says what will not be asked for any more, also where there are
no clips for a long time. Faces are known by the time of ``clip`` and come in the context, so that an operator can weigh
what it saw by where the face was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from curation.clip import Scores, Track
from curation.config import CurationConfig

Look = TypeVar("Look")


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
    tracks: tuple[Track, ...]  # without sync scores
    active: int | None  # index into ``tracks`` of the largest steady face, None: no face

    @property
    def face_boxes(self) -> np.ndarray:
        """float32 [n, 4]: the boxes of the active track, empty when there is no face."""
        boxes = self.tracks[self.active].boxes if self.active is not None else ()
        return np.asarray(boxes, np.float32).reshape(-1, 4)


class Operator(ABC):
    """One or several scores of clips. One instance serves one video: state lives in the instance."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Raise it when the numbers change: the ledger computes again what depends on them."""
    columns: ClassVar[tuple[str, ...]]
    """Columns of the clips table that it writes."""
    section: ClassVar[str | None] = None
    """Section of the configuration that it reads; None: it has no parameters."""
    keys: ClassVar[tuple[str, ...] | None] = None
    """Keys of the section that its result depends on; None: all of them."""
    switch: ClassVar[str | None] = None
    """Key of the section that is false where the operator is off."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Operators and stages whose result it uses, beside the clips themselves: it runs again when they do."""

    def __init__(self, cfg: Any) -> None:
        """``cfg``: the section of the configuration, None where there is none."""
        del cfg

    @classmethod
    def load(cls, cfg: CurationConfig) -> Callable[[], Self] | None:
        """Load what is heavy (networks), once per worker; None: there is nothing to run.

        Returns:
            what makes the light instance that serves one video.

        Raises:
            MissingWeights: a configured file is not on this machine.
        """
        section = getattr(cfg, cls.section) if cls.section else None
        return lambda: cls(section)

    @classmethod
    def check(cls, cfg: CurationConfig) -> None:
        """Look, at little cost, whether :meth:`load` will find its files.

        Raises:
            MissingWeights: it will not.
        """
        del cfg


class FrameOperator(Operator):
    """Looks at pictures. It keeps small facts of each (numbers, boxes, hashes), never pictures for long."""

    needs: FrameNeed

    @abstractmethod
    def frame(self, picture: Picture) -> None:
        """See one picture; they come in order of ``index``."""

    @abstractmethod
    def clip(self, span: Span, context: ClipContext) -> Scores:
        """The values of :attr:`columns` for one clip, from what was seen inside ``span``."""

    @abstractmethod
    def forget(self, before: int) -> None:
        """No clip to come begins before this frame: drop what was kept of earlier ones (called every few seconds)."""


class PictureOperator(FrameOperator, Generic[Look]):
    """A frame operator that makes something of every picture by itself and scores a clip from those inside it."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self._kept: list[tuple[int, Look]] = []

    @abstractmethod
    def look(self, picture: Picture) -> Look:
        """What is kept of one picture."""

    @abstractmethod
    def score(self, seen: list[Look], context: ClipContext) -> Scores:
        """The values of :attr:`columns`; ``seen``: what :meth:`look` made of the clip's pictures, in order."""

    def frame(self, picture: Picture) -> None:
        """See :class:`FrameOperator`."""
        self._kept.append((picture.index, self.look(picture)))

    def clip(self, span: Span, context: ClipContext) -> Scores:
        """See :class:`FrameOperator`."""
        return self.score([look for index, look in self._kept if span.start <= index < span.end], context)

    def forget(self, before: int) -> None:
        """See :class:`FrameOperator`."""
        self._kept = [item for item in self._kept if item[0] >= before]


class SoundOperator(Operator):
    """Listens to the sound of a clip (not called for a video without sound: its columns stay null)."""

    @abstractmethod
    def clip(self, pcm: np.ndarray, native: np.ndarray, native_rate: int) -> Scores:
        """``pcm`` float32 [n] mono at 16 kHz; ``native`` float32 [n, channels] at ``native_rate`` Hz, same span."""
