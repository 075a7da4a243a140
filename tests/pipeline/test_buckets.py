"""Buckets: nothing stretched, faces kept, letters cut away; splits never divide a person."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.schema import load
from curation.clip import Clip, Rect, Track
from pipeline.dataset import buckets, plan

REAL = load("wan2.1-fun-1.3b").pipeline


def track(boxes: Sequence[Sequence[float]], at: Sequence[int] = (0,), mouth: Sequence[Sequence[float]] = ()) -> Track:
    faces, mouths = (tuple(map(tuple, found)) for found in (boxes, mouth))
    return Track(0, faces, tuple(at), mouths, size_px=0, jitter=0, frac_present=1)  # type: ignore[arg-type]


def clip(width: int, height: int, box: list[float] | None = None, **scores: Rect) -> Clip:
    tracks = (track([box], mouth=[box]),) if box else ()
    return Clip("c", "v", "v.mp4", 0, 1, width, height, tracks=tracks, active_track=0, scores=scores)


def test_sizes_keep_the_area_and_fit_codec_and_patches() -> None:
    found = buckets.sizes(REAL.buckets)
    assert (832, 480) in found and (480, 832) in found and any(w == h for w, h in found)
    for width, height in found:
        assert width % 16 == height % 16 == 0
        assert min(abs(width * height / area - 1) for area in REAL.buckets.areas) < 0.06
    with pytest.raises(ConfigError, match="4k\\+1"):
        buckets.sizes(load("wan2.1-fun-1.3b", ["buckets.lengths=[80]"]).pipeline.buckets)


@pytest.mark.parametrize(
    ("width", "height", "aspect"), [(1920, 1080, 26 / 15), (1080, 1920, 15 / 26), (1080, 1080, 1), (1440, 1080, 4 / 3)]
)
def test_podcast_portrait_and_square_keep_their_shape(width: int, height: int, aspect: float) -> None:
    (w, h), crop = buckets.choose(clip(width, height), REAL.buckets)  # type: ignore[misc]
    assert w / h == pytest.approx(aspect, rel=0.04) and crop.w * crop.h > 0.9 * width * height


@settings(max_examples=150, deadline=None)
@given(st.integers(300, 3000), st.integers(300, 3000), st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 0.3))
def test_a_crop_lies_inside_is_not_stretched_and_holds_the_face_s_centre(
    width: int, height: int, x: float, y: float, share: float
) -> None:
    size = share * min(width, height)
    left, top = x * (width - size), y * (height - size)
    chosen = buckets.choose(clip(width, height, [left, top, left + size, top + size]), REAL.buckets)
    if chosen is None:
        assert min(width, height) < 512, "a side of the smallest square"
        return
    (w, h), crop = chosen
    assert crop.x >= 0 and crop.y >= 0 and crop.x + crop.w <= width and crop.y + crop.h <= height
    assert crop.w / crop.h == pytest.approx(w / h, abs=2.5 / min(crop.w, crop.h) * max(1, w / h))
    assert crop.x - 1 <= left + size / 2 <= crop.x + crop.w + 1 and crop.y - 1 <= top + size / 2 <= crop.y + crop.h + 1


def test_bars_and_letters_are_cut_away() -> None:
    bars, clean = Rect(0, 140, 1920, 800), Rect(0, 0, 1920, 820)
    _, crop = buckets.choose(clip(1920, 1080, letterbox=bars, crop=clean), REAL.buckets)  # type: ignore[misc]
    assert crop.y >= 140 and crop.y + crop.h <= 820


def test_windows_are_the_longest_first_and_never_overlap() -> None:
    assert buckets.windows(300, [49, 81, 113]) == [(0, 113), (113, 113), (226, 49)]
    assert buckets.windows(48, [49]) == []


def test_boxes_are_linear_between_detections_and_absent_in_gaps() -> None:
    face = track([[0, 0, 10, 10], [10, 0, 20, 10], [10, 0, 20, 10]], [0, 10, 90])
    found = buckets.frame_boxes(face, "boxes", 0, 100, Rect(0, 0, 100, 100), (200, 200))
    assert found[5].tolist() == [10, 0, 30, 20]
    assert np.isnan(found[50]).all() and not np.isnan(found[[0, 10, 90]]).any()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([None, "ann", "bob", "cem"])), min_size=2, max_size=60))
def test_a_person_is_in_one_split_also_in_later_generations(pairs: list[tuple[int, str | None]]) -> None:
    speakers = [(f"v{video}", speaker) for video, speaker in pairs]
    group_of, split_of = plan.split_groups(speakers, REAL.shards, {})
    for video, speaker in speakers:
        for other, same in speakers:
            if speaker and speaker == same:
                assert group_of[video] == group_of[other]
    taken = {video: split_of[group] for video, group in group_of.items()}
    later, again = plan.split_groups([*speakers, ("new", None)], REAL.shards, taken)
    assert all(again[later[video]] == split for video, split in taken.items())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_few_videos_fill_the_splits_in_the_order_of_their_use(count: int) -> None:
    """With four videos `train` found no validation sample and stopped."""
    for series in range(50):
        speakers = [(f"{series}-{number}", None) for number in range(count)]
        filled = set(plan.split_groups(speakers, REAL.shards, {})[1].values())
        assert filled >= set(plan.SMALL_FIRST[:count])
