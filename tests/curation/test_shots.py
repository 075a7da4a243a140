"""What is a cut, what is not, and the clips that come of it; on pictures made here."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import load
from curation.analysis.clips import ClipCutter
from curation.analysis.shots import ShotDetector, shots
from curation.operators.base import Picture, Span

CFG = load("tiny").curation
pytestmark = pytest.mark.numeric
H, W = 90, 160


def scene(seed: int, count: int, *, pan: float = 0.0, first: int = 0) -> list[np.ndarray]:
    """A room of smooth colours with somebody who moves in it, uint8 [90, 160, 3]; ``pan``: pixels a frame."""
    rng = np.random.default_rng(seed)
    wide = cv2.resize(rng.random((7, 18, 3)).astype(np.float32), (4 * W, H), interpolation=cv2.INTER_CUBIC)
    room, skin = np.clip(wide, 0, 1) * 220, rng.integers(60, 240, 3).tolist()
    frames = []
    for n in range(first, first + count):
        x = pan * n
        move = np.float32([[1, 0, -x], [0, 1, 0]])
        image = cv2.warpAffine(room, move, (W, H), borderMode=cv2.BORDER_REFLECT).astype(np.uint8)
        cv2.ellipse(image, (80 + round(6 * np.sin(n / 7)), 48), (17, 23), 0, 0, 360, skin, -1)
        noise = np.random.default_rng(n).normal(0, 2, image.shape)
        frames.append(np.clip(image + noise, 0, 255).astype(np.uint8))
    return frames


def transitions(frames: list[np.ndarray]) -> list[Span]:
    detector = ShotDetector(CFG.shots)
    for number, image in enumerate(frames):
        detector.frame(Picture(number, image, 1.0, False))
    detector.finish()
    return detector.transitions()


@pytest.mark.parametrize("at", [5, 40, 77])
def test_a_cut_is_found_at_its_frame(at: int) -> None:
    assert transitions(scene(1, at) + scene(2, 80)) == [Span(at, at)]


def test_cuts_that_follow_each_other_closely_are_all_found() -> None:
    frames = [f for seed, count in ((1, 30), (2, 12), (3, 8), (4, 30)) for f in scene(seed, count)]
    assert [t.start for t in transitions(frames)] == [30, 42, 50]


def flash(frames: list[np.ndarray], at: int, count: int) -> list[np.ndarray]:
    lit = [
        np.full_like(f, 250) if n % 2 == 0 else np.clip(f * 1.9, 0, 255).astype(np.uint8) for n, f in enumerate(frames)
    ]
    return frames[:at] + lit[at : at + count] + frames[at + count :]


@pytest.mark.parametrize("frames", [
    scene(1, 90), scene(1, 90, pan=1.5), scene(1, 90, pan=-4.0), flash(scene(1, 90), 40, 1), flash(scene(1, 90), 41, 3),
], ids=["a person who moves", "a slow pan", "a fast pan", "a flash", "a longer flash"])  # fmt: skip
def test_what_is_no_cut(frames: list[np.ndarray]) -> None:
    assert transitions(frames) == []


@pytest.mark.parametrize("length", [10, 20, 40])
def test_a_cross_fade_belongs_to_neither_shot(length: int) -> None:
    before, after = scene(1, 60 + length), scene(2, 60 + length)
    share = np.linspace(0, 1, length)
    mixed = [cv2.addWeighted(a, 1 - s, b, s, 0) for a, b, s in zip(before[60:], after[:length], share, strict=True)]
    found = transitions(before[:60] + mixed + after[length:])
    left, right = shots(found, 120 + length)
    assert 48 <= left.end <= 62 and 58 + length <= right.start <= 72 + length


def test_a_fade_through_black_is_a_transition() -> None:
    down, up = np.linspace(1, 0, 15), np.linspace(0, 1, 15)
    out = [(f * s).astype(np.uint8) for f, s in zip(scene(1, 75)[60:], down, strict=True)]
    back = [(f * s).astype(np.uint8) for f, s in zip(scene(2, 15), up, strict=True)]
    found = transitions(scene(1, 60) + out + back + scene(2, 60, first=15))
    assert found and all(t.start >= 48 and t.end <= 102 for t in found)
    assert not any(s.start < 70 and s.end > 80 for s in shots(found, 150)), "no shot goes through the black"


def test_repeated_frames_of_a_slow_source_are_no_cuts_and_hide_none() -> None:
    detector = ShotDetector(CFG.shots)
    frames = [f for f in scene(1, 20) + scene(2, 20) for _ in range(2)]
    for number, image in enumerate(frames):
        detector.frame(Picture(number, image, 1.0, number % 2 == 1))
    detector.finish()
    assert [t.start for t in detector.transitions()] == [40]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_clips_are_of_legal_lengths_apart_from_cuts_and_do_not_depend_on_how_soon_they_are_asked_for(lengths, random):
    ends = np.cumsum(lengths).tolist()

    def cut(patient: bool) -> list[Span]:
        cutter, found, start = ClipCutter(CFG.clips), [], 0
        for end in ends:
            while not patient and start < end:
                start = min(end, start + random.randint(1, 90))
                if start < end:
                    found += cutter.advance(start)
            found += cutter.close(end, end, cut=end != ends[-1])
        return found

    clips = cut(True)
    assert clips == cut(False)
    margin = CFG.clips.margin
    for clip in clips:
        assert len(clip) % 4 == 1 and CFG.clips.min_frames <= len(clip) <= CFG.clips.max_frames
        assert all(clip.end <= end - margin or clip.start >= end + margin for end in ends[:-1])
    assert all(a.end <= b.start for a, b in pairwise(clips))
