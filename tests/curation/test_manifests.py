"""Tables of sources that strangers wrote: every row is a source or a source with a fault; a bad file is one sentence."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import EchoForgeError
from configs.schema import load
from curation.caption_files import CAPTION_BYTES
from curation.sources import listing
from curation.sources.manifest import SPANS, URI_BYTES
from curation.sources.source import Source

CFG = load("tiny").curation
AGAIN = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "a.mp4", "b\0.mp4", "evil://x", "s3://[x/y", "zip://a::http://b", "x" * (URI_BYTES + 1), "../v"]
    ),
)
CELL = st.one_of(st.none(), TEXT, st.sampled_from(["0", "1.5", "nan", "inf", "-1", "1e300"]))
KEYS = ("path", "start", "end", "caption", "speaker", "licence", "source")


def expanded(path: Path) -> list[Source]:
    return listing.expand([str(path)], CFG)


def check(found: list[Source]) -> None:
    """What planning needs of every source."""
    assert len({item.uri for item in found}) == len(found)
    for item in found:
        for text in (item.uri, item.source, item.licence, item.caption, item.speaker, item.fault):
            assert text is None or len(text.encode()) < CAPTION_BYTES + URI_BYTES
        assert item.fault or ("\0" not in item.uri and all(0 <= a < b < 1e7 for a, b in item.spans))


@AGAIN
@given(rows=st.lists(st.tuples(*[CELL] * len(KEYS)), min_size=1, max_size=6))
def test_any_csv_is_sources_with_and_without_faults(rows: list[tuple[Any, ...]], tmp_path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([KEYS, *rows])
    path = tmp_path / "m.csv"
    path.write_bytes(text.getvalue().encode("utf-8", "replace"))
    try:
        check(expanded(path))
    except EchoForgeError as error:  # of the file, not of a row
        assert re.search(r"line \d|cells than columns", str(error))


COLUMN = st.one_of(
    st.lists(CELL, min_size=3, max_size=3).map(
        lambda cells: pa.array([c and c.encode("utf-8", "surrogatepass") for c in cells], pa.binary()).view(pa.string())
    ),
    st.lists(st.one_of(st.none(), st.binary(max_size=4)), min_size=3, max_size=3).map(
        lambda cells: pa.array(cells, pa.binary()).view(pa.string())  # text that is not UTF-8
    ),
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=3, max_size=3).map(pa.array),
    st.lists(st.one_of(st.none(), st.floats()), min_size=3, max_size=3).map(lambda c: pa.array(c, pa.float64())),
    st.lists(st.lists(st.integers(0, 9), max_size=2), min_size=3, max_size=3).map(
        lambda c: pa.array(c, pa.list_(pa.int8()))
    ),
    st.lists(st.booleans(), min_size=3, max_size=3).map(pa.array),
    st.lists(st.integers(-(2**62), 2**62), min_size=3, max_size=3).map(lambda c: pa.array(c, pa.timestamp("us"))),
)


@AGAIN
@given(columns=st.lists(COLUMN, min_size=len(KEYS), max_size=len(KEYS)))
def test_any_parquet_is_sources_with_and_without_faults(columns: list[pa.Array], tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table(columns, names=KEYS), path)
    try:
        check(expanded(path))
    except EchoForgeError as error:
        assert "not a readable Parquet file" in str(error)  # a date that no calendar has


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("path\na.mp4\n".encode("utf-16"), r"not in UTF-8 \(line 1\)"),
        ("path\na.mp4\n".encode("utf-16-le"), r"not in UTF-8 \(line 1\)"),
        (b"path\na.mp4\nb\xff.mp4\n", r"not in UTF-8 \(line 3\)"),
        (b"path\na.mp4," + b"x" * 10, "line 2 has more cells"),
        (b"path\n" + b"x" * 200_000, r"line 2 cannot be read as CSV: field larger"),
        (b"path\n" + b"x" * 3_000_000, "line 2 has more than 1048576 characters"),
        (b"name\na.mp4\n", "no column that names the videos"),
    ],
)
def test_a_bad_file_is_one_sentence_with_its_line(data: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(data)
    with pytest.raises(EchoForgeError, match=sentence):
        expanded(tmp_path / "m.csv")


def test_lists_and_broken_parquet_are_sentences_too(tmp_path: Path) -> None:
    (tmp_path / "v.lst").write_bytes(b"a.mp4\n\xff\xfe.mp4\n")
    with pytest.raises(EchoForgeError, match=r"line 2"):
        expanded(tmp_path / "v.lst")
    (tmp_path / "w.lst").write_text("a.mp4\tx\ty\nb.mp4\n")
    bad, good = expanded(tmp_path / "w.lst")
    assert "span 'x'" in (bad.fault or "") and good.fault is None
    (tmp_path / "m.parquet").write_bytes(b"PAR1" + b"\0" * 100)
    with pytest.raises(EchoForgeError, match="not a readable Parquet"):
        expanded(tmp_path / "m.parquet")


def test_a_span_that_ends_before_it_starts_is_a_fault_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,start,end\na.mp4,3,1\nb.mp4,1,3\n")
    bad, good = expanded(tmp_path / "m.csv")
    assert "row 1" in (bad.fault or "") and "the end must lie after the start" in (bad.fault or "")
    assert good.spans == ((1.0, 3.0),)


def test_a_span_from_zero_counts_and_too_many_do_not(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.mp4"], "start": [0.0], "end": [2.0]}), tmp_path / "m.parquet")
    assert expanded(tmp_path / "m.parquet")[0].spans == ((0.0, 2.0),)
    count = SPANS + 10
    many = {"path": ["a.mp4"] * count, "start": list(range(count)), "end": [n + 1 for n in range(count)]}
    pq.write_table(pa.table(many), tmp_path / "m.parquet")
    (item,) = expanded(tmp_path / "m.parquet")
    assert "more than" in (item.fault or "") and item.spans == ()


def test_a_hostile_annotation_names_no_file_outside(tmp_path: Path) -> None:
    folder = tmp_path / "hdtf"
    folder.mkdir()
    (tmp_path / "out.mp4").write_bytes(b"x")
    (folder / "RD_video_url.txt").write_text("")
    (folder / "RD_annotion_time.txt").write_text("../out.mp4 0:01-0:02\n/etc/passwd 0:01-0:02\n**/* 0:01-0:02\n")
    for item in listing.expand([str(folder)], CFG):
        assert Path(item.uri).parent == folder
    (folder / "RD_crop_wh.txt").write_text("a_0.mp4 nan 1 inf 2\n")
    with pytest.raises(EchoForgeError, match="is no crop"):
        listing.expand([str(folder)], CFG)
