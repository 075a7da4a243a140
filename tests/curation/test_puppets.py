"""The puppet world: repeatable, found by the face detector, its mouth driven by its sound, its faults as told."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from configs.errors import EchoForgeError
from configs.schema import load
from curation.config import PuppetsConfig
from curation.faces import load_detector
from curation.puppets import FAULTS, make, make_one, plan, read_manifest, sample
from curation.puppets.measure import correlation, follows, loudness

TINY = load("tiny", []).curation


@pytest.fixture(scope="module")
def cfg() -> PuppetsConfig:
    return TINY.puppets


def test_a_puppet_is_a_pure_function_of_seed_and_index(cfg: PuppetsConfig, tmp_path: Path) -> None:
    rows = make(tmp_path / "a", 6, 3, cfg)
    spots = plan(6, 3, cfg)
    make_one(tmp_path, spots[4], 3, cfg)  # alone, elsewhere, out of order; the same bytes on the same machine
    assert (tmp_path / "a" / rows[4].file).read_bytes() == (tmp_path / rows[4].file).read_bytes()
    assert read_manifest(tmp_path / "a")[4].frames == rows[4].frames
    assert not np.array_equal(sample(3, 0, cfg, frames=4).frames, sample(4, 0, cfg, frames=4).frames)


def test_every_fault_comes_up_and_duplicates_name_a_clean_original(cfg: PuppetsConfig) -> None:
    spots = plan(120, 0, cfg)
    assert {s.fault for s in spots} == {None, *FAULTS}
    clean = {s.index for s in spots if s.fault is None}
    assert all(s.source in clean for s in spots if s.fault and s.fault.startswith("duplicate"))
    assert all(s.fault is None for s in plan(10, 0, cfg, faults=False))
    with pytest.raises(EchoForgeError, match="unknown"):
        plan(10, 0, cfg, faults=["subtitle"])


def test_faces_are_found_by_the_default_detector(cfg: PuppetsConfig) -> None:
    detector = load_detector(TINY.faces)
    found = total = 0
    for index in range(24):
        puppet = sample(11, index, cfg, frames=26)
        for at in (0, 12, 25):
            faces, true = detector.detect(puppet.frames[at]), puppet.truth.face_boxes[at]
            total += 1
            middle = [(f.box[:2] + f.box[2:]) / 2 for f in faces]
            found += any((true[:2] < m).all() and (m < true[2:]).all() for m in middle)
    assert found / total > 0.95


@pytest.mark.numeric
def test_the_mouth_follows_the_sound_and_can_be_read_off_a_blurred_picture(cfg: PuppetsConfig) -> None:
    own, other, loud = [], [], []
    puppets = [sample(5, index, cfg, frames=75) for index in range(6)]
    for index, puppet in enumerate(puppets):
        blurred = np.stack([cv2.GaussianBlur(f, (0, 0), 1.0) for f in puppet.frames])
        own.append(follows(blurred, puppet.truth.mouth_boxes, puppet.truth.mouth_px))
        other.append(follows(blurred, puppet.truth.mouth_boxes, puppets[index - 1].truth.mouth_px))
        loud.append(correlation(loudness(puppet.pcm), puppet.truth.mouth_px))
        width = puppet.truth.mouth_boxes[:, 2] - puppet.truth.mouth_boxes[:, 0]
        assert width.min() >= 10
        assert np.ptp(puppet.truth.mouth_px) > 5.5
    assert np.mean(own) > 0.9
    assert min(own) > 0.75
    assert min(loud) > 0.9
    assert max(other) < 0.5


@pytest.mark.parametrize(("fault", "sign"), [("audio_late", 1), ("audio_early", -1)])
def test_shifted_sound_is_late_or_early_by_what_the_manifest_says(cfg: PuppetsConfig, fault: str, sign: int) -> None:
    puppet = sample(2, 1, cfg, fault, frames=90)
    late = puppet.audio_shift_ms // 40
    assert late * sign > 0
    sound, mouth = loudness(puppet.pcm), puppet.truth.mouth_px
    best = max(range(-8, 9), key=lambda lag: correlation(np.roll(sound, -lag)[10:-10], mouth[10:-10]))
    assert best == late


def test_spoiled_files_and_still_pictures(cfg: PuppetsConfig, tmp_path: Path) -> None:
    frozen = sample(2, 3, cfg, "freeze", frames=60).frames
    assert (frozen[30:] == frozen[30]).all()
    assert (frozen[0] != frozen[15]).any()
    rows = make(tmp_path, 3, 0, cfg, faults=["damaged"])
    assert [r.expected_verdict for r in rows].count("reject") == 1
    assert (tmp_path / next(r.file for r in rows if r.fault)).read_bytes()[4:8] != b"ftyp"
