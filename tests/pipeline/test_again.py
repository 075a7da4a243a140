"""A changed operator looks at known clips alone, and the rows are those of a whole analysis."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs import schema
from curation import puppets
from curation import schema as catalog
from curation.analysis import incremental, registry, video
from curation.analysis.incremental import analyse_changed
from curation.analysis.stages import outdated, parameters
from curation.analysis.video import Analysis, analyse_video
from curation.captions import retold
from curation.clip import Caption, Clip, Video
from curation.config import CurationConfig
from curation.sources.source import Source
from curation.sync.fitted import FittedSync, SmallSyncNet
from pipeline.catalog.timing import Stopwatch, timed


def config(*overrides: str) -> CurationConfig:
    base = ["sync.required=false", "captions.kind=template", "captions.model=null"]
    return schema.load("tiny", [*base, *overrides]).curation


@pytest.fixture(scope="module")
def puppet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    folder = tmp_path_factory.mktemp("puppet")
    puppets.make(folder, 1, 5, config().puppets, False)
    (path,) = folder.glob("*.mp4")
    yield Source(str(path))


def stored(analysis: Analysis) -> Analysis:
    """As a ledger gives it back: every column, in the types of the tables."""
    (row,) = catalog.table([analysis[0].to_row()], catalog.VIDEOS).to_pylist()
    rows = catalog.table([clip.to_row() for clip in analysis[1]], catalog.CLIPS).to_pylist()
    return Video.from_row(row), tuple(map(Clip.from_row, rows))


def analysed(source: Source, cfg: CurationConfig) -> Analysis:
    return stored(analyse_video(source, cfg, backends=registry.load(cfg)))


def again(source: Source, cfg: CurationConfig, backends: registry.Backends, run: Any, before: Analysis) -> Analysis:
    return stored(analyse_changed(source, cfg, backends=backends, run=run, before=before))


CASES = {
    "text": ("text.rate=5", {"text"}),
    "quality": ("quality.rate=1", {"quality"}),
    "detail": ("quality.detail_rate=2.5", {"detail"}),
    "dedup": ("dedup.rate=2.5", {"dedup"}),
    "sound": ("sound.vad_threshold=0.9", {"sound"}),
    "captions": ("captions.kind=none", {"captions"}),
    "faces": ("faces.rate=5", {"faces", "sync", "text", "detail", "captions"}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_rows_are_those_of_a_whole_analysis_and_nothing_else_ran(puppet: Source, name: str) -> None:
    override, expected = CASES[name]
    before, now = config(), config(override)
    run = outdated(parameters(before), parameters(now))
    assert run == expected
    watch = Stopwatch()
    old, loaded = analysed(puppet, before), timed(registry.load(now), watch)
    assert run is not None
    rows = again(puppet, now, loaded, run, old)
    assert rows[1] and rows == analysed(puppet, now)  # to the last bit: the operators see the same pictures and sound
    assert watch.seconds.keys() <= expected, "no operator ran that was not asked for"


def test_pictures_are_looked_at_again_without_their_sound(puppet: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config()
    before, backends = analysed(puppet, cfg), registry.load(cfg)
    monkeypatch.setattr("curation.media.audio.SoundReader.read", lambda *_: pytest.fail("the sound was read"))
    assert again(puppet, cfg, backends, {"quality"}, before) == before


def test_what_moves_clips_is_everything_and_a_new_operator_is_only_itself() -> None:
    hashes = parameters(config())
    for whole in ("video", "shots", "clips"):
        assert outdated(hashes | {whole: "other"}, hashes) is None
    assert outdated({k: v for k, v in hashes.items() if k != "quality"}, hashes) == {"quality"}
    assert outdated(hashes | {"gone": "1"}, hashes) == frozenset()
    assert outdated(parameters(config("decide.min_sharpness=0.9")), hashes) == frozenset()


def test_rows_of_a_broken_file_are_no_start(tmp_path: Path) -> None:
    file = tmp_path / "broken.mp4"
    file.write_bytes(b"no video")
    cfg = config()
    broken = Source(str(file))
    error = analysed(broken, cfg)
    assert error[0].error_stage
    assert again(broken, cfg, registry.load(cfg), {"text"}, error) == error


@pytest.fixture
def bare(puppet: Source, tmp_path: Path) -> Source:
    """Without a caption beside it."""
    return Source(str(shutil.copy(puppet.uri, tmp_path / "bare.mp4")))


class _NotAsked:
    """A vision-language model that must not be asked."""

    def __call__(self) -> Any:
        raise AssertionError("the model was asked")


@pytest.mark.parametrize("kind", ["template", "vlm"])
def test_new_sync_scores_ask_no_model_and_a_template_still_says_that_somebody_talks(bare: Source, kind: str) -> None:
    before, now = config(), config("sync.vshift=10")
    run = outdated(parameters(before), parameters(now))
    assert run == {"sync"}
    torch.manual_seed(0)
    net: Any = FittedSync(SmallSyncNet(), now.sync)
    loaded = replace(registry.load(now), sync=net)
    old, whole = analysed(bare, before), stored(analyse_video(bare, now, backends=loaded))
    assert "sync_fit_conf" not in old[1][0].scores and "sync_fit_conf" in whole[1][0].scores
    if kind == "vlm":
        now = replace(now, captions=replace(now.captions, kind="vlm"))
        loaded = replace(loaded, frame_operators={**loaded.frame_operators, "captions": _NotAsked()})
        told = (Caption("A man at a desk.", "overall", "vlm:model"),)
        old, whole = ((row, tuple(replace(clip, captions=told) for clip in clips)) for row, clips in (old, whole))
    else:
        ((said,),) = (clip.captions or () for clip in old[1][:1])
        assert said.source == "template" and "not talking" not in said.text
    assert again(bare, now, loaded, run, old) == whole


def test_a_template_caption_follows_the_sound(bare: Source) -> None:
    now = config()
    old, loaded = analysed(bare, now), registry.load(now)
    silent = tuple(retold(clip.scored({"speech_frac": 0.0}), now.captions) for clip in old[1])
    assert "not talking" in (silent[0].captions or ())[0].text
    assert again(bare, now, loaded, {"sound"}, (old[0], silent)) == old


def test_nothing_is_decoded_where_no_clip_has_a_sync_score_and_none_will_get_one(
    puppet: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, now = config(), config("sync.vshift=10")
    old, loaded = analysed(puppet, before), registry.load(now)
    monkeypatch.setattr(incremental, "analyse_video", None)
    monkeypatch.setattr(video, "VideoPass", None)
    assert again(puppet, now, loaded, {"sync"}, old) == old
