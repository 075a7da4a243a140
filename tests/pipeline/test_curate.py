"""What `curate` and `catalog redecide` do around the analysis; the analysis itself is replaced, so that rows can be made at will."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from configs import aliases, schema
from configs.errors import EchoForgeError, MissingWeights
from curation.analysis.stages import decides, parameters, stages_of
from curation.analysis.video import Analysis
from curation.clip import Clip, Video
from curation.schema import VIDEOS, clip_id, video_id
from curation.sources.source import Source
from pipeline import storage
from pipeline.catalog import curate, queries, redecide, tables

CALLS: list[str] = []


def analyse(source: Source, cfg: Any, *, backends: Any) -> Analysis:
    """A file's text is its number of clips; sharpness falls from clip to clip."""
    uri = source.uri
    CALLS.append(Path(uri).name)
    text = Path(uri).read_text()
    if text == "poison":
        raise RuntimeError("cannot")
    video = video_id(uri)
    clips = [
        {
            "clip_id": clip_id(video, 33 * n, 33 * n + 33), "video_id": video, "source_uri": uri,
            "start_frame": 33 * n, "end_frame": 33 * n + 33, "start_s": 1.32 * n, "end_s": 1.32 * n + 1.32,
            "width": 96, "height": 96, "face_frac": 1.0, "face_px": 60.0, "n_faces": 1, "speech_frac": 1.0,
            "lufs": -20.0, "sharpness": 1.0 / (n + 1), "exposure": 0.5, "motion": 1.0, "fps": 25.0,
            "sync_c": 8.0, "av_offset_frames": 0, "phash": [], "text_boxes": [],
            "tracks": [{"track_id": n, "boxes": [[0.0, 0.0, 1.0, 1.0]], "box_frames": [0]}],
            "captions": [{"text": uri, "kind": "overall", "source": "t"}],
        }
        for n in range(int(text))
    ]  # fmt: skip
    return Video(uri, video_id=video, duration_s=10.0), tuple(map(Clip.from_row, clips))


def again(source: Source, cfg: Any, *, run: Any, before: Analysis, **more: Any) -> Analysis:
    """Notes which operators are asked for; the rows stay."""
    CALLS.append(f"{Path(source.uri).name}: {', '.join(sorted(run))}")
    return before


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.setattr(curate, "analyse_video", analyse)
    monkeypatch.setattr(curate, "analyse_changed", again)
    monkeypatch.setattr(curate, "timed", lambda loaded, watch: loaded)
    monkeypatch.setattr(curate.registry, "load", lambda cfg: None)
    monkeypatch.setattr(curate.registry, "check_files", lambda cfg: None)


def run(source: Path, out: Path, *overrides: str, **more: Any) -> curate.CurateSummary:
    base = ["execution.rows_per_file=4", "decide.min_sharpness=0.3"]
    return curate.curate(
        [str(source)], str(out), schema.load("tiny", [*base, *overrides]), inline=True, quiet=True, **more
    )


