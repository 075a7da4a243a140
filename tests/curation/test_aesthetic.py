"""The aesthetic operator on a small open_clip network and a random head; at full size on the meta device."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from configs.errors import EchoForgeError, MissingWeights
from configs.schema import load
from curation import puppets
from curation.analysis import registry
from curation.analysis.incremental import analyse_changed
from curation.analysis.stages import outdated, parameters
from curation.analysis.video import analyse_video
from curation.config import CurationConfig
from curation.operators import aesthetic
from curation.sources.source import Source

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1},
}


def head_state(width: int) -> dict[str, torch.Tensor]:
    """Named and shaped as the published file is."""
    sizes, state = (width, 1024, 128, 64, 16, 1), {}
    for place, (inputs, outputs) in zip((0, 2, 4, 6, 7), pairwise(sizes), strict=True):
        state[f"layers.{place}.weight"] = torch.randn(outputs, inputs) / inputs**0.5
        state[f"layers.{place}.bias"] = torch.randn(outputs)
    return state


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("aesthetic")
    (folder / "tiny-clip.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.manual_seed(0)
    save_file(open_clip.create_model("tiny-clip").state_dict(), folder / "clip.safetensors")
    torch.save(head_state(32), folder / "head.pth")
    return folder / "clip.safetensors", folder / "head.pth"


def config(clip: object, head: object) -> CurationConfig:
    named = [f"aesthetic.clip={clip}", f"aesthetic.head={head}", "aesthetic.model=tiny-clip", "aesthetic.device=cpu"]
    return load("tiny", ["sync.required=false", "aesthetic.enabled=true", *named]).curation


def test_clips_are_scored_and_a_score_added_later_is_the_same(files: tuple[Path, Path], tmp_path: Path) -> None:
    puppets.make(tmp_path / "videos", 1, 3, load("tiny").curation.puppets, False)
    video = Source(str(next((tmp_path / "videos").glob("*.mp4"))))
    before, now = load("tiny", ["sync.required=false"]).curation, config(*files)
    loaded = registry.load(now)
    (clip, *_) = analyse_video(video, now, backends=loaded)[1]
    assert np.isfinite(clip.scores["aesthetic"])
    old = analyse_video(video, before, backends=registry.load(before))
    assert "aesthetic" not in old[1][0].scores
    run = outdated(parameters(before), parameters(now))
    assert run == {"aesthetic"} and not outdated(parameters(now), parameters(before))
    (later, *_) = analyse_changed(video, now, backends=loaded, run=run, before=old)[1]
    assert later.scores["aesthetic"] == clip.scores["aesthetic"]  # the same pictures in the same batch


def test_pictures_are_scored_alike_alone_and_together(files: tuple[Path, Path]) -> None:
    scorer = aesthetic.Scorer(config(*files).aesthetic)
    pictures = list(np.random.default_rng(0).integers(0, 255, (3, 48, 64, 3), np.uint8))
    together = scorer.score(pictures)
    assert np.ptp(together) > 1e-4
    np.testing.assert_allclose([scorer.score([p])[0] for p in pictures], together, atol=1e-5)


def test_the_full_network_takes_the_published_head() -> None:
    clip = open_clip.create_model("ViT-L-14-quickgelu", device="meta")
    assert clip.visual.output_dim == 768 and clip.visual.image_size in (224, (224, 224))


def test_what_is_missing_or_wrong_is_named(files: tuple[Path, Path]) -> None:
    with pytest.raises(MissingWeights, match=r"aesthetic\.head"):
        registry.load(config(files[0], "null"))
    with pytest.raises(EchoForgeError, match="not the aesthetic head"):
        registry.load(config(files[0], files[0]))
