"""The text operator: gate → detector → follower → recogniser on what persists → kinds, area, crop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import cv2
import numpy as np

from curation.clip import Scores, TextBox
from curation.config import CurationConfig, TextConfig
from curation.operators.base import ClipContext, FrameNeed, FrameOperator, Picture, Span
from curation.operators.text import crop, kinds
from curation.operators.text.follow import Follower, Line
from curation.operators.text.gate import Gate
from curation.operators.text.recogniser import Recogniser, fit
from curation.schema import FPS

_BAND = 32  # rows; the detector's network works in such steps


class TextOperator(FrameOperator):
    """Burned-in text of one video. Looks at whole frames ``cfg.rate`` times a second."""

    name = "text"
    version = 2
    section = "text"
    requires = ("faces",)  # the crop keeps the face
    columns = ("text_boxes", "text_area", "subtitle_score", "crop")

    def __init__(self, cfg: TextConfig, recogniser: Recogniser) -> None:
        super().__init__(cfg)
        self.needs = FrameNeed(rate=cfg.rate, side=cfg.side)
        self._cfg = cfg
        self._net = recogniser
        self._gate = Gate(cfg)
        self._follower = Follower(cfg.same)
        self._refreshed: int | None = None
        self.looked = 0  # pixels given to the detector, for the benchmark

    @classmethod
    def load(cls, cfg: CurationConfig) -> Callable[[], Self]:
        """Loads the networks."""
        net = Recogniser(cfg.text)
        return lambda: cls(cfg.text, net)

    def frame(self, picture: Picture) -> None:
        """One frame: check the lines that stand, look where the gate says that something new appeared."""
        image = fit(picture.image, self._cfg)
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        ended = self._follower.check(gray, picture.index)
        due = self._refreshed is None or picture.index - self._refreshed >= self._cfg.refresh_s * FPS
        rows = self._gate.rows(gray, due)
        if due:
            self._refreshed = picture.index
        for line in ended:  # what took its place?
            rows = _with(rows, line.box, gray.shape[0])
        if rows is None:
            return
        first, last = _grown(rows, gray.shape[0])
        self._gate.looked(first, last)
        band = image[first:last]
        self.looked += band.shape[0] * band.shape[1]
        found = [f for f in self._net.detect(band) if self._possible(f.box, gray.shape)]
        self._follower.add(found, picture.image, gray, first, picture.index)

    def clip(self, span: Span, context: ClipContext) -> Scores:
        """Boxes in displayed pixels with frames counted from the clip's start; area and score as the catalog says."""
        seen = [
            line
            for line in self._follower.gone + self._follower.alive
            if line.last >= span.start and line.first < span.end
        ]
        self._read([line for line in seen if line.text is None])
        seen = [line.before(span.end) for line in seen]
        sure = [(line, kinds.confidence(line, self._cfg)) for line in seen]
        lines = [line for line, score in sure if score > 0]
        scores = [score for _, score in sure if score > 0]
        named = kinds.kinds(lines, self._cfg)
        scale = np.array([context.width, context.height, context.width, context.height], float)
        boxes = [_text_box(*item, span, scale) for item in zip(lines, scores, named, strict=True)]
        overlays = np.array([[b.x0, b.y0, b.x1, b.y1] for b in boxes if b.kind != "scene"])
        return {
            "text_boxes": boxes,
            "text_area": _area(boxes, context.width * context.height),
            "subtitle_score": max((b.score for b in boxes if b.kind in ("subtitle", "ticker")), default=0.0),
            "crop": crop.propose(
                overlays.reshape(-1, 4),
                context.face_boxes,
                context.width,
                context.height,
                self._cfg.crop_min,
                self._cfg.crop_face,
            ),
        }

    def forget(self, before: int) -> None:
        """See :class:`curation.operators.base.FrameOperator`."""
        self._follower.forget(before)

    def _read(self, lines: list[Line]) -> None:
        for line, (text, score) in zip(lines, self._net.read([line.patch for line in lines]), strict=True):
            line.text, line.read_score = text, score

    def _possible(self, box: tuple[float, ...], shape: tuple[int, ...]) -> bool:
        width, height = box[2] - box[0], box[3] - box[1]
        return width * height <= self._cfg.max_area * shape[0] * shape[1] and height <= self._cfg.max_height * shape[0]


def _text_box(line: Line, score: float, kind: str, span: Span, scale: np.ndarray) -> TextBox:
    first, last = max(line.first, span.start) - span.start, min(line.last, span.end - 1) - span.start
    x0, y0, x1, y1 = (float(v) for v in line.box * scale)
    return TextBox(x0, y0, x1, y1, first, last, score, line.text or "", kind)


def _area(boxes: list[TextBox], whole: int) -> float:
    """Largest share of the frame that texts cover at one time (0..1)."""
    most = 0.0
    for moment in {b.first for b in boxes}:
        here = [b for b in boxes if b.first <= moment <= b.last]
        most = max(most, sum((b.x1 - b.x0) * (b.y1 - b.y0) for b in here) / whole)
    return most


def _with(rows: tuple[int, int] | None, box: np.ndarray, height: int) -> tuple[int, int]:
    margin = (box[3] - box[1]) * height
    first, last = int(box[1] * height - margin), int(box[3] * height + margin) + 1
    return (first, last) if rows is None else (min(rows[0], first), max(rows[1], last))


def _grown(rows: tuple[int, int], height: int) -> tuple[int, int]:
    """Rows widened to a multiple of 32 (at least 64) inside the picture."""
    size = min(height, max(2 * _BAND, -(-(rows[1] - rows[0]) // _BAND) * _BAND))
    first = int(np.clip((rows[0] + rows[1] - size) // 2, 0, height - size))
    return first, first + size