def rows(out: Path, name: str = "clips") -> list[dict[str, Any]]:
    found = [row for file in sorted((out / name).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return sorted(found, key=lambda row: (row["source_uri"], row.get("start_frame", 0)))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, text in {"a.mp4": "5", 'it\'s "b"\n$(x).mp4': "3", "-c.mp4": "2"}.items():
        (folder / name).write_text(text)
    return folder


def test_every_file_and_clip_has_a_row_and_heavy_columns_stay_with_their_clip(videos: Path, tmp_path: Path) -> None:
    summary = run(videos, tmp_path / "out")
    clips = rows(tmp_path / "out")
    assert len(clips) == 10 and len(rows(tmp_path / "out", "videos")) == 3
    assert len(list((tmp_path / "out" / "clips").iterdir())) == 3, "files of at most four rows"
    assert all(row["captions"][0]["text"] == row["source_uri"] for row in clips)
    assert all(row["tracks"][0]["track_id"] == row["start_frame"] // 33 for row in clips)
    assert [row["verdict"] for row in clips if row["source_uri"].endswith("a.mp4")] == ["keep"] * 3 + ["reject"] * 2
    assert summary.clips == {"keep": 8, "reject": 2} and summary.videos == {"keep": 3}
    assert {p.name: p.read_text() for p in videos.iterdir()}.keys() == {"a.mp4", 'it\'s "b"\n$(x).mp4', "-c.mp4"}


def test_a_threshold_decides_again_without_analysing(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(videos, out)
    CALLS.clear()
    config = schema.load("tiny", ["execution.rows_per_file=4", "decide.min_sharpness=0.9"])
    summary = queries.redecide(str(out), config)
    again = rows(out)
    assert summary.clips == {"keep": 3, "reject": 7}
    run(videos, out, "decide.min_sharpness=0.9")
    assert CALLS == [] and rows(out) == again
    assert "sharpness" in str(queries.explain(str(out), again[4]["clip_id"], config.curation))


def test_a_catalog_is_decided_again_from_its_own_configuration(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(videos, out, "decide.min_sharpness=0.9", "decide.max_faces=3")
    config = queries.configuration(str(out), ["decide.min_sharpness=0.1"])
    assert config is not None
    assert (config.curation.decide.min_sharpness, config.curation.decide.max_faces) == (0.1, 3)
    queries.redecide(str(out), config)
    assert {row["verdict"] for row in rows(out)} == {"keep"}
    later = queries.configuration(str(out), [])
    assert later is not None and later.curation.decide == config.curation.decide
    assert queries.configuration(str(tmp_path), []) is None
    with pytest.raises(EchoForgeError, match="nan"):
        queries.configuration(str(out), ["decide.min_sharpness=.nan"])


def test_a_changed_parameter_computes_its_operator_and_what_depends_on_it_and_says_so(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    base = ["execution.rows_per_file=4", "decide.min_sharpness=0.3"]

    def ran_after(*overrides: str) -> tuple[list[str], str]:
        CALLS.clear()
        curate.curate([str(videos)], str(out), schema.load("tiny", [*base, *overrides]), inline=True)
        return sorted(call.rpartition(".mp4")[2] for call in CALLS), capsys.readouterr().err

    ran_after()
    before = rows(out)
    ran, said = ran_after("text.rate=0.7")
    assert ran == [": text"] * 3
    assert (
        "changed since the last run: text." in said and "computed again: text; kept as it is: captions, clips" in said
    )
    assert rows(out) == before
    (videos / "new.mp4").write_text("1")
    ran, said = ran_after("faces.side=200")
    assert ran == ["", *[": captions, detail, faces, sync, text"] * 3], "from the rows that need least"
    assert "3 videos: computed again" in said and "1 videos: analysed whole" in said
    ran, said = ran_after("clips.max_frames=65")
    assert ran == [""] * 4 and "4 videos: analysed whole" in said
    ran, said = ran_after("faces.side=200")
    assert ran == [] and "computed again" not in said, "switching back finds what was done"
    (videos / "new.mp4").unlink()


def test_a_catalog_grows_and_a_changed_file_replaces_its_rows(videos: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "out", tmp_path / "more"
    more.mkdir()
    (more / "d.mp4").write_text("1")
    run(videos, out)
    run(more, out)
    assert len(rows(out, "videos")) == 4 and len(rows(out)) == 11
    (videos / "a.mp4").write_text("1")
    os.utime(videos / "a.mp4", ns=(1, 1))
    CALLS.clear()
    run(videos, out)
    assert CALLS == ["a.mp4"]
    assert len(rows(out, "videos")) == 4 and len(rows(out)) == 7
    tags = {row["source_uri"]: row["source_tag"] for row in rows(out, "videos")}
    assert tags == {uri: str(Path(uri).stat().st_mtime_ns) for uri in tags} and tags[str(videos / "a.mp4")] == "1"


def test_a_changed_caption_is_read_again_and_only_that(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(videos, out)
    for change, expected in (
        (lambda: (videos / "a.txt").write_bytes(b"\xff broken"), ["a.mp4"]),
        (lambda: (videos / "a.txt").write_text("mended"), ["a.mp4"]),
        ((videos / "a.txt").unlink, []),  # as at first: those rows are there
        (lambda: (videos / "captions.csv").write_text("file,caption\n-c.mp4,says so\nz.mp4,other"), ["-c.mp4"]),
        (lambda: (videos / "captions.csv").write_text("file,caption\n-c.mp4,says so\nz.mp4,another"), []),
    ):
        CALLS.clear()
        change()
        run(videos, out)
        assert expected == CALLS


def test_a_poisoned_file_has_a_row_with_its_cause_and_can_be_tried_again(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (videos / "p.mp4").write_text("poison")
    summary = run(videos, out)
    assert CALLS.count("p.mp4") == 2 and len(summary.set_aside) == 1
    (row,) = [row for row in rows(out, "videos") if row["verdict"] == "error"]
    assert row["source_uri"].endswith("p.mp4") and row["error"] == "RuntimeError: cannot"
    assert "RuntimeError: cannot" in str(queries.status(str(out)))
    CALLS.clear()
    run(videos, out)
    assert CALLS == []
    run(videos, out, retry_failed=True)
    assert CALLS.count("p.mp4") == 2


def test_scores_are_not_lost_when_their_file_is_gone_and_another_setting_changed(videos: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "syncnet.model"
    settings = ("sync.backend=syncnet_v2", f"sync.weights={file}")
    file.touch()
    run(videos, out, *settings)
    file.unlink()
    CALLS.clear()
    scored = rows(out)
    for command in (None, "curate", "redecide"):
        if command:
            (out / tables.MARK).write_text(json.dumps({"why": "killed", "command": command}))
        for changed in ("text.rate=0.7", "sync.vshift=9"):
            with pytest.raises(MissingWeights, match=r"has sync scores.*measured again.*--set sync\.backend=none"):
                run(videos, out, *settings, changed)
    assert CALLS == [] and rows(out) == scored
    assert run(videos, out, *settings).clips == {"keep": 8, "reject": 2} and not (out / tables.MARK).exists()
    assert run(videos, out, "text.rate=0.7", "sync.backend=none").clips, "named, it is done"


def test_a_catalog_without_scores_goes_on_without_their_file(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unscored(source: Source, cfg: Any, **more: Any) -> Analysis:
        video, clips = analyse(source, cfg, **more)
        return video, tuple(clip.scored({"sync_c": None, "av_offset_frames": None}) for clip in clips)

    monkeypatch.setattr(curate, "analyse_video", unscored)
    out, settings = tmp_path / "out", ("sync.backend=syncnet_v2", f"sync.weights={tmp_path / 'none'}")
    assert run(videos, out, *settings).clips == {"hold": 8, "reject": 2}
    (out / tables.MARK).write_text(json.dumps({"why": "killed", "command": "redecide"}))
    (out / "clips" / "part-00000.parquet").write_bytes(b"damaged")
    assert run(videos, out, *settings, "text.rate=0.7").clips == {"hold": 8, "reject": 2}
    assert len(rows(out)) == 10 and not (out / tables.MARK).exists(), "what is half-written or damaged is mended"


def test_exact_copies_keep_their_rows_and_one_of_them_is_kept(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (videos / "b copy.mp4").write_text("5")
    run(videos, out)
    copies = [row for row in rows(out) if row["clip_id"] == rows(out)[1]["clip_id"]]
    assert sorted(row["verdict"] for row in rows(out) if row["source_uri"].endswith(("a.mp4", "copy.mp4"))) == [
        *["keep"] * 3, *["reject"] * 7,
    ]  # fmt: skip
    assert len({row["source_uri"] for row in copies}) == len(copies)
    run(videos, out, "dedup.enabled=false")
    assert all(row["duplicate_of"] is None for row in rows(out))


def older(out: Path) -> None:
    """Make a catalog what a version without `tables.json` would have written."""
    for part in [*out.glob("clips/*"), *out.glob("videos/*")]:
        part.rename(part.with_name(f"{part.name[:10]}.parquet"))
    (out / "tables.json").unlink()


def test_tables_that_an_older_version_left_half_written_are_not_read_and_written_anew(
    videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(videos, out)
    older(out)
    (videos / "new.mp4").write_text("9")
    (out / tables.MARK).write_text(json.dumps({"why": "killed", "command": "curate"}))
    with pytest.raises(EchoForgeError, match="interrupted"):
        queries.status(str(out))
    CALLS.clear()
    run(videos, out)
    assert CALLS == ["new.mp4"] and len(rows(out)) == 19 and queries.status(str(out)).clips["keep"] == 11


def test_no_credentials_in_anything_that_is_written(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    out = tmp_path / "out"
    run(videos, out, "faces.weights=https://u:wJalrXUtnFEMI@host/w?token=wJalrXUtnFEMI")
    written = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    assert b"wJalrXUtnFEMI" not in written
    assert json.loads((out / "run.json").read_text())["config"]["faces"]["weights"].startswith("https://***")


def test_sources_and_catalog_in_an_object_store_and_no_credentials_there(
    s3: str, videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, file in enumerate(sorted(videos.iterdir())):
        storage.write_bytes(f"{s3}/raw/{number} $(x).mp4", file.read_bytes())
    storage.write_bytes(f"{s3}/raw/poison.mp4", b"poison")
    out = f"{s3}/catalog"
    config = schema.load("tiny", ["execution.rows_per_file=4", "decide.min_sharpness=0.3"])
    summary = curate.curate([f"{s3}/raw"], out, config, inline=True)
    assert summary.clips == {"keep": 8, "reject": 2} and len(summary.set_aside) == 1
    table = tables.read(out, "videos", VIDEOS)
    analysed = table.filter(pc.is_valid(table["video_id"])).to_pylist()
    assert len(analysed) == 3 and all(row["source_tag"] == storage.entry(row["source_uri"]).tag for row in analysed)
    CALLS.clear()
    again = curate.curate([f"{s3}/raw"], out, config, inline=True)
    assert CALLS == [] and again.clips == summary.clips
    assert "quarantined: " in (shown := str(queries.status(out))) and "poison.mp4: RuntimeError: cannot" in shown
    assert "--retry-failed" in shown
    assert queries.redecide(out, schema.load("tiny", ["decide.min_sharpness=0.9"])).clips == {"keep": 3, "reject": 7}
    fs, root = storage.filesystem(out)
    written = b"".join(fs.cat_file(path) for path in fs.find(root)) + "".join(capfd.readouterr()).encode()
    assert b"testing-secret" not in written and b"testing-key" not in written and len(fs.find(root)) > 6


def test_status_of_a_first_run_that_has_not_ended(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (videos / "a poison.mp4").write_text("poison")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(curate.writer, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run(videos, out)
    shown = str(queries.status(str(out)))
    assert "3 of 4 videos done" in shown and "a poison.mp4: RuntimeError: cannot" in shown


# ------------------------------------------------------------------------------- deciding again, and curating after it


def decided(out: Path, *overrides: str, preset: str | None = None) -> redecide.Redecision:
    """As `catalog redecide` does it."""
    return redecide.redecide(str(out), redecide.chosen(str(out), preset, list(overrides)))


def test_deciding_again_says_what_changed(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(videos, out)
    said = decided(out, "decide.min_sharpness=0.9", "decide.min_lufs=-10")
    assert said.settings == {"decide.min_sharpness": (0.3, 0.9), "decide.min_lufs": (-50.0, -10.0)}
    assert (said.before, said.clips) == ({"keep": 8, "reject": 2}, {"reject": 10})
    assert said.moved == {("keep", "reject"): 8}
    assert said.reasons == {"sharpness": (2, 7), "silence": (0, 10)}
    lines = str(said).splitlines()
    assert any(line.split() == ["reject", "2", "10", "+8"] for line in lines)
    assert any(line.split() == ["sharpness", "2", "7", "+5"] for line in lines)
    assert max(map(len, lines[:-1])) < 80 or str(out) in lines[0]
    assert "no verdict changed" in str(decided(out, "decide.min_lufs=-10"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("text.rate=5", r"'text.rate': it changes what is measured \(text\); run `curate` again with it"),
        ("dedup.rate=1", r"'dedup.rate': it changes what is measured \(dedup\)"),
        ("sync.backend=fitted", r"'sync.backend': it changes what is measured \(sync\)"),
        ("clips.max_frames=65", r"measured \(clips\)"),
        ("aesthetic.enabled=true", r"measured \(aesthetic\)"),
        ("optim.lr=1", "'optim.lr': no verdict depends on it"),
        ("sync_min_conf=4", r"did you mean 'decide.sync_min_conf'\?"),
    ],
)
def test_what_cannot_be_decided_again_is_refused(videos: Path, tmp_path: Path, override: str, words: str) -> None:
    out = tmp_path / "out"
    run(videos, out)
    before = (out / "run.json").read_bytes()
    with pytest.raises(EchoForgeError, match=words):
        decided(out, "decide.min_sharpness=0.9", override)
    assert (out / "run.json").read_bytes() == before


def test_every_key_of_curation_is_measured_with_or_decides_or_has_no_part() -> None:
    """Against the hashes themselves: a key that `redecide` applies changes none of them, any other of the same
    sections does."""
    config = schema.load("tiny", ["aesthetic.enabled=true"])
    whole = schema.to_mapping(config)
    hashes = parameters(config.curation)
    neither = {"puppets", "sync.fit", "sources"}  # the units depend on what links lead to
    for section in (field.name for field in dataclasses.fields(config.curation)):
        for name, value in whole[section].items():
            key = f"{section}.{name}"
            other = copy.deepcopy(config.curation)
            object.__setattr__(getattr(other, section), name, f"{value} ")
            changed = {operator for operator, digest in parameters(other).items() if digest != hashes.get(operator)}
            assert changed == set(stages_of(key, config.curation)), key
            assert decides(key, config.curation) == (not changed and section not in neither and key not in neither), key


def test_a_later_curate_keeps_what_redecide_set_unless_it_names_the_key(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def curated(*overrides: str, named: tuple[str, ...] = ()) -> tuple[dict[str, int], str]:
        config = schema.load("tiny", ["execution.rows_per_file=4", "decide.min_sharpness=0.3", *overrides])
        clips = curate.curate([str(videos)], str(out), config, inline=True, named=named).clips
        return clips, " ".join(line for line in capsys.readouterr().err.splitlines() if "decide" in line)

    assert curated() == ({"keep": 8, "reject": 2}, "")
    decided(out, "decide.min_sharpness=0.9")
    for _ in range(2):  # a weekly run, with the configuration that it always had
        clips, said = curated()
        assert clips == {"keep": 3, "reject": 7}
        assert "kept as `catalog redecide` set it: decide.min_sharpness=0.9 (here: 0.3)" in said
        assert "--set" in said
    clips, said = curated("decide.max_faces=0")
    assert clips == {"reject": 10} and "decided otherwise than before: decide.max_faces 1 → 0." in said
    assert "kept as" in said
    clips, said = curated(named=("decide.min_sharpness",))
    assert clips == {"keep": 8, "reject": 2} and "decide.min_sharpness 0.9 → 0.3" in said and "kept as" not in said
    assert curated() == ({"keep": 8, "reject": 2}, ""), "nothing of it is left"


def test_a_preset_gives_its_thresholds_only_and_takes_tuning_back(videos: Path, tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine.yaml"
    mine.write_text("extends: tiny\ndecide: {min_sharpness: 0.9}\ntext: {rate: 5}\n")
    run(videos, out)
    notes: list[str] = []
    config = redecide.chosen(str(out), str(mine), [], notes.append)
    assert config.curation.decide.min_sharpness == 0.9 and config.curation.text.rate == 2.08
    assert len(notes) == 1 and "text stay as measured" in notes[0] and "`curate --preset" in notes[0]
    assert redecide.redecide(str(out), config).clips == {"keep": 3, "reject": 7}
    assert run(videos, out).clips == {"keep": 3, "reject": 7}
    decided(out, "decide.min_sharpness=0.3", preset="tiny")
    assert run(videos, out).clips == {"keep": 8, "reject": 2}
    assert json.loads((out / "run.json").read_text())["config"]["text"]["rate"] == 2.08


def test_a_catalog_saved_with_older_names_is_decided_again_and_curated(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(videos, out)
    decided(out, "decide.min_sharpness=0.9")
    older(out)
    text = (out / "run.json").read_text()
    (out / "run.json").write_text(text.replace('"min_sharpness"', '"min_sharp"'))
    monkeypatch.setattr(aliases, "ROWS", (aliases.Renamed("decide.min_sharp", "decide.min_sharpness"),))
    CALLS.clear()
    assert run(videos, out).clips == {"keep": 3, "reject": 7} and CALLS == [], "no hash changed"
    older(out)
    (out / "run.json").write_text(text.replace('"min_sharpness"', '"min_sharp"'))
    assert decided(out, "decide.min_sharp=0.3").clips == {"keep": 8, "reject": 2}


def test_thresholds_that_cannot_be_read_are_said_and_do_not_stop_curate(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(videos, out)
    older(out)
    monkeypatch.setattr(aliases, "ROWS", (aliases.Removed("decide.colour", "delete it"),))
    saved = json.loads((out / "run.json").read_text())
    saved["config"]["decide"]["colour"] = 1
    (out / "run.json").write_text(json.dumps(saved))
    said: list[str] = []
    config = schema.load("tiny")
    assert redecide.carried(str(out), config, (), said.append) == config
    assert len(said) == 1 and "'decide.colour' was removed: delete it" in said[0]
    with pytest.raises(EchoForgeError, match=r"another version .* name one with --preset"):
        decided(out)
    assert decided(out, preset="tiny").clips == {"keep": 8, "reject": 2}
    older(out)
    (out / "run.json").write_text("{")
    with pytest.raises(EchoForgeError, match=r"run\.json' is damaged"):
        run(videos, out)
