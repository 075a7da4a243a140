"""Looking for faces only where a picture could have new ones.

A detector spends most of its time on small faces that are not there. While nothing outside the known faces' surroundings
changed since the whole picture was last searched, it is enough to look for each of them near its last place, at about
its last size. A change elsewhere, a face that is not found again, and every ``full_every``-th look search the whole.
"""

from __future__ import annotations

import cv2
import numpy as np

from curation.config import FacesConfig
from curation.faces.detect import Face, FaceDetector

_THUMB = 32  # pixels of the longer side of what changes are looked for in
_AROUND = 0.6  # of a face's size: how far it may go between two looks


class NearFaces:
    """The detector for one video: pictures come in order."""

    def __init__(self, detector: FaceDetector, cfg: FacesConfig) -> None:
        self._detector, self._cfg = detector, cfg
        self._faces: list[Face] = []
        self._whole: np.ndarray | None = None  # thumbnail of the picture that was last searched as a whole
        self._looks = 0

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces in uint8 [h, w, 3] RGB, as `FaceDetector.detect`."""
        thumb = _thumbnail(image)
        if self._may_look_near(thumb, image.shape[:2]):
            found = [self._detector.near(image, face, _AROUND) for face in self._faces]
            if all(found):
                self._looks += 1
                self._faces = [face for face in found if face is not None]
                return self._faces
        self._whole, self._looks = thumb, 1
        self._faces = self._detector.detect(image)
        return self._faces

    def _may_look_near(self, thumb: np.ndarray, shape: tuple[int, int]) -> bool:
        if self._whole is None or self._whole.shape != thumb.shape or self._looks >= self._cfg.full_every:
            return False
        changed = np.abs(thumb.astype(np.int16) - self._whole) > self._cfg.gate_change
        scale = np.array([thumb.shape[1] / shape[1], thumb.shape[0] / shape[0]] * 2)
        for face in self._faces:
            x0, y0, x1, y1 = grown(face.box, _AROUND, shape) * scale
            changed[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = False
        return not changed.any()


def grown(box: np.ndarray, share: float, shape: tuple[int, int]) -> np.ndarray:
    """A box [4] with ``share`` of its size added on every side, inside a picture of ``shape`` (h, w)."""
    width, height = box[2] - box[0], box[3] - box[1]
    more = np.array([-width, -height, width, height]) * share
    return np.clip(box + more, 0, [shape[1], shape[0], shape[1], shape[0]])


def _thumbnail(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    scale = _THUMB / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
