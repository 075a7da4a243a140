"""A changed operator looks at known clips alone, and the rows are those of a whole analysis."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs import schema
from curation import again, backends, catalog, puppets
from curation.analyse import analyse_video
from curation.config import CurationConfig
from pipeline.timing import Stopwatch, timed


def config(*overrides: str) -> CurationConfig:
    base = ["sync.required=false", "captions.kind=template", "captions.model=null"]
    return schema.load("tiny", [*base, *overrides]).curation


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("puppet")
    puppets.make(folder, 1, 5, config().puppets, False)
    (path,) = folder.glob("*.mp4")
    yield str(path)


def stored(rows: again.Rows) -> again.Rows:
    """As a ledger gives them back: every column, in the types of the tables."""
    (video,) = catalog.table([rows[0]], catalog.VIDEOS).to_pylist()
    return video, catalog.table(rows[1], catalog.CLIPS).to_pylist()


def analysed(video: str, cfg: CurationConfig) -> again.Rows:
    return stored(analyse_video(video, cfg, backends=backends.load(cfg)))


CASES = {
    "text": ("text.rate=5", {"text"}),
    "quality": ("quality.rate=1", {"quality"}),
    "detail": ("quality.detail_rate=2.5", {"detail"}),
    "dedup": ("dedup.rate=2.5", {"dedup"}),
    "sound": ("sound.vad_threshold=0.9", {"sound", "captions"}),
    "captions": ("captions.kind=none", {"captions"}),
    "faces": ("faces.rate=5", {"faces", "sync", "text", "detail", "captions"}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_rows_are_those_of_a_whole_analysis_and_nothing_else_ran(video: str, name: str) -> None:
    override, expected = CASES[name]
    before, now = config(), config(override)
    run = again.outdated(backends.parameters(before), backends.parameters(now))
    assert run == expected
    watch = Stopwatch()
    old, loaded = analysed(video, before), timed(backends.load(now), watch)
    rows = stored(again.analyse_again(video, now, backends=loaded, run=run, before=old))
    assert rows[1] and rows == analysed(video, now)  # to the last bit: the operators see the same pictures and sound
    assert watch.seconds.keys() <= expected, "no operator ran that was not asked for"


def test_what_moves_clips_is_everything_and_a_new_operator_is_only_itself() -> None:
    hashes = backends.parameters(config())
    for whole in ("video", "shots", "clips"):
        assert again.outdated(hashes | {whole: "other"}, hashes) is None
    assert again.outdated({k: v for k, v in hashes.items() if k != "quality"}, hashes) == {"quality"}
    assert again.outdated(hashes | {"gone": "1"}, hashes) == frozenset()
    assert again.outdated(backends.parameters(config("decide.min_sharpness=0.9")), hashes) == frozenset()


def test_rows_of_a_broken_file_are_no_start(tmp_path: Path) -> None:
    file = tmp_path / "broken.mp4"
    file.write_bytes(b"no video")
    cfg = config()
    error: Any = analysed(str(file), cfg)
    assert error[0]["error_stage"]
    loaded = backends.load(cfg)
    assert stored(again.analyse_again(str(file), cfg, backends=loaded, run={"text"}, before=error)) == error


def test_a_template_caption_says_that_somebody_talks_when_sync_alone_ran_again(video: str, tmp_path: Path) -> None:
    bare = shutil.copy(video, tmp_path / "without-a-caption-beside-it.mp4")
    before, now = config(), config("sync.vshift=10")
    run = again.outdated(backends.parameters(before), backends.parameters(now))
    old, loaded = analysed(str(bare), before), backends.load(now)
    assert run == {"sync", "captions"} and "not talking" not in old[1][0]["captions"][0]["text"]
    assert stored(again.analyse_again(str(bare), now, backends=loaded, run=run, before=old)) == old
