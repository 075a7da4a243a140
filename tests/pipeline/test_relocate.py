"""Media that moved: nothing is analysed again, nothing is lost, and a mistake is one sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import schema
from configs.errors import EchoForgeError
from configs.paths import absolute, absolute_files
from curation.analysis.video import Analysis
from curation.clip import Clip, Video
from curation.schema import clip_id, video_id
from curation.sources.source import Source
from pipeline import storage
from pipeline.catalog import curate, located, relocate
from pipeline.catalog import queries as catalog

CALLS: list[str] = []


def analyse(source: Source, cfg: Any, *, backends: Any) -> Analysis:
    """One clip of 33 frames for every video; the frame rate tells which version of the file was read: it is its first byte."""
    uri = source.uri
    CALLS.append(Path(uri).name)
    video = video_id(uri)
    clip = {"clip_id": clip_id(video, 0, 33), "video_id": video, "source_uri": uri, "start_frame": 0, "end_frame": 33}
    scores = {"start_s": 0.0, "end_s": 1.32, "width": 96, "height": 96, "phash": [], "captions": [], "tracks": []}
    file = Path(uri)
    fps = float(file.read_bytes()[0])
    facts = Video(uri, video_id=video, duration_s=10.0, bytes=file.stat().st_size, fps=fps)
    return facts, (Clip.from_row(clip | scores),)


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    CALLS.clear()
    monkeypatch.setattr(curate, "analyse_video", analyse)
    monkeypatch.setattr(curate, "timed", lambda loaded, watch: loaded)
    monkeypatch.setattr(curate.registry, "load", lambda cfg: None)
    monkeypatch.setattr(curate.registry, "check_files", lambda cfg: None)
    for folder in ("old", "old/more", "older", "work"):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(("old/a.mp4", "old/b [x].mp4", "old/more/c.mp4", "older/d.mp4")):
        (tmp_path / name).write_text("x" * (number + 1))
    (tmp_path / "old" / "a.txt").write_text("a caption")
    monkeypatch.chdir(tmp_path / "work")


def run(*sources: str, out: str = "../catalog") -> list[str]:
    """What was analysed."""
    CALLS.clear()
    curate.curate(list(sources), out, schema.load("tiny"), inline=True, quiet=True)
    return sorted(CALLS)


def uris(out: str = "../catalog", name: str = "videos") -> list[str]:
    found = [row["source_uri"] for file in Path(out, name).glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    return sorted(found)


def versions(folder: Path, *texts: str) -> None:
    """Curate ``../old`` once with each of these as the content of its files."""
    for text in texts:
        for file in sorted(folder.rglob("*.mp4")):
            file.write_text(text)
        assert len(run("../old")) == 3


def shown(out: str = "../catalog") -> set[str]:
    """Which versions of the files the catalog shows."""
    rows = [row for file in Path(out, "videos").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    return {chr(int(row["fps"])) for row in rows}


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_moved_media_are_renamed_everywhere_and_not_analysed_again(tmp_path: Path, how: str) -> None:
    run("../old", "../older")
    new = tmp_path / "new"
    shutil.move(tmp_path / "old", new) if how == "moved" else shutil.copytree(
        tmp_path / "old", new, copy_function=shutil.copy
    )
    done = catalog.relocate("../catalog", "../old/", "../new")
    assert (done.sources, done.clips, done.left) == (3, 3, [])
    expected = [str(new / name) for name in ("a.mp4", "b [x].mp4", "more/c.mp4")]
    expected.append(str(tmp_path / "older" / "d.mp4"))
    assert uris() == uris(name="clips") == expected
    assert f"{tmp_path}/old/" not in Path("../catalog/report.html").read_text()
    for sources in (["../new"], ["../new", "../older"], [str(new)]):
        assert run(*sources) == [] and uris() == expected
    os.utime(new / "more" / "c.mp4", ns=(1, 1))
    assert run("../new") == ["c.mp4"] and uris() == expected, "a file that changed since is analysed"
    (new / "a.txt").write_text("another caption")
    assert run("../new") == ["a.mp4"]


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_moved_media_keep_the_rows_of_their_last_version(tmp_path: Path, how: str) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    versions(old, "1", "2", "3")
    shutil.move(old, new) if how == "moved" else shutil.copytree(old, new, copy_function=shutil.copy)
    relocate.relocate("../catalog", "../old", "../new")
    assert run("../new") == [] and shown() == {"3"}


def test_moved_media_keep_the_rows_of_an_earlier_version_that_was_put_back(tmp_path: Path) -> None:
    old = tmp_path / "old"
    versions(old, "1")
    shutil.copytree(old, tmp_path / "backup")
    versions(old, "22", "33")
    shutil.copytree(tmp_path / "backup", old, dirs_exist_ok=True)
    assert run("../old") == [] and shown() == {"1"}
    shutil.move(old, tmp_path / "new")
    relocate.relocate("../catalog", "../old", "../new")
    assert run("../new") == [] and shown() == {"1"}


def test_without_tables_the_size_is_that_of_the_last_version(tmp_path: Path) -> None:
    versions(tmp_path / "old", "1", "22", "333")
    for name in ("videos", "clips"):
        shutil.rmtree(tmp_path / "catalog" / name)
    (tmp_path / "catalog" / "tables.json").unlink()
    shutil.move(tmp_path / "old", tmp_path / "new")
    done = relocate.relocate("../catalog", "../old", "../new")
    assert (done.sources, done.left) == (3, []) and run("../new") == [] and shown() == {"3"}


def older(catalog: Path) -> None:
    """Make a catalog what a version without `tables.json` would have written."""
    for part in [*catalog.glob("clips/*"), *catalog.glob("videos/*")]:
        part.rename(part.with_name(f"{part.name[:10]}.parquet"))
    (catalog / "tables.json").unlink()


def test_names_are_right_where_no_report_can_be_written(tmp_path: Path) -> None:
    run("../old")
    older(tmp_path / "catalog")
    saved, page = tmp_path / "catalog" / "run.json", tmp_path / "catalog" / "report.html"
    before = page.read_bytes()
    shutil.move(tmp_path / "old", tmp_path / "new")
    saved.write_text("{")
    with pytest.raises(EchoForgeError, match=r"run\.json' is damaged .*; delete it to go on without"):
        catalog.relocate("../catalog", "../old", "../new")
    assert str(tmp_path / "old" / "a.mp4") in uris(), "nothing was renamed"
    saved.write_text('{"config": {"no_such_key": 1}}')
    done = catalog.relocate("../catalog", "../old", "../new")
    assert uris() == uris(name="clips") and str(tmp_path / "new" / "a.mp4") in uris()
    assert "another version" in str(done) and "`catalog report ../catalog --preset" in str(done)
    assert "report.html keeps the old names" in str(done) and page.read_bytes() == before


def test_a_report_reads_no_tracks_and_no_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    run("../old")
    monkeypatch.setattr(catalog, "render", lambda videos, clips, cfg, saved: " ".join(clips.schema.names))
    columns = Path(catalog.report("../catalog", None, schema.load("tiny").curation)).read_text().split()
    assert "verdict" in columns and not {"tracks", "captions"} & {*columns}


def test_damaged_tables_are_one_sentence_and_curate_writes_them_again(tmp_path: Path) -> None:
    run("../old")
    for file in (tmp_path / "catalog" / "videos").glob("*.parquet"):
        file.write_text("no table")
    assert run("../old") == [] and len(uris()) == 3
    for file in (tmp_path / "catalog" / "videos").glob("*.parquet"):
        file.write_text("no table")
    shutil.move(tmp_path / "old", tmp_path / "new")
    with pytest.raises(EchoForgeError, match=r"videos/part-00000-\w+\.parquet' is damaged.*run `curate` again"):
        relocate.relocate("../catalog", "../old", "../new")
    assert run("../new") == [] and uris()[0] == str(tmp_path / "new" / "a.mp4"), "the ledger has the new names"


def test_a_file_that_was_missing_until_it_was_relocated_is_analysed(tmp_path: Path) -> None:
    (tmp_path / "talks.lst").write_text("old/a.mp4\nold/later.mp4\n")
    run("../talks.lst")
    shutil.move(tmp_path / "old", tmp_path / "new")
    (tmp_path / "new" / "later.mp4").write_text("here")
    assert relocate.relocate("../catalog", "../old", "../new").sources == 2
    (tmp_path / "talks.lst").write_text("new/a.mp4\nnew/later.mp4\n")
    assert run("../talks.lst") == ["later.mp4"] and shown() == {"x", "h"}


def test_what_is_not_there_keeps_its_name_and_is_listed(tmp_path: Path) -> None:
    run("../old")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    (tmp_path / "new" / "a.mp4").unlink()
    (tmp_path / "new" / "more" / "c.mp4").write_text("of another size")
    done = relocate.relocate("../catalog", str(tmp_path / "old"), "../new")
    assert done.sources == 1 and len(done.left) == 2 and "there is no" in done.left[0] and "bytes, not" in done.left[1]
    assert [Path(uri).parent.name for uri in uris()] == ["new", "old", "more"]
    with pytest.raises(EchoForgeError, match=r"none of the 2 sources .*/nowhere.*the first: .*a\.mp4"):
        relocate.relocate("../catalog", "../old", "../nowhere")
    with pytest.raises(
        EchoForgeError, match=r"no source of .* lies below '/elsewhere'; its 3 sources are.*a\.mp4.*c\.mp4"
    ):
        relocate.relocate("../catalog", "/elsewhere", "../new")
    with pytest.raises(EchoForgeError, match="holds no catalog"):
        relocate.relocate("../none", "../old", "../new")


def test_a_relocation_that_was_killed_is_finished_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("../old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    real = storage.write_bytes
    for most in range(20):  # one write more each time
        written: list[str] = []

        def killed(url: str, data: bytes, written: list[str] = written, most: int = most) -> None:
            if len(written) == most:
                raise KeyboardInterrupt
            written.append(url)
            real(url, data)

        monkeypatch.setattr(storage, "write_bytes", killed)
        try:
            relocate.relocate("../catalog", "../old", "../new")
        except KeyboardInterrupt:
            continue
        break
    monkeypatch.setattr(storage, "write_bytes", real)
    assert 2 < most < 19 and catalog.status("../catalog").clips
    assert run("../new") == [] and len(uris()) == 3


def test_tables_that_an_older_version_left_half_renamed_are_not_read_and_finished(tmp_path: Path) -> None:
    run("../old")
    older(tmp_path / "catalog")
    shutil.move(tmp_path / "old", tmp_path / "new")
    mark = {"why": "the tables are being written", "command": "relocate ../catalog ../old ../new"}
    (tmp_path / "catalog" / "incomplete.json").write_text(json.dumps(mark))
    with pytest.raises(EchoForgeError, match=r"run `catalog relocate \.\./catalog \.\./old \.\./new` again"):
        catalog.status("../catalog")
    catalog.relocate("../catalog", "../old", "../new")
    assert catalog.verify("../catalog").ok and uris()[0] == str(tmp_path / "new" / "a.mp4")


def test_relative_names_of_earlier_catalogs_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as before:  # as it was stored then
        before.setattr("curation.sources.listing.absolute", lambda name: name)
        assert len(run("old", "older", out="catalog")) == 4 and uris("catalog")[0] == "old/a.mp4"
    monkeypatch.chdir(tmp_path / "work")
    where = located.found(uris(), "../catalog")
    assert where["old/more/c.mp4"] == str(tmp_path / "old/more/c.mp4")
    shutil.move(tmp_path / "older", tmp_path / "work" / "elsewhere")
    assert located.found(uris(), "../catalog")["older/d.mp4"] == "older/d.mp4", "nowhere: reading it will say so"
    assert relocate.relocate("../catalog", "older", "elsewhere").sources == 1
    assert run("../old", "elsewhere") == []
    assert uris() == [str(tmp_path / f"old/{n}") for n in ("a.mp4", "b [x].mp4", "more/c.mp4")] + [
        str(tmp_path / "work/elsewhere/d.mp4")
    ]


@pytest.mark.parametrize("folder", ["", "absolute"])
def test_names_with_dots_of_earlier_catalogs_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "talks.lst").write_text("../old/a.mp4\n../old/more/c.mp4\n")
    before = tmp_path / "lists" if folder else Path("lists")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as then:
        for module in ("listing", "manifest"):
            then.setattr(f"curation.sources.{module}.absolute", lambda name: name)
        assert len(run(str(before / "talks.lst"), out="catalog")) == 2
        assert uris("catalog")[0] == f"{before}/../old/a.mp4"
    shutil.copytree("catalog", "another")
    assert run("lists/talks.lst", out="catalog") == []
    assert uris("catalog") == [str(tmp_path / "old" / name) for name in ("a.mp4", "more/c.mp4")]
    shutil.move("old", "new")
    (tmp_path / "lists" / "talks.lst").write_text("../new/a.mp4\n../new/more/c.mp4\n")
    assert relocate.relocate("another", "old", "new").sources == 2
    assert uris("another") == [str(tmp_path / "new" / name) for name in ("a.mp4", "more/c.mp4")]
    assert run("lists/talks.lst", out="another") == []


def test_relative_names_are_replaced_where_the_files_changed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as before:
        before.setattr("curation.sources.listing.absolute", lambda name: name)
        run("old", "older", out="catalog")
    monkeypatch.chdir(tmp_path / "work")
    os.utime(tmp_path / "old" / "a.mp4", ns=(1, 1))
    (tmp_path / "old" / "more" / "c.mp4").write_text("new")
    assert run("../old") == ["a.mp4", "c.mp4"] and shown() == {"n", "x"}
    here = [str(tmp_path / "old" / name) for name in ("a.mp4", "b [x].mp4", "more/c.mp4")]
    assert uris() == uris(name="clips") == [*here, "older/d.mp4"], "each once; what was not named stays as it was"
    assert run("../old", "../older") == [] and uris() == [*here, str(tmp_path / "older" / "d.mp4")]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["old", "more", "..", ".", "link", "a.mp4"]), min_size=1, max_size=5))
def test_an_absolute_path_is_the_same_file_in_every_folder(tmp_path: Path, parts: list[str]) -> None:
    link = tmp_path / "old" / "link"
    if not link.is_symlink():
        link.symlink_to(tmp_path / "older", target_is_directory=True)
    name = "/".join(["..", *parts])
    found = absolute(name)
    assert Path(found).is_absolute() and ".." not in Path(found).parts
    assert os.path.realpath(found) == os.path.realpath(name) and absolute(found) == found


def test_every_file_that_a_preset_names_is_absolute_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from configs.weights import needs

    monkeypatch.setenv("ECHOFORGE_WEIGHTS", "files")
    config = schema.load("wan2.1-fun-1.3b", ["sync.fitted=../fit.safetensors", "aesthetic.head=hub:org/name"])
    there = schema.to_mapping(absolute_files(config))
    for need in needs(schema.sections(config)):
        value: Any = there
        for key in need.key.split("."):
            value = value[key]
        assert value == str(Path.cwd() / "files" / need.configured.removeprefix("weights:")), need.key
    assert there["sync"]["fitted"] == str(Path.cwd().parent / "fit.safetensors")
    assert there["aesthetic"]["head"] == "hub:org/name"
    assert config == schema.from_mapping(schema.to_mapping(config)), "the configuration itself stays as it is"


def test_media_that_moved_into_an_object_store_and_within_it(s3: str, tmp_path: Path) -> None:
    (tmp_path / "old" / "a.txt").unlink()  # captions beside a file are read on disks only
    run("../old")
    for place in ("raw", "later"):
        for file in (tmp_path / "old").rglob("*.mp4"):
            storage.write_bytes(f"{s3}/{place}/{file.relative_to(tmp_path / 'old')}", file.read_bytes())
    for old, new in (("../old", f"{s3}/raw/"), (f"{s3}/raw", f"{s3}/later")):
        assert relocate.relocate("../catalog", old, new).sources == 3
        assert run(new) == [] and uris()[0] == f"{new.rstrip('/')}/a.mp4"
