"""One rule for reviews: the page, the CSV, the demo and the trainer give the same answer for any votes."""

from __future__ import annotations

import csv
import itertools
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import reviews
from configs.dataset_schema import ISSUES, NEGATIVES, REVIEWS, VERDICTS
from configs.errors import EchoForgeError
from curation.review import page, tables
from train.data import negatives
from workflows.cycle import _reviewed
from workflows.demo.content import negatives_of

FRAMES = 33
LATENT_FRAMES = 9
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NAMES = ("n0", "n1", "n2")


def vote(verdict: str, reviewer: str = "ann", **more: Any) -> dict[str, Any]:
    return {"negative_id": "n0", "verdict": verdict, "reviewer": reviewer, "time": NOON, **more}


@st.composite
def votes(draw: st.DrawFn) -> dict[str, Any]:
    start = draw(st.none() | st.integers(0, FRAMES - 1))
    end = draw(st.none() | st.integers((start or 0) + 1, FRAMES))
    return {
        "negative_id": draw(st.sampled_from(NAMES)),
        "verdict": draw(st.sampled_from(VERDICTS)),
        "issue": draw(st.none() | st.sampled_from(ISSUES[:3] + ISSUES[-1:])),
        "frame_start": start,
        "frame_end": end,
        "reviewer": draw(st.sampled_from(("ann", "bob", "eve"))),
        "time": NOON + timedelta(seconds=draw(st.integers(0, 2))),
        "note": draw(st.none() | st.just("seen twice")),
    }


flags = st.lists(
    st.fixed_dictionaries({"issue": st.sampled_from(ISSUES), "severity": st.none() | st.sampled_from((0.5, 0.9))}),
    max_size=2,
)


def write(root: Path, flagged: list[list[dict[str, Any]]], parts: list[list[dict[str, Any]]]) -> Path:
    """A run with one negatives stage: samples, their (empty) latents, and the review parts in this order."""
    folder = negatives.folder(root, "stage")
    (folder / reviews.FOLDER).mkdir(parents=True)
    rows = [
        {
            "negative_id": name, "sample_id": name, "task": "i2v", "latents_path": f"{name}.safetensors",
            "flags": [flag | {"reason": "measured"} for flag in found], "thumbnail": b"",
        }
        for name, found in zip(NAMES, flagged, strict=True)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=NEGATIVES), folder / negatives.SAMPLES_FILE)
    for name in NAMES:
        (folder / f"{name}.safetensors").touch()
    for number, part in enumerate(parts):
        pq.write_table(pa.Table.from_pylist(part, schema=REVIEWS), folder / reviews.FOLDER / f"{number}.parquet")
    return folder


def as_page(folder: Path) -> dict[str, str]:
    return {item.id: item.counts_as for item in page.shown(folder, "t").items}


def as_csv(folder: Path) -> dict[str, tuple[str, str, str]]:
    sheet = folder / "sheet.csv"
    tables.to_csv(folder, sheet)
    lines = list(csv.DictReader(sheet.open()))
    found = {line["negative_id"]: tuple(line[name] for name in tables.COUNTED) for line in lines}
    assert len({(line["negative_id"], *(line[name] for name in tables.COUNTED)) for line in lines}) == len(found)
    return found  # type: ignore[return-value]


def as_trainer(folder: Path, *, accept_flags: bool) -> dict[str, tuple[str, reviews.Frames | None]]:
    try:
        found = negatives.read(folder.parents[1], "stage", [], accept_flags=accept_flags)
    except EchoForgeError as error:
        assert "no negative" in str(error)
        return {}
    return {negative.negative_id: (negative.issue, negative.frames) for negative in found}


def as_demo(folder: Path) -> list[str]:
    return [sample.verdict for sample in negatives_of(folder.parents[1], ["stage"])]


def read(folder: Path, *, accept_flags: bool) -> dict[str, reviews.Judgement]:
    return reviews.judgements(tables.samples(folder), reviews.read(folder), accept_flags=accept_flags)


@settings(max_examples=40, deadline=None)
@given(st.lists(votes(), max_size=9), st.lists(flags, min_size=3, max_size=3), st.randoms(use_true_random=False))
def test_everyone_gives_the_same_answer_in_any_order_of_parts(
    rows: list[dict[str, Any]], flagged: list[list[dict[str, Any]]], chance: Any
) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        folder = write(Path(one), flagged, [rows[0::2], rows[1::2]])
        judged = read(folder, accept_flags=False)
        assert as_page(folder) == {name: str(judgement) for name, judgement in judged.items()}
        assert as_csv(folder) == {n: (j.verdict or "", j.issue or "", j.span) for n, j in judged.items()}
        assert _reviewed(folder) == (None not in {j.verdict for j in judged.values()})
        accepted = read(folder, accept_flags=True)
        assert sorted(as_demo(folder)) == sorted(str(judgement) for judgement in accepted.values())
        for accept, found in ((False, judged), (True, accepted)):
            expected = {n: (j.issue, j.frames) for n, j in found.items() if j.verdict == "negative"}
            assert as_trainer(folder, accept_flags=accept) == expected
        counted = tables.statistics(folder)["reviewed_negative"]
        assert counted["any"] == sum(j.verdict == "negative" for j in judged.values()) == counted.drop("any").sum()
        again = chance.sample(rows, len(rows)) + rows[: chance.randint(0, len(rows))]
        shuffled = write(Path(other), flagged, [[row] for row in again])
        assert read(shuffled, accept_flags=False) == judged and read(shuffled, accept_flags=True) == accepted
        assert as_page(shuffled) == as_page(folder)


