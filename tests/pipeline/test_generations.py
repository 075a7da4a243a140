"""The tables of a catalog are replaced in one step: whatever is killed or read meanwhile sees the old ones or the new ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from configs import schema
from configs.errors import EchoForgeError
from curation.schema import CLIPS, VIDEOS, table
from pipeline import listing, storage
from pipeline.catalog import generation, queries, tables, writer
from pipeline.catalog.run_record import RunRecord
from pipeline.catalog.summary import describing
from tests.good_clip import GOOD_CLIP

HERE = Path(__file__).resolve().parent
FILES = 4


def make(root: str, *overrides: str) -> str:
    """A catalog of four videos with two clips each, one file of each table per video."""
    config = schema.load("tiny", list(overrides))
    videos = [{"video_id": f"v{n}", "source_uri": f"/old/{n}.mp4", "bytes": 1} for n in range(FILES)]
    clips = [
        GOOD_CLIP | {
            "clip_id": f"c{n}{k}", "video_id": f"v{n}", "source_uri": f"/old/{n}.mp4", "start_frame": 33 * k,
            "end_frame": 33 * k + 33, "start_s": 1.32 * k, "end_s": 1.32 * k + 1.32, "sync_c": 8.0,
            "av_offset_frames": 0, "sharpness": 0.28 + 0.01 * (2 * n + k), "tracks": [{"track_id": k}], "captions": [],
        }
        for n in range(FILES)
        for k in range(2)
    ]  # fmt: skip

    def pieces(columns: list[str]) -> Any:
        yield table(clips, CLIPS).select(columns)

    writer.write(root, table(videos, VIDEOS), pieces, config.curation, 2, describing(config, RunRecord()))
    return root


def older(root: str) -> str:
    """The same catalog as a version without `tables.json` wrote it."""
    for name in generation.NAMES:
        for number, part in enumerate(sorted(Path(root, name).iterdir())):
            part.rename(part.with_name(f"part-{number:05d}.parquet"))
    Path(root, generation.FILE).unlink()
    return root


def seen(root: Path) -> tuple[Any, ...]:
    """What a reader finds: rows, and the thresholds that they were decided with."""
    whole = tables.read_whole(str(root), None, tables.LIGHT)
    threshold = (whole.run.saved.get("config") or {}).get("decide", {}).get("min_sharpness")
    return whole.videos.to_pylist(), whole.clips.to_pylist(), threshold


@pytest.mark.parametrize(
    ("command", "version", "every"),
    [("redecide", "of today", 4), *(
        pytest.param(command, version, 1, marks=pytest.mark.slow)
        for command in ("redecide", "curate", "relocate") for version in ("of today", "older")
    )],
)  # fmt: skip
def test_killed_at_any_moment_a_catalog_is_the_old_one_or_the_new_one(
    tmp_path: Path, command: str, version: str, every: int
) -> None:
    before = make(str(tmp_path / "before"))
    if version == "older":
        older(before)
    (tmp_path / "media").mkdir()
    for n in range(FILES):
        (tmp_path / "media" / f"{n}.mp4").write_text("x")
    run = [sys.executable, str(HERE / "killed.py"), command, str(tmp_path), str(every)]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout)
    old, new = seen(Path(before)), seen(tmp_path / "first")
    assert kills >= 20 / every and old != new
    if command != "relocate":
        assert [sum(row["verdict"] == "keep" for row in state[1]) for state in (old, new)] == [8, 6]
    states = [seen(tmp_path / str(n)) for n in range(1, kills + 1)]
    assert all(state in (old, new) for state in states)
    assert states == [old] * states.count(old) + [new] * states.count(new) and old in states and new in states
    for n in {states.count(old), states.count(old) + 1, kills}:  # the next writer clears what was left
        queries.redecide(str(tmp_path / str(n)), schema.load("tiny", ["decide.min_sharpness=0.3"]))
        assert queries.verify(str(tmp_path / str(n))).ok
        there = {p.name for p in (tmp_path / str(n)).rglob("*") if p.is_file()}
        parts = [part.name for some in generation.current(str(tmp_path / str(n))).parts.values() for part in some]
        assert there == {*parts, "tables.json", "run.json", "report.html"}


def test_readers_beside_a_writer_see_one_generation_at_a_time(tmp_path: Path) -> None:
    root = make(str(tmp_path))
    valid = []
    for sharpness in (0.27, 0.3):
        queries.redecide(root, schema.load("tiny", [f"decide.min_sharpness={sharpness}"]))
        valid.append(seen(tmp_path))
    stop, wrong = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            try:
                if (state := seen(tmp_path)) not in valid:
                    wrong.append(state)
            except EchoForgeError as error:
                if "fast as" not in str(error) and "gone" not in str(error):
                    wrong.append(error)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for n in range(10):
        queries.redecide(root, schema.load("tiny", [f"decide.min_sharpness={(0.27, 0.3)[n % 2]}"]))
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    root = make(str(tmp_path))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(RuntimeError), generation.Change(root, generation.current(root)) as change:
        change.add("clips", CLIPS.empty_table())
        raise RuntimeError
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_generations_in_an_object_store(s3: str) -> None:
    root = make(f"{s3}/catalog")
    for sharpness, kept in ((0.3, 6), (0.27, 8)):
        storage.write_bytes(f"{root}/clips/part-00000-0123456789abcdef.parquet", b"left by a writer that was killed")
        said = queries.redecide(root, schema.load("tiny", [f"decide.min_sharpness={sharpness}"]))
        assert said.clips["keep"] == kept and queries.verify(root).ok
        now = generation.current(root)
        assert now is not None and {entry.name for entry in listing.files(f"{root}/clips")} == {
            part.name for part in now.parts["clips"]
        }


def test_tables_without_what_says_which_belong_together_are_refused(tmp_path: Path) -> None:
    root = make(str(tmp_path))
    Path(root, generation.FILE).unlink()
    with pytest.raises(EchoForgeError, match=r"tables\.json', which says which tables belong together, is gone"):
        tables.read(root, "clips", CLIPS)


def test_the_facts_of_a_run_are_those_of_its_tables(tmp_path: Path) -> None:
    """`run.json` is a copy for people: one of other tables changes nothing, is found by `verify` and mended by `report`."""
    root = make(str(tmp_path))
    facts = json.loads((tmp_path / "run.json").read_text())
    facts["config"]["decide"]["min_sharpness"] = 0.9
    (tmp_path / "run.json").write_text(json.dumps(facts))
    config = queries.configuration(root, [])
    assert config is not None and config.curation.decide.min_sharpness == 0.27
    assert "run.json" in str(queries.verify(root)) and not queries.verify(root).ok
    queries.report(root, None, config.curation)
    assert queries.verify(root).ok


def test_verify_of_an_older_catalog_says_what_it_cannot_know(tmp_path: Path) -> None:
    root = older(make(str(tmp_path)))
    assert queries.verify(root).ok and "without digests" in str(queries.verify(root))
    part = tmp_path / "clips" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    assert not queries.verify(root).ok and "part-00001.parquet" in str(queries.verify(root))
    shutil.rmtree(tmp_path / "clips")
    assert not queries.verify(root).ok
