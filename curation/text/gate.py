"""Which part of the frame needs a new look: tiles where something with strokes appeared since the detector last saw it.

Burned-in text stands still on the pixel grid. Tiles that now rest, hold letters' local contrast, and looked otherwise
when the detector last saw them, are worth a look when enough of them stand side by side; a moving head, hand or
camera is not. What slips through (text over quick motion, text shorter than two samples) is left to the refresh of
the whole frame.
"""

from __future__ import annotations

import cv2
import numpy as np

from curation.config import TextConfig

_TILE = 12  # pixels of the gate's picture: about a line of subtitles
_RUN = 4  # tiles side by side that could hold a word


class Gate:
    """Serves one video. All pictures have one size: uint8 [h, w] as the detector sees them."""

    def __init__(self, cfg: TextConfig) -> None:
        self._cfg = cfg
        self._seen: np.ndarray | None = None  # tiles' means and contrast when the detector last looked
        self._last: np.ndarray | None = None

    def rows(self, gray: np.ndarray, whole: bool) -> tuple[int, int] | None:
        """Rows [first, last) of the picture to look at; None: nothing new. ``whole`` asks for all of it."""
        stroke = _tiles(np.abs(gray.astype(np.int16) - cv2.blur(gray, (9, 9))).astype(np.float32))
        change = self._change(gray)
        if self._seen is None or whole:
            self._seen = stroke
            return 0, gray.shape[0]
        rests = change < self._cfg.gate_change
        wanted = rests & (stroke > self._cfg.gate_stroke) & (np.abs(stroke - self._seen) > 0.5 * self._cfg.gate_stroke)
        lines = np.flatnonzero(_has_run(wanted, _RUN))
        if not len(lines):
            return None
        first, last = max(0, lines[0] - 2), min(len(stroke), lines[-1] + 3)
        self._seen[first:last] = stroke[first:last]
        return first * _TILE, min(gray.shape[0], last * _TILE)

    def _change(self, gray: np.ndarray) -> np.ndarray:
        last, self._last = self._last, gray
        if last is None:
            return np.full(_tiles(gray.astype(np.float32)).shape, 255.0, np.float32)
        return _tiles(cv2.absdiff(gray, last).astype(np.float32))


def _tiles(values: np.ndarray) -> np.ndarray:
    """Means over tiles, float32 [rows, columns]."""
    height, width = values.shape
    size = (max(1, -(-width // _TILE)), max(1, -(-height // _TILE)))
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA), np.float32)


def _has_run(tiles: np.ndarray, length: int) -> np.ndarray:
    """Which rows have ``length`` neighbouring tiles set: bool [rows]."""
    if tiles.shape[1] < length:
        return np.asarray(tiles.all(axis=1))
    run = np.lib.stride_tricks.sliding_window_view(tiles, length, axis=1).all(axis=2)
    return np.asarray(np.any(run, axis=1))
