"""A sample that was planned: what the encoder needs of a clip, and its form in a plan (JSON).

A dataset may have a million samples, and parsing all of them takes minutes: what looks for one fact of each
(:func:`captions`, :func:`video_id`, :func:`at_source`) reads it from the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from curation import schema
from curation.clip import Clip, Rect
from pipeline.catalog.identity import CuratedSource

PLAN = pa.schema(
    [
        ("sample_id", pa.string()),
        ("tar", pa.string()),  # relative to the dataset
        ("split", pa.string()),
        ("group", pa.string()),  # source video, or speaker where known: what a split never divides
        ("sample", pa.string()),  # JSON: all that the encoder needs
    ]
)
Boxes = tuple[Sequence[float] | None, ...]
"""Per frame x0, y0, x1, y1 in bucket pixels; None where there is none."""
_VIDEO = re.compile(r'"video_id": "([^"\\]*)"')
_CLIP = re.compile(r'"clip_id": "([^"\\]*)"')
_SOURCE = re.compile(r'"source_uri": ("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True)
class KeptClip:
    """A clip of the catalog as planning takes it: with what identifies its source, and the scores that the index carries."""

    clip: Clip
    source: CuratedSource
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class PlannedSample:
    """Frames [start_frame, start_frame + frames) of a video, cropped and scaled to a bucket."""

    sample_id: str
    clip_id: str
    source: CuratedSource
    start_frame: int
    bucket: str  # "WxHxF"
    frames: int
    height: int
    width: int
    crop: Rect | None  # in displayed pixels; None: the whole picture
    offset_samples: int  # correction of the sound, 16 kHz samples
    captions: tuple[str, ...]
    face_boxes: Boxes
    mouth_boxes: Boxes
    speaker: str | None
    tier: str | None
    verdict: str | None
    scores: Mapping[str, float | None]  # `schema.INDEXED`
    split: str = ""  # once it is dealt to a tar
    stored: bool = False  # read from the dataset's own copy, which is no source; never in a plan

    def to_json(self) -> str:
        """The column ``sample`` of a plan."""
        row = {
            "sample_id": self.sample_id,
            "clip_id": self.clip_id,
            "video_id": self.source.video_id,
            "source_uri": self.source.uri,
            "source_bytes": self.source.bytes,
            "source_tag": self.source.tag,
            "start_frame": self.start_frame,
            "bucket": self.bucket,
            "F": self.frames,
            "H": self.height,
            "W": self.width,
            "crop": asdict(self.crop) if self.crop else None,
            "offset_samples": self.offset_samples,
            "captions": self.captions,
            "face_boxes": self.face_boxes,
            "mouth_boxes": self.mouth_boxes,
            "speaker": self.speaker,
            "tier": self.tier,
            "verdict": self.verdict,
            "split": self.split,
        }
        return json.dumps(row | dict(self.scores), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> PlannedSample:
        """A row of a plan; scores that an earlier version did not know are None.

        Raises:
            ValueError, KeyError, TypeError: it is none.
        """
        row = json.loads(text)
        source = CuratedSource(row["source_uri"], row["video_id"], row.get("source_bytes"), row.get("source_tag"))
        return cls(
            sample_id=row["sample_id"],
            clip_id=row["clip_id"],
            source=source,
            start_frame=row["start_frame"],
            bucket=row["bucket"],
            frames=row["F"],
            height=row["H"],
            width=row["W"],
            crop=Rect(**row["crop"]) if row["crop"] else None,
            offset_samples=row["offset_samples"],
            captions=tuple(row["captions"]),
            face_boxes=tuple(row["face_boxes"]),
            mouth_boxes=tuple(row["mouth_boxes"]),
            speaker=row["speaker"],
            tier=row["tier"],
            verdict=row["verdict"],
            scores={name: row.get(name) for name in schema.INDEXED},
            split=row["split"],
        )


def check(text: str, sample_id: str) -> None:
    """Raise ValueError, KeyError or TypeError unless every reader finds in a row of a plan what it takes from it."""
    row = json.loads(text)
    if row["sample_id"] != sample_id or not sample_id.isalnum() or not isinstance(row["video_id"], str):
        raise ValueError("it is about another sample")
    if not isinstance(row["captions"], list) or not all(isinstance(caption, str) for caption in row["captions"]):
        raise ValueError("its captions are no list of texts")


def captions(text: str) -> list[str]:
    """The captions of a planned sample."""
    return list(json.loads(text)["captions"])


def video_id(text: str) -> str:
    """The video of a planned sample."""
    found = _VIDEO.search(text)
    return found[1] if found else str(json.loads(text)["video_id"])


def at_source(text: str, now: Mapping[str, str]) -> str:
    """A planned sample with its source where it lies now, as ``now`` (clip id → URI) says."""
    clip, uri = _CLIP.search(text), _SOURCE.search(text)
    place = now.get(clip[1]) if clip else None
    if place is None or (uri and uri[1] == json.dumps(place, ensure_ascii=False)):
        return text
    return json.dumps(json.loads(text) | {"source_uri": place}, sort_keys=True, ensure_ascii=False)