@settings(max_examples=60, deadline=None)
@given(st.lists(votes(), min_size=1, max_size=6))
def test_bad_frames_are_those_that_a_negative_vote_names(rows: list[dict[str, Any]]) -> None:
    given_ = [row | {"verdict": "negative"} for row in rows]
    judged = reviews.judge([reviews.Review(**row) for row in given_])
    named = {
        frame
        for row in given_
        for frame in range(row["frame_start"] or 0, FRAMES if row["frame_end"] is None else row["frame_end"])
    }
    ranges = judged.frames if judged.frames is not None else ((0, None),)
    closed = [(start, FRAMES if end is None else end) for start, end in ranges]
    assert {frame for start, end in closed for frame in range(start, end)} == named
    assert all(before[1] < after[0] for before, after in itertools.pairwise(closed))
    negative = negatives.Negative("n0", "n0", "n0", "i2v", "other", Path(), judged.frames)
    mask = negatives.frame_mask(negative, LATENT_FRAMES)
    touched = {0 if frame == 0 else (frame + 3) // 4 for frame in named}
    assert {j for j in range(LATENT_FRAMES) if mask[j]} == touched


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ([], "open"),
        ([vote("skip")], "left out (skipped)"),
        ([vote("skip"), vote("skip", "bob")], "left out (skipped)"),
        ([vote("skip"), vote("negative", "bob", issue="hands")], "negative: hands (1 negative, 0 fine)"),
        ([vote("skip"), vote("fine", "bob")], "fine (0 negative, 1 fine)"),
        ([vote("negative"), vote("fine", "bob")], "fine (1 negative, 1 fine)"),
        ([vote("negative", issue="other"), vote("negative", "bob", issue="hands")],
         "negative: hands (2 negative, 0 fine)"),
        ([vote("negative", issue="blur"), vote("negative", "bob", issue="flicker"), vote("negative", "eve")],
         "negative: flicker (3 negative, 0 fine)"),
        ([vote("negative", frame_start=20)], "negative: other, frames 20- (1 negative, 0 fine)"),
        ([vote("negative", frame_end=5)], "negative: other, frames 0-5 (1 negative, 0 fine)"),
        ([vote("negative", frame_start=3, frame_end=5), vote("negative", "bob", frame_start=9)],
         "negative: other, frames 3-5 9- (2 negative, 0 fine)"),
        ([vote("negative", frame_start=3, frame_end=5), vote("negative", "bob")],
         "negative: other (2 negative, 0 fine)"),
        ([vote("negative", frame_start=3, frame_end=5), vote("negative", "bob"), vote("fine", "eve", frame_start=1)],
         "negative: other (2 negative, 1 fine)"),
        ([vote("negative"), vote("fine", time=NOON + timedelta(seconds=1))], "fine (0 negative, 1 fine)"),
        ([vote("fine"), vote("negative")], "fine (0 negative, 1 fine)"),  # of one person at one time
    ],
)  # fmt: skip
def test_the_written_rule(given_: list[dict[str, Any]], expected: str) -> None:
    table = pa.Table.from_pylist(given_, schema=REVIEWS)
    assert str(reviews.judge(reviews.latest(table))) == expected


def test_a_flag_counts_where_nobody_looked_and_flags_are_accepted() -> None:
    found = {"blur": 0.5, "flicker": 0.9}
    assert str(reviews.judge([], found, accept_flags=True)) == "negative: flicker (by its flag)"
    assert reviews.judge([], found).verdict is None and reviews.judge([], accept_flags=True).verdict == "fine"
    assert reviews.judge([reviews.checked("", **vote("skip"))], found, accept_flags=True).verdict == "skip"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pa.table({"negative_id": ["n0"], "verdict": ["fine"]}), "no column 'reviewer'"),
        (pa.Table.from_pylist([vote("bad")], schema=REVIEWS), "verdict 'bad'"),
        (pa.Table.from_pylist([vote("negative", frame_start=9, frame_end=3)], schema=REVIEWS), r"frames \[9, 3\)"),
        (pa.Table.from_pylist([vote("fine") | {"time": None}], schema=REVIEWS), "no time"),
        (None, "cannot be read"),
    ],
)
def test_a_part_made_by_hand_is_refused_by_name(tmp_path: Path, table: pa.Table | None, words: str) -> None:
    folder = write(tmp_path, [[]] * 3, [])
    part = folder / reviews.FOLDER / "mine.parquet"
    part.write_text("no parquet") if table is None else pq.write_table(table, part)
    with pytest.raises(EchoForgeError, match=f"mine.parquet.*{words}"):
        reviews.read(folder)


def test_a_part_without_the_optional_columns_counts(tmp_path: Path) -> None:
    folder = write(tmp_path, [[]] * 3, [])
    needed = pa.Table.from_pylist([vote("negative")], schema=REVIEWS).select(list(reviews.NEEDED))
    pq.write_table(needed, folder / reviews.FOLDER / "mine.parquet")
    assert as_trainer(folder, accept_flags=False) == {"n0": ("other", None)}
