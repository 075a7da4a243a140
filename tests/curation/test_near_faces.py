"""Following faces between whole searches: the same faces, for a fraction of the work."""

from __future__ import annotations

import numpy as np
import pytest

from configs.schema import load
from curation.config import CurationConfig
from curation.faces import Face, NearFaces, load_detector
from curation.puppets import sample


@pytest.fixture(scope="module")
def cfg() -> CurationConfig:
    return load("tiny").curation


class Counting:
    """The real detector, and how often the whole picture was searched."""

    def __init__(self, cfg: CurationConfig) -> None:
        self.inner, self.name, self.whole = load_detector(cfg.faces), "counting", 0

    def detect(self, image: np.ndarray) -> list[Face]:
        self.whole += 1
        return self.inner.detect(image)

    def near(self, image: np.ndarray, face: Face, around: float) -> Face | None:
        return self.inner.near(image, face, around)


def pictures(index: int, cfg: CurationConfig) -> np.ndarray:
    return np.repeat(np.repeat(sample(5, index, cfg.puppets, frames=60).frames[::5], 2, axis=1), 2, axis=2)


@pytest.mark.parametrize("index", [0, 1, 3])
def test_a_followed_face_is_where_a_whole_search_finds_it(cfg: CurationConfig, index: int) -> None:
    counting = Counting(cfg)
    near, shown = NearFaces(counting, cfg.faces), pictures(index, cfg)
    for image in shown:
        found, whole = near.detect(image), counting.inner.detect(image)
        assert len(found) == len(whole) == 1
        size = whole[0].box[2] - whole[0].box[0]
        assert np.abs(found[0].box - whole[0].box).max() < 0.15 * size
    assert counting.whole <= len(shown) / 3


def test_another_face_or_another_scene_is_searched_for(cfg: CurationConfig) -> None:
    counting = Counting(cfg)
    near = NearFaces(counting, cfg.faces)
    one, other = pictures(3, cfg)[0], pictures(1, cfg)[0]
    alone = np.concatenate([one, np.full_like(one, 128)], axis=1)
    both = np.concatenate([one, other], axis=1)
    assert [len(near.detect(image)) for image in (alone, alone, both, both)] == [1, 1, 2, 2]
    assert near.detect(np.full_like(both, 128)) == [] and counting.whole == 3
