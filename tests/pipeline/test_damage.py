"""Damage to what a catalog consists of: the next run gives what it would have given, or one sentence says what is wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import schema
from configs.errors import EchoForgeError
from curation.analysis.video import Analysis
from curation.clip import Clip, Video
from curation.schema import clip_id, video_id
from curation.sources.source import Source
from pipeline import storage
from pipeline.catalog import curate, queries, tables
from pipeline.engine import seal
from pipeline.engine.damage import mend
from pipeline.engine.ledger import Ledger
from pipeline.engine.unit import Finished, Result, Unit, unit_id

CALLS: list[str] = []
COUNT = 6


def analyse(source: Source, cfg: Any, **_: Any) -> Analysis:
    """One clip for every video."""
    uri = source.uri
    CALLS.append(Path(uri).name)
    if Path(uri).read_text() == "poison":
        raise RuntimeError("cannot")
    video = video_id(uri)
    clip = {"clip_id": clip_id(video, 0, 33), "video_id": video, "source_uri": uri, "start_frame": 0, "end_frame": 33}
    scores = {"start_s": 0.0, "end_s": 1.32, "width": 96, "height": 96, "phash": [], "captions": [], "tracks": []}
    facts = Video(uri, video_id=video, duration_s=10.0, bytes=Path(uri).stat().st_size)
    return facts, (Clip.from_row(clip | scores),)


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.setattr(curate, "analyse_video", analyse)
    monkeypatch.setattr(curate, "analyse_changed", lambda source, cfg, *, run, before, **_: before)
    monkeypatch.setattr(curate, "timed", lambda loaded, watch: loaded)
    monkeypatch.setattr(curate.registry, "load", lambda cfg: None)
    monkeypatch.setattr(curate.registry, "check_files", lambda cfg: None)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for n in range(COUNT):
        (folder / f"{n}.mp4").write_text(f"video {n}")
    (folder / "bad.mp4").write_text("poison")
    return folder


def run(media: Path, out: Path, *overrides: str) -> None:
    config = schema.load("tiny", ["execution.rows_per_file=4", *overrides])
    curate.curate([str(media)], str(out), config, inline=True)


def rows(out: Path) -> list[Any]:
    whole = tables.read_whole(str(out))
    clips = sorted(whole.clips.to_pylist(), key=lambda row: row["source_uri"])
    return [whole.videos.to_pylist(), clips, whole.run.saved["config"], queries.verify(str(out)).wrong]


def targets(out: Path) -> list[Path]:
    """Every file that a run reads."""
    ledger = [*out.glob("ledger/curate/*/parts/*"), *out.glob("ledger/curate/*/quarantine/*")]
    others = [*out.glob("ledger/curate/*/parameters.json"), out / "ledger/curate/latest.json", out / "incomplete.json"]
    return [*ledger, *others, *out.glob("clips/*"), *out.glob("videos/*"), *(out / f"{name}.json" for name in (
        "tables", "run", "status"))]  # fmt: skip


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def other_schema(path: Path) -> None:
    pq.write_table(pa.table({"unit": [1], "verdict": ["keep"]}), path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


DAMAGES: list[Callable[[Path, random.Random], object]] = [
    flip,
    lambda path, chance: path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size or 1)]),
    lambda path, chance: path.write_bytes(b""),
    lambda path, chance: path.write_bytes(chance.randbytes(500)),
    lambda path, chance: path.write_bytes(nested(100_000)),
    lambda path, chance: path.write_text(chance.choice(["[]", "1", '"x"', '{"a": {"b": [1]}}', '{"unit": 3}', "null"])),
    lambda path, chance: other_schema(path),
    lambda path, chance: pipe(path),
    lambda path, chance: folder(path),
    lambda path, chance: link(path),
    lambda path, chance: path.unlink(),
]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("most", "each"), [(8, 1), pytest.param(100, len(DAMAGES), marks=pytest.mark.slow)])
def test_after_any_damage_the_next_run_is_right_or_says_one_sentence(
    media: Path, tmp_path: Path, most: int, each: int
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(media, whole)
    run(media, whole, "text.rate=0.7")  # rows of other parameters, which the runs below start from or return to
    run(media, whole)
    expected, chance, told = rows(whole), random.Random(12), 0
    (whole / "incomplete.json").write_text("{}")
    names = [path.relative_to(whole) for path in targets(whole)]
    names = chance.sample(names, min(most, len(names)))
    for name in names:
        for damage in chance.sample(DAMAGES, each):
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(whole, out)
            damage(out / name, chance)
            CALLS.clear()
            try:
                run(media, out)
            except EchoForgeError as error:
                sentence = str(error)
                assert str(name) in sentence and "\n" not in sentence and len(sentence) < 600, sentence
                told += 1
                continue
            shown = rows(out)
            assert shown[:3] == expected[:3], name
            assert all("run.json" in wrong for wrong in shown[3]), shown[3]
            assert len(CALLS) <= COUNT + 2
    assert told < len(names) * each / 3, "the ledger heals, nearly everything else is made anew"


def test_a_damaged_part_is_set_aside_named_and_looked_at_again(
    media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(media, out)
    part = max(out.glob("ledger/curate/*/parts/*.parquet"), key=lambda path: path.stat().st_size)
    flip(part, random.Random(3))
    lost = part.read_bytes()
    CALLS.clear()
    run(media, out)
    said = " ".join(capsys.readouterr().err.split())
    assert f"'{part}' is damaged (it is not as it was written): it is now '{part.name}.damaged'" in said
    assert part.with_name(part.name + ".damaged").read_bytes() == lost, "nothing is deleted"
    assert CALLS and queries.verify(str(out)).ok


def test_verify_finds_150_of_150_flips_and_names_the_file(media: Path, tmp_path: Path) -> None:
    out, chance = tmp_path / "out", random.Random(150)
    run(media, out)
    assert queries.verify(str(out)).ok
    parts = [*out.glob("clips/*"), *out.glob("videos/*"), *out.glob("ledger/curate/*/parts/*")]
    files = [*parts, out / "run.json", out / "tables.json", *out.glob("ledger/curate/*/quarantine/*")]
    found = 0
    for _ in range(150):
        path = chance.choice(files)
        before = path.read_bytes()
        flip(path, chance)
        result = queries.verify(str(out))
        found += len(result.wrong) == 1 and path.name in result.wrong[0] and "`" in result.wrong[0]
        path.write_bytes(before)
    assert found == 150
    assert queries.verify(str(out)).ok


def test_a_reader_of_a_damaged_table_says_one_sentence_or_reads_what_was_written(media: Path, tmp_path: Path) -> None:
    out, chance = tmp_path / "out", random.Random(5)
    run(media, out)
    expected, refused = rows(out)[:2], 0
    files = [*out.glob("clips/*"), *out.glob("videos/*")]
    for _ in range(120):
        path = chance.choice(files)
        before = path.read_bytes()
        flip(path, chance)
        try:
            whole = tables.read_whole(str(out))
            clips = sorted(whole.clips.to_pylist(), key=lambda row: row["source_uri"])
            assert [whole.videos.to_pylist(), clips] == expected
        except EchoForgeError as error:
            refused += 1
            assert path.name in str(error) and "`curate`" in str(error)
        path.write_bytes(before)
    assert refused > 100


@pytest.mark.parametrize("later", [0.0, -1e6])
def test_the_last_version_of_a_file_is_shown_whatever_the_clock_said(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    """The clock is set back between two versions; then another folder is curated, so that nothing is planned for them."""
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    (other / "more.mp4").write_text("more")
    run(media, out)
    (media / "0.mp4").write_text("another version, longer")
    now = time.time
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.engine.ledger.time.time", lambda: now() + later)
        run(media, out)
    expected = video_id(media / "0.mp4")
    run(other, out)
    shown = {row["source_uri"]: row["video_id"] for row in tables.read_whole(str(out)).videos.to_pylist()}
    assert shown[str(media / "0.mp4")] == expected and len(shown) == COUNT + 2


def test_records_of_older_versions_come_before_all_that_have_a_run(tmp_path: Path) -> None:
    kinds = {"a": pa.schema([("n", pa.int64())])}
    where = Ledger(str(tmp_path), kinds, {"op": "1"})
    where.prepare()
    where.commit([Finished(Unit(unit_id(1), None, key="k"), Result({"a": pa.table({"n": [1]})}), 1.0)], "v")
    (part,) = Path(where.parts).iterdir()
    old = pq.read_table(part).drop_columns(["run"])
    late = old.set_column(old.schema.get_field_index("finished"), "finished", pa.array([9e12]))
    pq.write_table(late.set_column(0, "unit", pa.array([unit_id(0)])), part.with_name(f"u-{unit_id(0)}.parquet"))
    mend(str(tmp_path), kinds, pytest.fail)
    assert curate.current(where, []) == ({unit_id(1)}, [])
    again = Ledger(str(tmp_path), kinds, {"op": "2"})
    again.prepare()
    assert again.run == where.run + 1, "counted over the ledgers of all parameters"


def test_seals_find_every_flip_and_survive_text_that_looks_like_one() -> None:
    text = f'{seal.KEY}": "{"0" * 32} {seal.KEY}\x18\x20{"f" * 32}'
    for data in (seal.json_text({"a": text}), seal.parquet(pa.table({"a": [text, None]}))):
        assert seal.intact(data)
        for at in range(len(data)):
            damaged = bytearray(data)
            damaged[at] ^= 1 << (at % 8)
            assert not seal.intact(bytes(damaged)), at


def test_a_ledger_in_an_object_store_heals(s3: str) -> None:
    kinds = {"a": pa.schema([("n", pa.int64())])}
    where = Ledger(f"{s3}/ledger", kinds, {"op": "1"})
    where.prepare()
    for n in range(3):
        where.commit([Finished(Unit(unit_id(n), None), Result({"a": pa.table({"n": [n]})}), 1.0)], "v")
    url = where.part([unit_id(1)])
    data = bytearray(storage.read_bytes(url))
    data[40] ^= 1
    storage.write_bytes(url, bytes(data))
    said: list[str] = []
    mend(where.root, kinds, said.append)
    assert len(said) == 1 and url in said[0] and where.done() == {unit_id(0), unit_id(2)}
    assert storage.read_bytes(f"{url}.damaged") == bytes(data)


def test_a_status_that_is_damaged_is_one_line(media: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(media, out)
    for text in ("[]", "{", '{"done": "x", "total": 1}', '{"done": 1e999, "total": 1}', "[" * 100_000):
        (out / "status.json").write_text(text)
        assert "status.json' is damaged" in str(queries.status(str(out)))
    (out / "ledger" / "curate" / "latest.json").write_text(json.dumps({"a": [1]}))
    with pytest.raises(EchoForgeError, match=r"latest\.json' is damaged"):
        queries.status(str(out))
