"""Perceptual hashes of pictures and of their motion, from which copies are found (`curation.decision.duplicates`).

A clip's hashes are pairs, one pair per 1/rate s, interleaved in ``phash``: an ImageHash pHash of the picture (64 bits)
and the signs of the lowest 64 DCT coefficients of its change since the pair before. Pictures alone cannot tell two
sentences of one speaker at one desk; motion can. Both survive re-encoding.
"""

from __future__ import annotations

import cv2
import imagehash
import numpy as np
from PIL import Image

from curation.clip import Scores
from curation.config import DedupConfig
from curation.operators.base import ClipContext, FrameNeed, Picture, PictureOperator

LOW = 8
"""Coefficients per axis in a hash."""
_SIDE = 32  # DCT size, as ImageHash uses it
_QUIET = 0.35  # grey levels: below it a change is noise and its signs say nothing


class PerceptualHashOperator(PictureOperator[tuple[int, int]]):
    """Pairs of a hash of the picture and a hash of its motion."""

    name = "dedup"
    version = 1
    section = "dedup"
    keys = ("rate", "side")  # the rest decides, from the hashes
    columns = ("phash",)

    def __init__(self, cfg: DedupConfig) -> None:
        super().__init__(cfg)
        self.needs = FrameNeed(rate=cfg.rate, side=cfg.side, gray=True)
        self._last: np.ndarray | None = None

    def look(self, picture: Picture) -> tuple[int, int]:
        """Hash one luma picture, and its change since the one before."""
        small = cv2.resize(picture.image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        look = int(str(imagehash.phash(Image.fromarray(small), hash_size=LOW, highfreq_factor=_SIDE // LOW)), 16)
        values = small.astype(np.float32)
        moved = motion_hash(values - self._last) if self._last is not None else 0
        self._last = values
        return look, moved

    def score(self, seen: list[tuple[int, int]], context: ClipContext) -> Scores:
        """Pairs of the clip; the first has no motion before it inside the clip and is left out."""
        return {"phash": [value for pair in seen[1:] for value in pair]}


def motion_hash(change: np.ndarray) -> int:
    """Signs of the low DCT coefficients of a change, float32 [32, 32] → 64 bits; 0 where nothing moved."""
    if float(np.abs(change).mean()) < _QUIET:
        return 0
    low = cv2.dct(change)[:LOW, :LOW]
    return int("".join("1" if v > 0 else "0" for v in low.reshape(-1)), 2)
