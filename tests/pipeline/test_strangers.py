"""Tables and folders that strangers made, through `curate`: as many rows come out as went in, each with its cause."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import schema
from curation import puppets
from pipeline import storage
from pipeline.catalog.curate import curate

CONFIG = schema.load("tiny", ["sync.backend=none", "sync.required=false"])


def test_every_row_of_a_hostile_table_is_a_row_of_the_catalog(tmp_path: Path) -> None:
    puppets.make(tmp_path, 1, 3, CONFIG.curation.puppets, False)
    good = next(tmp_path.glob("*.mp4")).name
    (tmp_path / "junk.mp4").write_bytes(b"\1" * 999)
    rows = {
        good: None,
        "junk.mp4": "not a video",
        "gone.mp4": "cannot be read",
        "n\0ul.mp4": "holds a zero byte",
        "evil://x/v.mp4": "evil",
        "http://[x/v.mp4": "Invalid IPv6",
        "zip://a::http://127.0.0.1/v.mp4": "chains addresses",
        "file://" + str(tmp_path / "gone.mp4"): "cannot be read",
        "x" * 5000: "5000 bytes",
        "y" * 300 + ".mp4": "cannot be read",
        "/dev/zero": "not a file that holds bytes",
        "/proc/self/mem": "empty",
        "../..": "not a file that holds bytes",
        None: "names no video",
    }
    more = {"speaker": 7, "licence": b"\xff", "start": 1.0, "end": float("inf")}
    names = [*rows, *(f"bad-{key}.mp4" for key in more)]
    table: dict[str, pa.Array] = {"uri": pa.array([n and n.encode() for n in names], pa.binary()).view(pa.string())}
    empty = [None] * len(rows)
    for key, value in more.items():
        table[key] = pa.array([*empty, *(value if key == k or (key == "end" and k == "start") else None for k in more)])
    pq.write_table(pa.table(table), tmp_path / "list.parquet")
    curate([str(tmp_path / "list.parquet")], str(tmp_path / "out"), CONFIG, inline=True, quiet=True)
    found = pq.read_table(tmp_path / "out" / "videos").to_pylist()
    assert len(found) == len(names)
    causes = {row["source_uri"]: row["error"] for row in found}
    for number, (name, cause) in enumerate(rows.items(), 1):
        place = str(tmp_path / "list.parquet") + f"#row {number}"
        uri = next(u for u in (name, str(tmp_path / str(name)), place, str(tmp_path.parent.parent)) if u in causes)
        if cause is None:
            assert causes[uri] is None
        else:
            assert cause in causes[uri], (name, causes[uri])
    curate([str(tmp_path / "list.parquet")], str(tmp_path / "out"), CONFIG, inline=True, quiet=True)
    assert pq.read_table(tmp_path / "out" / "videos").num_rows == len(names)


def test_a_store_that_does_not_answer_ends_the_run_and_one_unknown_address_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    (tmp_path / "list.csv").write_text("uri\ns3://b/a.mp4\ns3://b/c.mp4\n")
    with pytest.raises(storage.StoreError, match="listing"):
        curate([str(tmp_path / "list.csv")], str(tmp_path / "out"), CONFIG, inline=True, quiet=True)
    (tmp_path / "list.csv").write_text("uri\nevil://b/a.mp4\nevil://b/c.mp4\n")
    curate([str(tmp_path / "list.csv")], str(tmp_path / "out"), CONFIG, inline=True, quiet=True)
    assert pq.read_table(tmp_path / "out" / "videos").num_rows == 2


PLANNING = """
import resource, sys
from configs import schema
from curation.caption_files import Beside
from curation.sources.listing import expand
from pipeline.catalog.curate import plan
config = schema.load("tiny")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = expand([sys.argv[1]], config.curation)
units = plan(found, config.pipeline, Beside(config.curation.captions))
print(len(units), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_planning_holds_no_text_of_the_sidecars(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.mp4").touch()
        (tmp_path / f"{number}.txt").touch()
        with (tmp_path / f"{number}.txt").open("r+b") as file:
            file.truncate(1 << 20)  # sparse: 2 GB in all
    done = subprocess.run(
        [sys.executable, "-c", PLANNING, str(tmp_path)], cwd=Path(__file__).parents[2], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    units, grown = map(int, done.stdout.split())
    assert units == 2000 and grown < 50, f"{grown} MB for 2000 sidecars of 1 MB"
