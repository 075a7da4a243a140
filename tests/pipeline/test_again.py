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
from curation.analysis import incremental, registry
from curation.analysis.video import analyse_video
from curation.config import CurationConfig
from curation.operators.captions import captions
from curation.sync.fitted import FittedSync, SmallSyncNet
from pipeline.catalog.timing import Stopwatch, timed


def config(*overrides: str) -> CurationConfig:
    base = ["sync.required=false", "captions.kind=template", "captions.model=null"]
    return schema.load("tiny", [*base, *overrides]).curation


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("puppet")
    puppets.make(folder, 1, 5, config().puppets, False)
    (path,) = folder.glob("*.mp4")
    yield str(path)


def stored(rows: incremental.Rows) -> incremental.Rows:
    """As a ledger gives them back: every column, in the types of the tables."""
    (video,) = catalog.table([rows[0]], catalog.VIDEOS).to_pylist()
    return video, catalog.table(rows[1], catalog.CLIPS).to_pylist()


def analysed(video: str, cfg: CurationConfig) -> incremental.Rows:
    return stored(analyse_video(video, cfg, backends=registry.load(cfg)))


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
def test_the_rows_are_those_of_a_whole_analysis_and_nothing_else_ran(video: str, name: str) -> None:
    override, expected = CASES[name]
    before, now = config(), config(override)
    run = incremental.outdated(registry.parameters(before), registry.parameters(now))
    assert run == expected
    watch = Stopwatch()
    old, loaded = analysed(video, before), timed(registry.load(now), watch)
    rows = stored(incremental.analyse_again(video, now, backends=loaded, run=run, before=old))
    assert rows[1] and rows == analysed(video, now)  # to the last bit: the operators see the same pictures and sound
    assert watch.seconds.keys() <= expected, "no operator ran that was not asked for"


def test_what_moves_clips_is_everything_and_a_new_operator_is_only_itself() -> None:
    hashes = registry.parameters(config())
    for whole in ("video", "shots", "clips"):
        assert incremental.outdated(hashes | {whole: "other"}, hashes) is None
    assert incremental.outdated({k: v for k, v in hashes.items() if k != "quality"}, hashes) == {"quality"}
    assert incremental.outdated(hashes | {"gone": "1"}, hashes) == frozenset()
    assert incremental.outdated(registry.parameters(config("decide.min_sharpness=0.9")), hashes) == frozenset()


def test_rows_of_a_broken_file_are_no_start(tmp_path: Path) -> None:
    file = tmp_path / "broken.mp4"
    file.write_bytes(b"no video")
    cfg = config()
    error: Any = analysed(str(file), cfg)
    assert error[0]["error_stage"]
    loaded = registry.load(cfg)
    assert stored(incremental.analyse_again(str(file), cfg, backends=loaded, run={"text"}, before=error)) == error


@pytest.fixture
def bare(video: str, tmp_path: Path) -> str:
    """Without a caption beside it."""
    return str(shutil.copy(video, tmp_path / "bare.mp4"))


class _NotAsked:
    """A vision-language model that must not be asked."""

    def __call__(self) -> Any:
        raise AssertionError("the model was asked")


@pytest.mark.parametrize("kind", ["template", "vlm"])
def test_new_sync_scores_ask_no_model_and_a_template_still_says_that_somebody_talks(bare: str, kind: str) -> None:
    before, now = config(), config("sync.vshift=10")
    run = incremental.outdated(registry.parameters(before), registry.parameters(now))
    assert run == {"sync"}
    torch.manual_seed(0)
    net: Any = FittedSync(SmallSyncNet(), now.sync)
    loaded = replace(registry.load(now), sync=net)
    old, whole = analysed(bare, before), stored(analyse_video(bare, now, backends=loaded))
    assert old[1][0]["sync_fit_conf"] is None and whole[1][0]["sync_fit_conf"] is not None
    if kind == "vlm":
        now = replace(now, captions=replace(now.captions, kind="vlm"))
        loaded = replace(loaded, captioner=_NotAsked())
        for clip in (*old[1], *whole[1]):
            clip["captions"] = [{"text": "A man at a desk.", "kind": "overall", "source": "vlm:model"}]
    else:
        assert old[1][0]["captions"][0]["source"] == "template"
        assert "not talking" not in old[1][0]["captions"][0]["text"]
    assert stored(incremental.analyse_again(bare, now, backends=loaded, run=run, before=old)) == whole


def test_a_template_caption_follows_the_sound(bare: str) -> None:
    now = config()
    old, loaded = analysed(bare, now), registry.load(now)
    before = old[0], [clip | {"speech_frac": 0.0} for clip in old[1]]
    for clip in before[1]:
        clip["captions"] = captions(clip | {"captions": None}, [], now.captions)
    assert "not talking" in before[1][0]["captions"][0]["text"]
    assert stored(incremental.analyse_again(bare, now, backends=loaded, run={"sound"}, before=before)) == old


def test_nothing_is_decoded_where_no_clip_has_a_sync_score_and_none_will_get_one(
    video: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, now = config(), config("sync.vshift=10")
    old, loaded = analysed(video, before), registry.load(now)
    monkeypatch.setattr(incremental, "analyse_video", None)
    monkeypatch.setattr(incremental, "_look", None)
    assert stored(incremental.analyse_again(video, now, backends=loaded, run={"sync"}, before=old)) == old
