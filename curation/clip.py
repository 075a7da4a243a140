"""What travels between the parts of curation and on to sharding: a video, its clips, and the faces in them.

The tables hold the same facts as columns (`curation.schema`); ``from_row`` and ``to_row`` are the only ways between the
two. A decision over a whole corpus stays in columns; planning makes clips of a piece of the corpus at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from curation.schema import CLIPS, FPS

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the displayed frame."""


@dataclass(frozen=True)
class Rect:
    """A rectangle of whole pixels of the displayed frame."""

    x: int
    y: int
    w: int
    h: int


@dataclass(frozen=True)
class Caption:
    """A description of a clip, what kind of text it is, and who wrote it."""

    text: str
    kind: str
    source: str


@dataclass(frozen=True)
class TextBox:
    """A text in the picture: where, in which frames [first, last] of the clip, what it says, and of which kind."""

    x0: float
    y0: float
    x1: float
    y1: float
    first: int
    last: int
    score: float
    text: str | None
    kind: str  # subtitle | ticker | watermark | logo | scene


@dataclass(frozen=True)
class Track:
    """One face through a clip. ``boxes`` and ``mouth_boxes`` stand for the frames ``box_frames``."""

    track_id: int
    boxes: tuple[Box, ...]
    box_frames: tuple[int, ...]  # from the clip's start
    mouth_boxes: tuple[Box, ...]
    size_px: float
    jitter: float
    frac_present: float
    av_offset: int | None = None
    conf: float | None = None
    dist: float | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Track:
        """A track as the column ``tracks`` holds it."""
        plain: dict[str, Any] = {item.name: row.get(item.name) for item in fields(cls)}
        boxes = {name: tuple(tuple(box) for box in plain[name] or ()) for name in ("boxes", "mouth_boxes")}
        return cls(**{**plain, **boxes, "box_frames": tuple(plain["box_frames"] or ())})

    def to_row(self) -> dict[str, Any]:
        """The track as the column ``tracks`` holds it."""
        boxes = {name: [list(box) for box in getattr(self, name)] for name in ("boxes", "mouth_boxes")}
        return {**vars(self), **boxes, "box_frames": list(self.box_frames)}

    def unscored(self) -> Track:
        """The track without its sync scores."""
        return replace(self, av_offset=None, conf=None, dist=None)

    @property
    def weight(self) -> float:
        """How much of the clip it fills: by this the speaking face is guessed where no sound says it."""
        return self.size_px * self.frac_present


Score = float | int | str | Rect | Sequence[int] | Sequence[TextBox] | Sequence[Caption] | None
"""What an operator may write into one of its columns; None: not measured."""
Scores = dict[str, Score]
"""Values by column of the clips table."""


@dataclass(frozen=True)
class Decision:
    """What the decision says of a clip."""

    verdict: str
    reasons: tuple[str, ...]
    tier: str | None
    offset_samples: int | None  # correction applied when the clip is read, 16 kHz samples
    duplicate_of: str | None


