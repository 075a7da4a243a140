"""Review tables: the latest word of each person counts, a spreadsheet round trip loses nothing."""

from __future__ import annotations

import csv
import io
import os
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import reviews
from configs.dataset_schema import NEGATIVES, REVIEWS
from configs.errors import EchoForgeError
from curation import spreadsheet
from curation.review import tables

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _folder(tmp_path)


def _folder(place: Path) -> Path:
    rows = [
        {
            "negative_id": f"n{i}",
            "sample_id": f"s{i}",
            "task": "i2v",
            "prompt": "a person, talking",
            "seed": i,
            "flags": [{"issue": "blur", "severity": 0.99, "reason": "blur 0.9 > 0.5"}] if i % 2 else [],
        }
        for i in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=NEGATIVES), place / "samples.parquet")
    return place


def _review(negative: str, verdict: str, reviewer: str = "ann", issue: str | None = None) -> dict[str, object]:
    return {"negative_id": negative, "verdict": verdict, "reviewer": reviewer, "issue": issue}


def test_the_latest_row_of_a_person_counts_also_of_one_import(folder: Path) -> None:
    tables.add(folder, [_review("n0", "negative", issue="hands"), _review("n1", "negative"), _review("n2", "fine")])
    tables.add(folder, [_review("n0", "fine"), _review("n2", "fine"), _review("n2", "negative")])
    counted = reviews.judgements(tables.samples(folder), reviews.read(folder), accept_flags=False)
    assert [counted[f"n{i}"].verdict for i in range(4)] == ["fine", "negative", "negative", None]


def test_spreadsheet_round_trip(folder: Path, tmp_path: Path) -> None:
    csv = tmp_path / "out.csv"
    assert tables.to_csv(folder, csv) == 4
    sheet = pd.read_csv(csv, dtype=str)
    sheet.loc[1, ["verdict", "issue", "frame_start", "frame_end"]] = ["negative", "lip_sync", "3", "20"]
    sheet.to_csv(csv, index=False)
    assert tables.from_csv(folder, csv, reviewer="ann") == 1
    assert tables.from_csv(folder, csv, reviewer="ann") == 0, "importing twice changes nothing"
    [row] = reviews.read(folder).to_pylist()
    assert (row["negative_id"], row["issue"], row["frame_start"], row["frame_end"]) == ("n1", "lip_sync", 3, 20)


@pytest.mark.parametrize(
    "row",
    [_review("n9", "fine"), _review("n1", "bad"), _review("n1", "negative", issue="colour"), {"negative_id": "n1"}],
)
def test_bad_rows_are_refused_whole(folder: Path, row: dict[str, object]) -> None:
    with pytest.raises(EchoForgeError):
        tables.add(folder, [_review("n0", "fine"), row])
    assert reviews.read(folder).num_rows == 0


FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1", "'=1", "''-x", "a;=1;", "a\n=1", "x\t@y", "a;'=1")
text = st.text(st.sampled_from("=+-@'\t\r\n;,\" aä＝\0"), max_size=12) | st.sampled_from(FORMULAS)


@settings(max_examples=200)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=4))
def test_no_cell_is_a_formula_and_every_text_comes_back(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.csv"
        spreadsheet.write(pd.DataFrame([(*row, -5, -0.5) for row in rows], columns=["a", "b", "n", "x"]), file)
        data = file.read_bytes()
        read = list(spreadsheet.rows(data, "x.csv"))
        assert [(spreadsheet.plain(row["a"]), spreadsheet.plain(row["b"])) for row in read] == rows
        assert {(row["n"], row["x"]) for row in read} == {("-5", "-0.5")}, "numbers stay numbers"
        # Commas separate them; a spreadsheet of a country with decimal commas splits at semicolons, quoted or not.
        cells = [cell for line in csv.reader(io.StringIO(data.decode(), newline="")) for cell in line]
        for cell in cells + re.split("[;\t\r\n]", data.decode()):
            assert cell in ("-5", "-0.5") or not cell.startswith(tuple("=+-@＝＋－＠"))
        assert not any(cell.startswith(("\t", "\r", "\n")) for cell in cells)


@settings(max_examples=40)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=3))
def test_export_and_import_changes_no_review(rows: list[tuple[str, str]]) -> None:
    """Also of parts made by hand, whose text has space around it."""
    with tempfile.TemporaryDirectory() as place:
        made = _folder(Path(place))
        given_ = [
            _review("n1", "negative", reviewer or "x") | {"note": note, "time": NOON, "frame_start": 3}
            for reviewer, note in rows
            if (reviewer or "x").strip()
        ]
        (made / reviews.FOLDER).mkdir()
        pq.write_table(pa.Table.from_pylist(given_, schema=REVIEWS), made / reviews.FOLDER / "mine.parquet")
        tables.to_csv(made, made / "out.csv")
        distinct = {row["reviewer"]: None for row in given_}
        if len({str(name).strip() for name in distinct}) == len(distinct):
            assert tables.from_csv(made, made / "out.csv") == 0


