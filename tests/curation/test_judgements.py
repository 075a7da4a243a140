"""Text, quality, sound, duplicates, sources and captions on pictures and sounds made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from configs.errors import EchoForgeError
from configs.schema import load
from curation import schema
from curation.caption_files import written
from curation.captions import captioned
from curation.clip import Box, Clip, Track
from curation.decision import duplicates
from curation.operators.base import ClipContext, Picture, Span
from curation.operators.captions import parse_answer
from curation.operators.overlapped_speech import second_voice
from curation.operators.perceptual_hash import PerceptualHashOperator
from curation.operators.quality import QualityOperator, sharpness
from curation.operators.speech import SpeechOperator, Vad
from curation.operators.text import crop
from curation.operators.text.operator import TextOperator
from curation.operators.text.recogniser import Recogniser
from curation.puppets import sample
from curation.sources import listing

CFG = load("tiny", []).curation
RNG = np.random.default_rng(0)


def context(width: int, height: int, box: Box | None = None) -> ClipContext:
    tracks = (Track(0, (box,), (0,), (), 1.0, 0.0, 1.0),) if box else ()
    return ClipContext(width, height, 25.0, tracks, 0 if box else None)


def scenery(size: int, frame: int = 0, seed: int = 1) -> np.ndarray:
    """Smooth colours that drift, uint8 [size, size, 3]."""
    noise = np.random.default_rng(seed).random((6, 6, 3)).astype(np.float32)
    big = cv2.resize(noise, (size + 60, size + 60), interpolation=cv2.INTER_CUBIC)
    return (np.clip(big[frame % 50 :, frame % 50 :][:size, :size], 0, 1) * 200).astype(np.uint8)


@pytest.fixture(scope="module")
def net() -> Recogniser:
    return Recogniser(CFG.text)


def watch(net: Recogniser, words: dict[int, str], size: int = 360, where: tuple[float, float] = (0.2, 0.92)) -> Any:
    operator = TextOperator(CFG.text, net)
    for index in range(0, 60, 10):
        image = scenery(size, index)
        text = next((t for start, t in sorted(words.items(), reverse=True) if index >= start), "")
        at, scale = (int(where[0] * size), int(where[1] * size)), size / 400
        for colour, thick in (((0, 0, 0), max(2, round(4 * scale))), ((255, 255, 255), max(1, round(1.6 * scale)))):
            cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thick, cv2.LINE_AA)
        operator.frame(Picture(index, image, 1.0, False))
    return operator.clip(Span(0, 60), context(size, size, (0.4 * size, 0.2 * size, 0.6 * size, 0.45 * size)))


def test_a_subtitle_is_found_read_and_cropped_away(net: Recogniser) -> None:
    row = watch(net, {0: "Hello there"})
    assert [b.kind for b in row["text_boxes"]] == ["subtitle"] and row["subtitle_score"] > 0.5
    assert "Hello" in row["text_boxes"][0].text
    rect = row["crop"]
    assert rect.y + rect.h <= row["text_boxes"][0].y0 and rect.w == pytest.approx(rect.h, abs=2)


def test_subtitles_that_change_are_two_lines_with_their_own_times(net: Recogniser) -> None:
    boxes = watch(net, {0: "Hello there", 30: "Good night"})["text_boxes"]
    assert [b.kind for b in boxes] == ["subtitle", "subtitle"]
    assert sorted(b.last < 30 for b in boxes) == [False, True]


def test_small_videos_are_read_too_and_clean_ones_stay_clean(net: Recogniser) -> None:
    assert watch(net, {0: "Hello there"}, size=128)["subtitle_score"] > 0.5
    clean = watch(net, {})
    assert clean["text_boxes"] == [] and clean["crop"] is None


def test_corner_text_is_a_watermark(net: Recogniser) -> None:
    assert [b.kind for b in watch(net, {0: "SAMPLE"}, where=(0.66, 0.08))["text_boxes"]] == ["watermark"]


def pan(index: int, size: int = 360) -> np.ndarray:
    """A camera that moves over fine, contrasty texture, uint8 [size, size, 3]."""
    noise = np.random.default_rng(3).integers(40, 160, (size // 4, size, 3), np.uint8)
    big = cv2.resize(noise, (2 * size, size), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(big[:, 2 * index : 2 * index + size])


@pytest.mark.parametrize("late", [0, 24, 48])
def test_a_subtitle_over_a_moving_camera_is_found_whenever_it_comes(net: Recogniser, late: int) -> None:
    operator, step = TextOperator(CFG.text, net), 12
    for index in range(0, 108, step):
        image = pan(index)
        if late <= index < late + 3 * step:
            for colour, thick in (((0, 0, 0), 6), ((255, 255, 255), 2)):
                cv2.putText(image, "Hello there", (70, 330), cv2.FONT_HERSHEY_SIMPLEX, 1.1, colour, thick, cv2.LINE_AA)
        operator.frame(Picture(index, image, 1.0, False))
    row = operator.clip(Span(0, 108), context(360, 360))
    assert any("ello" in box.text and box.kind == "subtitle" for box in row["text_boxes"])


@pytest.mark.parametrize("picture", [scenery, lambda size, index: pan(index, size), lambda size, _: pan(0, size)])
def test_between_refreshes_the_detector_looks_only_where_something_came_to_stand(net, picture) -> None:
    operator = TextOperator(CFG.text, net)
    for index in range(0, 120, 12):
        operator.frame(Picture(index, picture(360, index), 1.0, False))
    assert operator.looked == CFG.text.detect_side**2, "the first picture, and nothing after it"


def test_crop_keeps_the_face_or_is_none() -> None:
    low = np.array([[100, 440, 400, 480]])
    rect = crop.propose(low, np.array([[200, 100, 300, 220]]), 512, 512, 0.5, 0.25)
    assert rect and rect.y + rect.h <= 440 and rect.x <= 200 and rect.x + rect.w >= 300
    assert crop.propose(low, np.array([[200, 300, 300, 450]]), 512, 512, 0.5, 0.25) is None


def quality(frames: list[np.ndarray]) -> Any:
    operator = QualityOperator(CFG.quality)
    for number, image in enumerate(frames):
        operator.frame(Picture(number * 5, image, 1.0, False))
    height, width = frames[0].shape
    return operator.clip(Span(0, 5 * len(frames)), context(width, height))


@pytest.mark.numeric
def test_blur_lowers_sharpness_and_enlarging_does_not_hide_it() -> None:
    sharp = cv2.resize(RNG.integers(0, 255, (56, 56), np.uint8), (112, 112))
    blurred = cv2.GaussianBlur(sharp, (0, 0), 3)
    assert sharpness(blurred, 112) < 0.5 * sharpness(sharp, 112)
    assert sharpness(cv2.resize(blurred, (448, 448)), 112) < 0.6 * sharpness(sharp, 112)


@pytest.mark.numeric
def test_frozen_and_black_stretches_are_shares_of_the_clip() -> None:
    moving = [cv2.cvtColor(scenery(160, i * 4), cv2.COLOR_RGB2GRAY) for i in range(10)]
    assert quality(moving)["freeze_frac"] == 0.0
    assert quality(moving + [moving[-1]] * 10)["freeze_frac"] == pytest.approx(10 / 19)
    assert quality([np.zeros((160, 160), np.uint8)] * 5)["freeze_frac"] == 1.0


@pytest.mark.numeric
def test_letterbox_is_the_rectangle_of_the_content() -> None:
    frames = [
        cv2.copyMakeBorder(
            cv2.cvtColor(scenery(200, i * 4), cv2.COLOR_RGB2GRAY)[:120] | 64, 40, 40, 0, 0, cv2.BORDER_CONSTANT
        )
        for i in range(6)
    ]
    rect = quality(frames)["letterbox"]
    assert rect.w == 200 and rect.y == pytest.approx(40, abs=4) and rect.h == pytest.approx(120, abs=8)
    assert quality([f[40:160] for f in frames])["letterbox"] is None


@pytest.mark.numeric
def test_noise_silence_and_clipping_are_told_from_each_other() -> None:
    operator = SpeechOperator(CFG.sound, Vad(1))
    noise = (RNG.standard_normal(32000) * 0.1).astype(np.float32)
    row = operator.clip(noise, noise[:, None], 16000)
    assert row["speech_frac"] < 0.1 and row["clip_frac"] == 0.0 and -40 < row["lufs"] < -5
    assert operator.clip(noise * 0, noise[:, None] * 0, 16000)["lufs"] == -70.0
    loud = np.clip(np.sin(np.arange(32000) / 20) * 3, -1, 1).astype(np.float32)
    assert operator.clip(loud, loud[:, None], 16000)["clip_frac"] > 0.3


def test_two_voices_score_above_either_and_silence_has_no_score() -> None:
    voices = [sample(3, n, CFG.puppets, frames=60).pcm for n in range(24)]
    alone = [second_voice(v) for v in voices]
    both = [second_voice(a + b) for a, b in zip(voices[:12], voices[12:], strict=True)]
    wins = [high > low for high in both if high is not None for low in alone if low is not None]
    assert np.mean(wins) > 0.9
    assert second_voice(np.zeros(32000, np.float32)) is None and second_voice(np.zeros(10, np.float32)) is None


def hashes(seed: int, first: int = 0, count: int = 30, mirrored: bool = False) -> list[int]:
    operator = PerceptualHashOperator(CFG.dedup)
    for number in range(first, first + count):
        still = scenery(160, 0, seed=9)
        spot = scenery(160, number * 3 % 50, seed=seed + number // 15)
        image = cv2.cvtColor(still // 2 + spot // 2, cv2.COLOR_RGB2GRAY)
        operator.frame(Picture((number - first) * 5, image[:, ::-1] if mirrored else image, 1.0, False))
    return operator.clip(Span(0, count * 5), context(160, 160))["phash"]


@pytest.mark.numeric
def test_copies_are_found_trimmed_and_mirrored_and_the_best_one_stays() -> None:
    kinds = {"a": hashes(2), "trim": hashes(2, 8, 20), "mirror": hashes(2, mirrored=True), "other": hashes(40)}
    rows = [
        {"clip_id": k, "video_id": k, "source_uri": k, "phash": v, "face_px": 9.0 if k == "mirror" else 5.0}
        for k, v in kinds.items()
    ]
    table = schema.table(rows, schema.CLIPS)
    assert duplicates.find_duplicates(table, CFG.dedup) == {"a": "mirror", "trim": "mirror"}
    late = [row | {"av_offset_frames": -3 if row["clip_id"] == "mirror" else 0, "face_px": 9.0} for row in rows]
    assert set(duplicates.find_duplicates(schema.table(late, schema.CLIPS), CFG.dedup).values()) == {"a"}, (
        "in time, longest"
    )
    twice = schema.table([*rows[:1], rows[0] | {"source_uri": "b"}], schema.CLIPS)
    assert duplicates.mark_duplicates(twice, CFG.dedup)["duplicate_of"].to_pylist() == [None, "a"]


def test_sources_of_every_kind(tmp_path: Path) -> None:
    odd = ["a b.mp4", "-x.mp4", "$(rm).mp4", "q'\".mp4", "new\nline.mkv", "видео.webm"]
    for name in [*odd, "a b.txt"]:
        (tmp_path / name).write_bytes(b"x")
    assert {Path(s.uri).name for s in listing.expand([str(tmp_path)], CFG)} == set(odd)
    (tmp_path / "m.csv").write_text("path,start,end,caption\nv.mp4,1,2,hi\nv.mp4,5,9,\n")
    (found,) = listing.expand([str(tmp_path / "m.csv")], CFG)
    assert found.spans == ((1.0, 2.0), (5.0, 9.0)) and found.caption == "hi"
    with pytest.raises(EchoForgeError, match="does not exist"):
        listing.expand([str(tmp_path / "nothing")], CFG)


def test_hdtf_annotations(tmp_path: Path) -> None:
    (tmp_path / "RD_video_url.txt").write_text("Radio1.mp4 https://x\n")
    (tmp_path / "RD_annotion_time.txt").write_text("Radio1.mp4 0:05-0:35 1:10-1:40\n")
    (tmp_path / "RD_crop_wh.txt").write_text("Radio1_0.mp4 10 300 20 310\n")
    (tmp_path / "RD_resolution.txt").write_text("Radio1.mp4 720\n")
    (found,) = listing.expand([str(tmp_path)], CFG)
    assert found.spans == ((5.0, 35.0), (70.0, 100.0)) and found.region == (10, 20, 300, 310, 720)


def test_captions_say_where_they_come_from(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    (tmp_path / "v.txt").write_text("short\n\nrather longer")
    assert [c.text for c in written(str(video), CFG.captions).captions] == ["short", "rather longer"]
    (tmp_path / "v.txt").unlink()
    assert written(str(video), CFG.captions, "given").captions[0].source == "manifest"
    clip = Clip("c", "v", str(video), 0, 33, 96, 96)
    assert [c.source for c in captioned(clip, (), CFG.captions).captions or ()] == ["template"]
    answer = parse_answer('Sure: {"overall": "A man talks.", "eyes": "open"}', "vlm:m")
    assert {c.kind: c.text for c in answer} == {"overall": "A man talks.", "eyes": "open"}
