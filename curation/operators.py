"""What an operator is: it declares the pictures it wants, sees them in order once, and answers per clip.

`curation/analyse.py` plans one decoding pass from the declarations of all operators, so a video is decoded once
however many operators look at it. An operator keeps small per-frame facts (numbers, boxes, hashes), never pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class FrameNeed:
    """Which frames an operator wants: ``rate`` per second of the 25 fps clock, scaled down to ``side`` pixels.

    ``side`` bounds the longer side (None: as decoded; never scaled up). Colour is RGB, or one plane when ``gray``.
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
    """One frame as an operator sees it."""

    index: int  # on the 25 fps clock
    image: np.ndarray  # uint8 [h, w, 3] RGB or [h, w]
    scale: float  # displayed pixels per pixel of ``image`` (≥ 1)


class FrameOperator(Protocol):
    """Looks at pictures. One instance serves one video (or one span of it): state lives in the instance."""

    name: str
    version: int  # raise it when the numbers change: the ledger recomputes what depends on it
    needs: FrameNeed
    columns: tuple[str, ...]  # of the clips table

    def frame(self, picture: Picture) -> None:
        """See one picture; they come in order of ``index``."""

    def clip(self, span: Span) -> dict[str, Any]:
        """The values of :attr:`columns` for one clip, from what was seen inside ``span``."""


class SoundOperator(Protocol):
    """Listens to the sound of a clip."""

    name: str
    version: int
    columns: tuple[str, ...]

    def clip(self, pcm: np.ndarray, native: np.ndarray, native_rate: int) -> dict[str, Any]:
        """``pcm`` float32 [n] mono at 16 kHz; ``native`` float32 [n, channels] at ``native_rate`` Hz, same span."""
