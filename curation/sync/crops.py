"""Squares around face or mouth: one definition for scoring and fitting."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from curation.sync.base import CropNeed

_FACE_SCALE = 0.4  # SyncNet's crop_scale: margin around the face, and as much further down
_MOUTH_SIDE = 0.74  # side of the mouth square, share of the face's width: lips, chin and a little cheek


class Square(NamedTuple):
    """Centre and half the side, in pixels of the picture."""

    x: float
    y: float
    half: float


def square(need: CropNeed, face_box: np.ndarray, mouth_box: np.ndarray) -> Square:
    """Where to cut. Boxes: x0, y0, x1, y1 float [4]; the mouth's size follows the face, not how far it is open."""
    x0, y0, x1, y1 = (float(v) for v in face_box[:4])
    if need.kind == "face":
        half = max(x1 - x0, y1 - y0) / 2
        return Square((x0 + x1) / 2, (y0 + y1) / 2 + half * _FACE_SCALE, half * (1 + _FACE_SCALE))
    return Square(
        float(mouth_box[0] + mouth_box[2]) / 2, float(mouth_box[1] + mouth_box[3]) / 2, (x1 - x0) * _MOUTH_SIDE / 2
    )


def cut(image: np.ndarray, place: Square, need: CropNeed) -> np.ndarray:
    """One crop, uint8 [S, S, 3] or [S, S], of ``image`` uint8 [H, W, 3] RGB or [H, W]; border pixels repeat outside."""
    side = max(round(2 * place.half), 2)
    piece = cv2.getRectSubPix(image, (side, side), (place.x - 0.5, place.y - 0.5))
    if need.gray and piece.ndim == 3:
        piece = cv2.cvtColor(piece, cv2.COLOR_RGB2GRAY)
    elif not need.gray and piece.ndim == 2:
        piece = cv2.cvtColor(piece, cv2.COLOR_GRAY2RGB)
    method = cv2.INTER_AREA if side >= need.size else cv2.INTER_LINEAR
    return cv2.resize(piece, (need.size, need.size), interpolation=method)


def cut_all(
    frames: Iterable[np.ndarray], face_boxes: np.ndarray, mouth_boxes: np.ndarray, need: CropNeed
) -> np.ndarray:
    """Crops of a whole clip, uint8 [F, S, S(, 3)]; one face and one mouth box per frame, float [F, 4] each."""
    boxes = zip(frames, face_boxes, mouth_boxes, strict=True)
    return np.stack([cut(image, square(need, face, mouth), need) for image, face, mouth in boxes])
