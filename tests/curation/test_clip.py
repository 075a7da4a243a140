"""A clip, a track and a video are their rows: nothing is lost or added on the way there and back."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from curation.clip import SCORE_COLUMNS, Clip, Video
from curation.schema import CLIPS, FPS, VERDICTS, VIDEOS, table

REAL = st.floats(-1e6, 1e6, width=32)
WHOLE = st.integers(-100, 100)
TEXT = st.text(max_size=8)
BOX = st.lists(REAL, min_size=4, max_size=4)
TRACK = st.fixed_dictionaries(
    {
        "track_id": st.integers(0, 9), "boxes": st.lists(BOX, max_size=3), "box_frames": st.lists(WHOLE, max_size=3),
        "mouth_boxes": st.lists(BOX, max_size=3), "size_px": REAL, "jitter": REAL, "frac_present": REAL,
        "av_offset": st.none() | WHOLE, "conf": st.none() | REAL, "dist": st.none() | REAL,
    }
)  # fmt: skip
RECT = st.fixed_dictionaries(dict.fromkeys("xywh", WHOLE))
TEXT_BOX = st.fixed_dictionaries(
    {
        **dict.fromkeys(("x0", "y0", "x1", "y1", "score"), REAL),
        "first": WHOLE,
        "last": WHOLE,
        "text": TEXT,
        "kind": TEXT,
    }
)
SCORES = {
    "sync_backend": TEXT, "crop": RECT, "letterbox": RECT, "text_boxes": st.lists(TEXT_BOX, max_size=2),
    "phash": st.lists(st.integers(0, 2**64 - 1), max_size=4),
    **dict.fromkeys(("av_offset_frames", "residual_offset", "residual_frames"), WHOLE),
}  # fmt: skip
CAPTION = st.fixed_dictionaries({"text": TEXT, "kind": TEXT, "source": TEXT})
DECIDED = st.fixed_dictionaries(
    {
        "verdict": st.sampled_from(VERDICTS), "reasons": st.lists(TEXT, max_size=2), "tier": st.none() | TEXT,
        "offset_samples": st.none() | WHOLE, "duplicate_of": st.none() | TEXT,
    }
)  # fmt: skip
UNDECIDED = dict.fromkeys(("verdict", "reasons", "tier", "offset_samples", "duplicate_of"))


@st.composite
def clip_rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row as an analysis or a decision writes it; every score may be null."""
    start, length, tracks = draw(st.integers(0, 10**6)), draw(st.integers(1, 500)), draw(st.lists(TRACK, max_size=2))
    scores = {name: draw(st.none() | SCORES.get(name, REAL)) for name in SCORE_COLUMNS}
    row = {
        "clip_id": draw(TEXT), "video_id": draw(TEXT), "source_uri": draw(TEXT), "start_frame": start,
        "end_frame": start + length, "start_s": start / FPS, "end_s": (start + length) / FPS, "width": 64, "height": 48,
        "tracks": tracks, "n_faces": len(tracks), "active_track": 0 if tracks else None,
        "active_by": draw(st.none() | TEXT), "face_frac": draw(REAL), "face_px": draw(st.none() | REAL),
        "captions": draw(st.none() | st.lists(CAPTION, max_size=2)), "speaker": draw(st.none() | TEXT),
        **scores, **(draw(st.none() | DECIDED) or UNDECIDED),
    }  # fmt: skip
    return {name: row[name] for name in CLIPS.names}


@settings(max_examples=60)
@given(clip_rows())
def test_a_row_becomes_a_clip_and_the_same_row_again(row: dict[str, Any]) -> None:
    (stored,) = table([row], CLIPS).to_pylist()
    assert Clip.from_row(stored).to_row() == stored
    assert Clip.from_row(row).to_row() == row


@given(st.data())
def test_a_row_becomes_a_video_and_the_same_row_again(data: st.DataObject) -> None:
    row = {name: data.draw(st.none() | WHOLE) for name in VIDEOS.names}
    row["reasons"] = data.draw(st.none() | st.lists(TEXT, max_size=2))
    assert Video.from_row(row).to_row() == row
