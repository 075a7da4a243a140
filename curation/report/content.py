"""What the report shows, as its template reads it: texts that are ready to be seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Tile:
    """A number at the top."""

    label: str
    value: str
    note: str
    kind: str


@dataclass(frozen=True)
class Step:
    """What a rule of the funnel leaves and takes; ``left`` and ``lost`` in percent of all hours."""

    name: str
    clips: int
    hours: str
    left: float
    lost: float
    lost_clips: int
    lost_hours: str
    kind: str


@dataclass(frozen=True)
class Distribution:
    """The histogram of a score over ``n`` clips."""

    name: str
    svg: Markup
    n: int


@dataclass(frozen=True)
class Cell:
    """A clip near a threshold; ``image`` is a data address, None where the source cannot be read."""

    value: str
    failed: bool
    name: str
    id: str
    at: str
    image: str | None


@dataclass(frozen=True)
class Sheet:
    """The clips nearest to the threshold of a rule."""

    name: str
    limit: str
    failed: int
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Bar:
    """A part of a bar, in percent."""

    kind: str
    share: float


@dataclass(frozen=True)
class Collection:
    """A source of videos: how many, for how long, and what became of them."""

    name: str
    licence: str
    videos: int
    hours: str
    parts: Sequence[Bar]
    kept: str
    total: float


@dataclass(frozen=True)
class Unreadable:
    """A video that could not be used."""

    file: str
    stage: str
    error: str


@dataclass(frozen=True)
class Cost:
    """Core-seconds of an operator; ``rate`` per second of video, ``share`` of all in percent."""

    name: str
    share: float
    rate: str
    spent: str


@dataclass(frozen=True)
class RunFacts:
    """What is shown of the run that decided a catalog; null and empty where the catalog does not know."""

    seconds: Mapping[str, float] = field(default_factory=dict)  # CPU seconds by operator
    video_seconds: float = 0.0  # of the videos analysed
    version: str | None = None
    config_digest: str | None = None
