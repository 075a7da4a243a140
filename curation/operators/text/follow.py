"""Following texts over time: a box stays alive while its high-passed patch still stands where it was."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

import cv2
import numpy as np

from curation.operators.text.recogniser import Found

_HEIGHT = 48  # of a kept patch: what the recogniser takes


@dataclass
class Line:
    """One text while it stands. The box is x0, y0, x1, y1 as shares of the frame."""

    box: np.ndarray  # float64 [4]
    seen: list[int]  # frames of the 25 fps clock in which it was seen, in order
    found: list[tuple[int, float]]  # frame and score of every detection
    patch: np.ndarray  # uint8 [48, w, 3] RGB, to be read
    print_: np.ndarray  # high-passed grey of the detector's picture
    text: str | None = None
    read_score: float = 0.0

    @property
    def first(self) -> int:
        """Frame where it was first seen."""
        return self.seen[0]

    @property
    def last(self) -> int:
        """Frame where it was last seen."""
        return self.seen[-1]

    @property
    def samples(self) -> int:
        """Pictures in which it was seen."""
        return len(self.seen)

    @property
    def score(self) -> float:
        """The detector's best."""
        return max(score for _, score in self.found)

    def before(self, end: int) -> Line:
        """The line as it was known before a frame (after :attr:`first`): what comes later says nothing of a clip."""
        return replace(
            self,
            seen=self.seen[: bisect_left(self.seen, end)],
            found=[item for item in self.found if item[0] < end],
        )


class Follower:
    """Keeps the lines of one video. Pictures come in order, all of one size."""

    def __init__(self, same: float) -> None:
        self._same = same
        self.alive: list[Line] = []
        self.gone: list[Line] = []

    def check(self, gray: np.ndarray, index: int) -> list[Line]:
        """Which lines still stand in the detector's picture uint8 [h, w]; the others end. Returns those that ended."""
        stays, ended = [], []
        for line in self.alive:
            now = high_pass(_cut(gray, line.box))
            if now.shape == line.print_.shape and correlation(now, line.print_) >= self._same:
                line.seen.append(index)
                stays.append(line)
            else:
                ended.append(line)
        self.alive = stays
        self.gone += ended
        return ended

    def add(self, found: list[Found], image: np.ndarray, gray: np.ndarray, offset: int, index: int) -> None:
        """Boxes of a band that begins at row ``offset`` of the detector's picture; ``image`` is the picture to read."""
        height, width = gray.shape
        for item in found:
            box = np.asarray(item.box) + np.array([0, offset, 0, offset])
            box = box / [width, height, width, height]
            known = next((line for line in self.alive if overlap(line.box, box) > 0.5), None)
            if known:
                known.found.append((index, item.score))
                continue
            print_ = high_pass(_cut(gray, box))
            if print_.size:
                self.alive.append(Line(box, [index], [(index, item.score)], patch(image, box), print_))

    def forget(self, before: int) -> None:
        """Lines that ended before a frame are needed no more."""
        self.gone = [line for line in self.gone if line.last >= before]


def patch(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The box cut from a picture, 48 px high, uint8 [48, w, 3]."""
    tall = box[3] - box[1]
    wide = tall * image.shape[0] / image.shape[1]
    cut = _cut(image, np.clip(box + np.array([-0.3 * wide, -0.2 * tall, 0.3 * wide, 0.2 * tall]), 0, 1))
    width = int(np.clip(round(cut.shape[1] * _HEIGHT / max(1, cut.shape[0])), 16, 2048))
    return np.asarray(cv2.resize(cut, (width, _HEIGHT), interpolation=cv2.INTER_CUBIC))


def high_pass(gray: np.ndarray) -> np.ndarray:
    """What is finer than a few pixels: letters, not light. float32 [h, w]."""
    if not gray.size:
        return np.zeros((0, 0), np.float32)
    values = gray.astype(np.float32)
    return values - cv2.blur(values, (7, 7))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of two patches of one shape, −1..1; 0 where one is flat."""
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / norm if norm > 1e-3 else 0.0


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.clip(sides, 0, None)))
    return shared / max(float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared, 1e-12)


def _cut(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    x0, y0 = int(box[0] * width), int(box[1] * height)
    return image[y0 : max(y0 + 1, round(box[3] * height)), x0 : max(x0 + 1, round(box[2] * width))]
