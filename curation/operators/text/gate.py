"""Which part of the frame needs a new look: tiles where strokes stand that the detector has not seen.

Burned-in text stands still on the pixel grid, over a resting picture as over a moving one: its high-passed strokes are
the same in two pictures. A head, a hand or a moving camera carries its strokes along. So what two pictures have in
common is compared with what stood there at the detector's last look, and a new look is due where enough tiles side by
side hold more of it. What stands for less than two pictures is left to the refresh of the whole frame.
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
        self._stroke = cfg.gate_stroke
        self._seen: np.ndarray | None = None  # strokes that stood in each tile at the detector's last look
        self._last: np.ndarray | None = None
        self._looked: slice | None = None  # tile rows that the detector saw in the last picture

    def rows(self, gray: np.ndarray, whole: bool) -> tuple[int, int] | None:
        """Rows [first, last) of the picture to look at; None: nothing new. ``whole`` asks for all of it."""
        fine = gray.astype(np.float32) - cv2.blur(gray, (9, 9))
        standing, self._last = _standing(fine, self._last), fine
        if self._seen is None:
            self._seen = standing
        self._seen = np.minimum(
            self._seen, _tiles(np.abs(fine))
        )  # strokes that are gone, as after a cut, count no more
        if self._looked is not None:  # what stands since the last picture was looked at there and then
            self._seen[self._looked] = standing[self._looked]
            self._looked = None
        if whole:
            return 0, gray.shape[0]
        wanted = (standing > self._stroke) & (standing - self._seen > 0.5 * self._stroke)
        lines = np.flatnonzero(_has_run(wanted, _RUN))
        if not len(lines):
            return None
        return max(0, int(lines[0]) - 2) * _TILE, min(gray.shape[0], (int(lines[-1]) + 3) * _TILE)

    def looked(self, first: int, last: int) -> None:
        """The detector saw rows [first, last) of the picture given last."""
        self._looked = slice(first // _TILE, -(-last // _TILE))


def _standing(fine: np.ndarray, last: np.ndarray | None) -> np.ndarray:
    """Mean per tile of what two high-passed pictures share, grey levels: float32 [rows, columns]."""
    if last is None or last.shape != fine.shape:
        return _tiles(np.zeros_like(fine))
    return _tiles(np.where(fine * last > 0, np.minimum(np.abs(fine), np.abs(last)), np.float32(0)))


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