@pytest.mark.parametrize("frame", ["3.5", "nan", "inf", "1e300", "three", "9999999999"])
def test_a_frame_that_is_none_is_refused(folder: Path, tmp_path: Path, frame: str) -> None:
    sheet = tmp_path / "x.csv"
    sheet.write_text(f"negative_id,verdict,frame_start,reviewer\nn1,negative,{frame},ann\n")
    with pytest.raises(EchoForgeError, match="frame"):
        tables.from_csv(folder, sheet)


def _part(**change: object) -> pa.Table:
    return pa.Table.from_pylist([_review("n1", "negative") | {"time": NOON} | change], schema=REVIEWS)


def _bad_utf8() -> pa.Table:
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    return _part().set_column(REVIEWS.get_field_index("note"), "note", bad)


HOSTILE_PARTS = {
    "future": (lambda: _part(time=datetime(9999, 1, 1, tzinfo=UTC)), "yet to come"),
    "beyond": (lambda: _part().set_column(6, "time", pa.array([2**62], pa.timestamp("us", tz="UTC"))), "cannot be read"),
    "utf8": (_bad_utf8, "cannot be read"),
    "columns": (lambda: pa.table({"negative_id": ["n1"]}), "no column 'verdict'"),
    "types": (lambda: pa.table({"negative_id": [1.5], "verdict": [[1]], "reviewer": ["a"], "time": [NOON]}), "no column 'verdict'"),
    "times": (lambda: pa.table({"negative_id": ["a"], "verdict": ["fine"], "reviewer": ["a"], "time": ["soon"]}), "cannot be read"),
    "nobody": (lambda: _part(negative_id=None), "no sample"),
    "rows": (lambda: pa.table({name: pa.nulls(2_000_000, REVIEWS.field(name).type) for name in REVIEWS.names}), "too many"),
    "bomb": (lambda: pa.concat_tables([_part(note="x" * 1_000_000)] * 1000), "too many"),
    "long": (lambda: _part(note="x" * 100_000), "more than"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*HOSTILE_PARTS, "link", "pipe", "folder", "huge", "text"])
def test_a_part_of_a_stranger_is_refused_in_a_sentence(folder: Path, tmp_path: Path, name: str) -> None:
    other = tmp_path / "other"
    (other / reviews.FOLDER).mkdir(parents=True)
    part, words = other / reviews.FOLDER / "part.parquet", "cannot be read"
    if name in HOSTILE_PARTS:
        make, words = HOSTILE_PARTS[name]
        pq.write_table(make(), part)
    elif name == "link":
        pq.write_table(_part(), tmp_path / "mine")
        part.symlink_to(tmp_path / "mine")
    elif name == "pipe":
        os.mkfifo(part)
    elif name == "folder":
        part.mkdir()
    elif name == "huge":
        with part.open("wb") as file:
            file.truncate(10 << 30)
    else:
        part.write_text("PAR1 nothing PAR1")
    with pytest.raises(EchoForgeError, match=rf"part\.parquet.*{words}"):
        tables.merge(folder, [other])
    assert reviews.read(folder).num_rows == 0
