"""One reader of catalogs: it refuses what is half-written and reads what older versions wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import cli
from configs import schema
from configs.errors import EchoForgeError
from curation.schema import CLIPS, VIDEOS, table
from pipeline import parquet
from pipeline.catalog import queries, tables

SCHEMAS = {"videos": VIDEOS, "clips": CLIPS}


def write(root: Path) -> Path:
    """Two videos with two clips each, one Parquet file per video."""
    for number in range(2):
        video = {"video_id": f"v{number}", "source_uri": f"{number}.mp4", "verdict": "keep", "reasons": []}
        clips = [
            {
                "clip_id": f"c{number}{k}", "video_id": f"v{number}", "source_uri": f"{number}.mp4",
                "start_frame": 33 * k, "end_frame": 33 * k + 33, "start_s": 1.32 * k, "end_s": 1.32 * k + 1.32,
                "sharpness": 0.25 * (2 * number + k), "verdict": "keep", "reasons": [],
                "tracks": [{"track_id": k, "conf": 2.0}], "captions": [{"text": "t", "kind": "short", "source": "s"}],
            }
            for k in range(2)
        ]  # fmt: skip
        for name, rows in (("videos", [video]), ("clips", clips)):
            parquet.write(str(root / name / f"part-{number:05d}.parquet"), table(rows, SCHEMAS[name]))
    return root


@pytest.mark.parametrize(
    "command",
    [("shard",), ("sync", "fit"), ("catalog", "report"), ("catalog", "status"), ("catalog", "explain"),
     ("catalog", "redecide")],
)  # fmt: skip
def test_nobody_reads_a_catalog_that_is_half_written(tmp_path: Path, command: tuple[str, ...]) -> None:
    root = write(tmp_path / "catalog")
    (root / tables.MARK).write_text(json.dumps({"why": "the tables are being written"}))  # as version 0.1 marked it
    more = {
        "shard": ["--out", str(tmp_path / "out")],
        "fit": ["--out", str(tmp_path / "fit.safetensors")],
        "explain": ["c00"],
    }
    result = CliRunner().invoke(cli.app, [*command, str(root), *more.get(command[-1], [])])
    assert isinstance(result.exception, EchoForgeError)
    words = str(result.exception)
    assert "half-written" in words and "curate" in words and str(root) in words and "\n" not in words
    assert not (tmp_path / "out").exists() and not (root / "report.html").exists()


def test_a_redecide_of_an_older_version_that_was_killed_is_finished(tmp_path: Path) -> None:
    """It left a mark and some of the new verdicts."""
    root, expected = write(tmp_path / "catalog"), write(tmp_path / "expected")
    config = schema.load("tiny", ["decide.min_sharpness=0.3"])
    queries.redecide(str(expected), config)
    new = tables.read(str(expected), "clips", CLIPS).slice(0, 2)
    parquet.write(str(root / "clips" / "part-00000.parquet"), new)
    (root / tables.MARK).write_text(json.dumps({"why": "the tables are being written", "command": "redecide"}))
    with pytest.raises(EchoForgeError, match="run `catalog redecide` again"):
        tables.read(str(root), "clips", CLIPS)
    queries.redecide(str(root), config)
    for name, kind in SCHEMAS.items():
        assert tables.read(str(root), name, kind).equals(tables.read(str(expected), name, kind))


OPTIONAL = [name for name in CLIPS.names if name not in tables.ESSENTIAL["clips"]]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(OPTIONAL), unique=True), st.booleans(), st.sampled_from(("tracks", "captions")))
def test_columns_that_an_older_version_did_not_write_are_null(
    tmp_path_factory: pytest.TempPathFactory, gone: list[str], only_first: bool, nested: str
) -> None:
    root = write(tmp_path_factory.mktemp("old"))
    full = tables.read(str(root), "clips", CLIPS)
    parts = sorted((root / "clips").glob("*.parquet"))
    for part in parts[: 1 if only_first else 2]:
        pq.write_table(pq.read_table(part).drop_columns(gone), part)
    found = tables.read(str(root), "clips", CLIPS)
    assert found.schema.equals(CLIPS)
    old_rows = 2 if only_first else 4
    for name in CLIPS.names:
        before, after = full[name].to_pylist(), found[name].to_pylist()
        assert after == ([None] * old_rows + before[old_rows:] if name in gone else before), name
    assert tables.read(str(root), "clips", CLIPS, [nested, "clip_id"]).schema.names == [nested, "clip_id"]
    row = tables.find_clip(str(root), "c01")
    assert row is not None and row.schema.names == CLIPS.names and row["clip_id"].to_pylist() == ["c01"]


def test_a_field_inside_a_column_that_an_older_version_did_not_write_is_null(tmp_path: Path) -> None:
    root = write(tmp_path)
    part = root / "clips" / "part-00000.parquet"
    old = pq.read_table(part)
    tracks = pa.array([[{"track_id": 7}], []], pa.list_(pa.struct([("track_id", pa.int16())])))
    pq.write_table(old.set_column(old.schema.get_field_index("tracks"), "tracks", tracks), part)
    found = tables.read(str(root), "clips", CLIPS)["tracks"].to_pylist()
    assert found[0][0] == {f.name: 7 if f.name == "track_id" else None for f in CLIPS.field("tracks").type.value_type}
    assert found[1] == [] and found[2][0]["conf"] == 2.0


@pytest.mark.parametrize("column", tables.ESSENTIAL["clips"])
def test_tables_of_something_else_are_refused_by_name(tmp_path: Path, column: str) -> None:
    root = write(tmp_path)
    part = root / "clips" / "part-00001.parquet"
    pq.write_table(pq.read_table(part).drop_columns([column]), part)
    with pytest.raises(EchoForgeError, match=f"part-00001.parquet' is no table of a catalog .*'{column}'"):
        tables.read(str(root), "clips", CLIPS, ["clip_id"])


def test_a_damaged_table_is_one_sentence(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "clips" / "part-00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(EchoForgeError, match=r"part-00001\.parquet' cannot be read"):
        tables.read(str(root), "clips", CLIPS)


def test_an_old_catalog_is_decided_again_and_then_whole(tmp_path: Path) -> None:
    root = write(tmp_path)
    for name, gone in (("videos", ["source_tag"]), ("clips", ["second_voice", "speaker"])):
        for part in (root / name).glob("*.parquet"):
            pq.write_table(pq.read_table(part).drop_columns(gone), part)
    queries.redecide(str(root), schema.load("tiny", []))
    rows: list[dict[str, Any]] = pq.read_table(root / "clips").to_pylist()
    assert set(rows[0]) == set(CLIPS.names) and "source_tag" in pq.read_table(root / "videos").schema.names
