"""The catalog's contract: ids by content and the two tables, ``videos`` and ``clips``.

One row per video and per clip, kept or not; nothing disappears. Null where not measured. The tables are plain
Parquet (``DIR/videos/*.parquet``, ``DIR/clips/*.parquet``), readable by pandas, DuckDB and `datasets`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

FPS = 25
"""The clock of every frame number in the catalog (Wan2.1 / EchoMimicV3: 25 fps)."""
SAMPLE_RATE = 16_000
"""Hz of every sample number in the catalog (SyncNet, Whisper and wav2vec2 all take 16 kHz)."""
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS

VERDICTS = ("keep", "reject", "hold", "error")

_BOX = pa.list_(pa.float32())  # x0, y0, x1, y1 in pixels of the displayed frame
_RECT = pa.struct([("x", pa.int32()), ("y", pa.int32()), ("w", pa.int32()), ("h", pa.int32())])

VIDEOS = pa.schema(
    [
        ("video_id", pa.string()),
        ("source_uri", pa.string()),
        ("bytes", pa.int64()),
        ("source_tag", pa.string()),  # modification time in ns, or an object's tag, when it was curated
        ("container", pa.string()),
        ("vcodec", pa.string()),
        ("acodec", pa.string()),
        ("duration_s", pa.float64()),
        ("fps", pa.float64()),
        ("vfr", pa.bool_()),
        ("width", pa.int32()),  # as displayed: after rotation and sample aspect
        ("height", pa.int32()),
        ("rotation", pa.int16()),
        ("sample_rate", pa.int32()),
        ("channels", pa.int8()),
        ("verdict", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("error_stage", pa.string()),
        ("error", pa.string()),
        ("licence", pa.string()),
        ("source", pa.string()),
    ]
)

_TRACK = pa.struct(
    [
        ("track_id", pa.int16()),
        ("boxes", pa.list_(_BOX)),
        ("box_frames", pa.list_(pa.int32())),  # frames from the clip's start
        ("mouth_boxes", pa.list_(_BOX)),  # one per box
        ("size_px", pa.float32()),
        ("jitter", pa.float32()),
        ("frac_present", pa.float32()),
        ("av_offset", pa.int8()),
        ("conf", pa.float32()),
        ("dist", pa.float32()),
    ]
)
_TEXT_BOX = pa.struct(
    [
        ("x0", pa.float32()),
        ("y0", pa.float32()),
        ("x1", pa.float32()),
        ("y1", pa.float32()),
        ("first", pa.int32()),
        ("last", pa.int32()),
        ("score", pa.float32()),
        ("text", pa.string()),
        ("kind", pa.string()),  # subtitle | ticker | watermark | logo | scene
    ]
)
_CAPTION = pa.struct([("text", pa.string()), ("kind", pa.string()), ("source", pa.string())])

CLIPS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("video_id", pa.string()),
        ("source_uri", pa.string()),
        ("start_frame", pa.int32()),  # half-open, on the 25 fps clock
        ("end_frame", pa.int32()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float32()),  # of the source, on average
        ("tracks", pa.list_(_TRACK)),
        ("active_track", pa.int16()),  # the speaking one …
        ("active_by", pa.string()),  # … as it is alone, by sync, or (where nothing could score it) by size
        ("face_frac", pa.float32()),
        ("face_px", pa.float32()),
        ("n_faces", pa.int16()),
        ("sync_backend", pa.string()),
        ("sync_c", pa.float32()),  # SyncNet v2 only
        ("sync_d", pa.float32()),
        ("sync_fit_conf", pa.float32()),  # a fitted backend; 1: the threshold on its card
        ("av_offset_frames", pa.int8()),  # > 0: the audio is early
        ("offset_samples", pa.int32()),  # decided: correction applied when the clip is read, 16 kHz samples
        ("residual_offset", pa.int8()),  # frames, measured again after correcting `av_offset_frames` …
        ("residual_frames", pa.int16()),  # … on so many frames; with a null residual: too few to measure it
        ("text_boxes", pa.list_(_TEXT_BOX)),
        ("text_area", pa.float32()),
        ("subtitle_score", pa.float32()),
        ("crop", _RECT),
        ("sharpness", pa.float32()),
        ("exposure", pa.float32()),
        ("motion", pa.float32()),
        ("shake", pa.float32()),  # of the camera, share of the width
        ("freeze_frac", pa.float32()),
        ("blockiness", pa.float32()),
        ("aesthetic", pa.float32()),  # null unless configured
        ("letterbox", _RECT),
        ("lufs", pa.float32()),
        ("speech_frac", pa.float32()),
        ("clip_frac", pa.float32()),
        ("second_voice", pa.float32()),  # share of the voiced time in which another voice (or music) is heard
        ("phash", pa.list_(pa.uint64())),
        ("duplicate_of", pa.string()),
        ("captions", pa.list_(_CAPTION)),
        ("speaker", pa.string()),
        ("tier", pa.string()),
        ("verdict", pa.string()),
        ("reasons", pa.list_(pa.string())),
    ]
)
INDEXED = (
    "sync_c", "sync_d", "sync_fit_conf", "face_frac", "sharpness", "motion", "speech_frac", "text_area",
)  # fmt: skip
"""Measured columns of :data:`CLIPS` that the index of a dataset carries too, so that a selection by score is a query."""


def video_id(source: str | Path | IO[bytes]) -> str:
    """sha256 of the bytes, first 16 hex digits: the same content has the same id under any name.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(source, (str, Path)):
        with Path(source).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return hashlib.file_digest(source, "sha256").hexdigest()[:16]  # type: ignore[arg-type]


def clip_id(video: str, start_frame: int, end_frame: int) -> str:
    """Id of frames [start_frame, end_frame) of a video on the 25 fps clock, 16 hex digits."""
    return hashlib.sha256(f"{video}:{start_frame}:{end_frame}@{FPS}".encode()).hexdigest()[:16]


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows → a table with exactly ``schema``; columns that a row lacks are null.

    Raises:
        KeyError: a row has a column that the schema does not know (a typo would otherwise vanish silently).
        pa.ArrowInvalid: a value of the wrong type.
    """
    complete = []
    names = set(schema.names)
    for row in rows:
        if unknown := set(row) - names:
            raise KeyError(f"columns unknown to the catalog: {', '.join(sorted(unknown))}")
        complete.append({name: row.get(name) for name in schema.names})
    return pa.Table.from_pylist(complete, schema=schema)