@dataclass(frozen=True)
class Clip:
    """Frames [start_frame, end_frame) of a video on the 25 fps clock, who is in them, and what was measured."""

    clip_id: str
    video_id: str
    source_uri: str
    start_frame: int
    end_frame: int
    width: int  # as displayed
    height: int
    tracks: tuple[Track, ...] = ()
    active_track: int | None = None  # index into ``tracks``: the speaking face
    active_by: str | None = None
    face_frac: float = 0.0
    face_px: float | None = None
    captions: tuple[Caption, ...] | None = None
    speaker: str | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)  # of the operators, by column
    decision: Decision | None = None

    def __len__(self) -> int:
        return self.end_frame - self.start_frame

    @property
    def active(self) -> Track | None:
        """The track of the speaking face."""
        if self.active_track is None or self.active_track >= len(self.tracks):
            return None
        return self.tracks[self.active_track]

    def number(self, column: str) -> float | None:
        """A score that is a number; None: not measured.

        Raises:
            TypeError: the column holds something else.
        """
        value = self.scores.get(column)
        if value is not None and not isinstance(value, (int, float)):
            raise TypeError(f"{column} is no number: {value!r}")
        return value

    def scored(self, scores: Scores) -> Clip:
        """The clip with what operators wrote into their columns; None: not measured.

        Raises:
            KeyError: a column that the catalog does not have, or that no operator may write.
        """
        if unknown := scores.keys() - {*SCORE_COLUMNS, "captions"}:
            raise KeyError(f"columns unknown to the catalog: {', '.join(sorted(unknown))}")
        merged = {**self.scores, **{name: score for name, score in scores.items() if name != "captions"}}
        kept = {name: score for name, score in merged.items() if score is not None}
        captions = scores.get("captions", self.captions)
        return replace(self, scores=kept, captions=None if captions is None else tuple(captions))  # type: ignore[arg-type]

    def columns(self, names: Iterable[str]) -> Scores:
        """The values of columns that operators write; None: not measured."""
        return {name: self.captions if name == "captions" else self.scores.get(name) for name in names}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Clip:
        """The clip of a row of `schema.CLIPS`; columns that it lacks are null. Without a verdict there is no decision."""
        scores = {name: _score(name, row.get(name)) for name in SCORE_COLUMNS}
        verdict = row.get("verdict")
        plain: dict[str, Any] = {name: row.get(name) for name in _PLAIN}
        return cls(
            **plain,
            face_frac=row.get("face_frac") or 0.0,
            tracks=tuple(Track.from_row(track) for track in row.get("tracks") or ()),
            captions=None if row.get("captions") is None else tuple(Caption(**item) for item in row["captions"]),
            scores={name: value for name, value in scores.items() if value is not None},
            decision=None
            if verdict is None
            else Decision(
                verdict,
                tuple(row.get("reasons") or ()),
                row.get("tier"),
                row.get("offset_samples"),
                row.get("duplicate_of"),
            ),
        )

    def to_row(self) -> dict[str, Any]:
        """The row of `schema.CLIPS`, whole."""
        row: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        row |= {
            "start_s": self.start_frame / FPS,
            "end_s": self.end_frame / FPS,
            "n_faces": len(self.tracks),
            "face_frac": self.face_frac,
            "tracks": [track.to_row() for track in self.tracks],
            "captions": None if self.captions is None else [asdict(caption) for caption in self.captions],
        }
        row |= {name: _plain(value) for name, value in self.scores.items()}
        if self.decision:
            row |= asdict(self.decision) | {"reasons": list(self.decision.reasons)}
        return {name: row.get(name) for name in CLIPS.names}


@dataclass(frozen=True)
class Video:
    """A source file, as `schema.VIDEOS` holds it. One that cannot be used has ``error_stage`` and ``error``."""

    source_uri: str
    video_id: str | None = None
    bytes: int | None = None
    source_tag: str | None = None
    container: str | None = None
    vcodec: str | None = None
    acodec: str | None = None
    duration_s: float | None = None
    fps: float | None = None
    vfr: bool | None = None
    width: int | None = None  # as displayed
    height: int | None = None
    rotation: int | None = None
    sample_rate: int | None = None
    channels: int | None = None
    verdict: str | None = None
    reasons: tuple[str, ...] | None = None
    error_stage: str | None = None
    error: str | None = None
    licence: str | None = None
    source: str | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Video:
        """The video of a row of `schema.VIDEOS`; columns that it lacks are null."""
        values = {item.name: row.get(item.name) for item in fields(cls)}
        return cls(**values | {"reasons": None if values["reasons"] is None else tuple(values["reasons"])})

    def to_row(self) -> dict[str, Any]:
        """The row of `schema.VIDEOS`, whole."""
        return asdict(self) | {"reasons": None if self.reasons is None else list(self.reasons)}


_PLAIN = (
    "clip_id", "video_id", "source_uri", "start_frame", "end_frame", "width", "height", "active_track", "active_by",
    "face_px", "speaker",
)  # fmt: skip
_DERIVED = ("start_s", "end_s", "n_faces", "face_frac", "tracks", "captions")
_DECIDED = tuple(item.name for item in fields(Decision))
SCORE_COLUMNS = tuple(name for name in CLIPS.names if name not in {*_PLAIN, *_DERIVED, *_DECIDED})
"""Columns that operators write."""
_RECTS = ("crop", "letterbox")


def _score(name: str, value: Any) -> Score:
    if value is None:
        return None
    if name in _RECTS:
        return Rect(**value)
    if name == "text_boxes":
        return tuple(TextBox(**item) for item in value)
    return value  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, (Rect, TextBox)):
        return asdict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
