"""Finding faces in one picture: the cascade of the OpenCV wheel (no weights to fetch), YuNet, or S3FD.

All give boxes of one convention, that of WIDER FACE (hairline to chin, cheek to cheek), on which YuNet and S3FD were
trained; the cascade's squares are mapped onto it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import cv2
import numpy as np

from configs.errors import EchoForgeError
from configs.weights import locate
from curation import packages
from curation.config import FacesConfig

# Haar square → face box, as shares of the square: medians over the pictures of real clips in which the cascade and
# YuNet both found one face (standard deviations 0.03 to 0.07).
_HAAR_X, _HAAR_Y, _HAAR_W, _HAAR_H = 0.099, -0.020, 0.811, 1.092
# The mouth in a face box: its height from YuNet's mouth corners on the same clips; the corners are 0.40 of the face's
# width apart, the box is half as wide again to hold an open mouth.
_MOUTH_Y, _MOUTH_W, _MOUTH_H = 0.727, 0.60, 0.36


@dataclass(frozen=True)
class Face:
    """``box`` x0, y0, x1, y1 and ``mouth`` (left, right corner: x, y) in pixels of the picture searched."""

    box: np.ndarray  # float32 [4]
    score: float
    mouth: np.ndarray | None = None  # float32 [2, 2]; None: the detector gives no landmarks


class FaceDetector(Protocol):
    """One network or cascade, loaded once per worker."""

    name: str

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces in uint8 [h, w, 3] RGB, any order."""

    def near(self, image: np.ndarray, face: Face, around: float) -> Face | None:
        """The same face in a later picture, no farther than ``around`` of its size and about as large; or None."""


class _Near:
    """`near` by searching a cut-out, for detectors whose cost is the picture's size."""

    def detect(self, image: np.ndarray) -> list[Face]:
        raise AssertionError("given by the detector")  # pragma: no cover

    def near(self, image: np.ndarray, face: Face, around: float) -> Face | None:
        """See :meth:`FaceDetector.near`."""
        (x0, y0), cut = _cut_out(image, face.box, around)
        found = self.detect(cut)
        return _nearest([_moved(f, x0, y0) for f in found], face)


class Cascade:
    """`haarcascade_frontalface_alt2` of the OpenCV wheel: frontal, upright faces only; no landmarks.

    Its mistakes are folds of clothes and folded hands, mostly. `frontalface_alt`, trained otherwise, has the second say
    on every face of a whole search: of 417 faces of real clips and puppets it denies 2, and every mistake seen.
    """

    name = "cascade"

    def __init__(self, cfg: FacesConfig) -> None:
        self._net, self._second = _haar("alt2"), _haar("alt")
        self._share = cfg.min_share
        self._min_score = cfg.min_score if cfg.min_score is not None else -1e9

    def detect(self, image: np.ndarray) -> list[Face]:
        """Scores are the last stage's margin: comparable among themselves only."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        found = self._search(grey, round(self._share * min(grey.shape)), max(grey.shape))
        return [face for face in found if self._agrees(grey, face)]

    def near(self, image: np.ndarray, face: Face, around: float) -> Face | None:
        """See :meth:`FaceDetector.near`; squares of 0.75 to 1.35 times the last one."""
        (x0, y0), cut = _cut_out(image, face.box, around)
        side = (face.box[2] - face.box[0]) / _HAAR_W
        found = self._search(cv2.cvtColor(cut, cv2.COLOR_RGB2GRAY), round(0.75 * side), round(1.35 * side))
        return _nearest([_moved(f, x0, y0) for f in found], face)

    def _agrees(self, grey: np.ndarray, face: Face) -> bool:
        _, cut = _cut_out(grey, face.box, 0.4)
        side = (face.box[2] - face.box[0]) / _HAAR_W
        least, most = max(20, int(0.6 * side)), int(1.6 * side)
        return len(self._second.detectMultiScale(cut, 1.1, 3, 0, (least, least), (most, most))) > 0

    def _search(self, grey: np.ndarray, least: int, most: int) -> list[Face]:
        least = max(20, least)  # 20: the size that the cascades were trained on
        squares, _, scores = self._net.detectMultiScale3(
            grey, 1.15, 4, 0, (least, least), (most, most), outputRejectLevels=True
        )
        faces = []
        for (x, y, w, h), score in zip(squares, np.ravel(scores), strict=True):
            left, top = x + _HAAR_X * w, y + _HAAR_Y * h
            box = np.array([left, top, left + _HAAR_W * w, top + _HAAR_H * h], np.float32)
            if score >= self._min_score:
                faces.append(Face(box, float(score)))
        return faces


def _haar(name: str) -> cv2.CascadeClassifier:
    net = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / f"haarcascade_frontalface_{name}.xml"))
    if net.empty():
        raise EchoForgeError("this OpenCV has no face cascades; install opencv-python-headless 4.14 or use yunet.")
    return net


class YuNet(_Near):
    """YuNet through `cv2.FaceDetectorYN`; gives the corners of the mouth."""

    name = "yunet"

    def __init__(self, cfg: FacesConfig) -> None:
        path = locate("faces.weights", cfg.weights, "yunet")
        least = cfg.min_score if cfg.min_score is not None else 0.7  # OpenCV's sample: 0.9; 0.7 keeps turned heads
        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (320, 320), least)
        except cv2.error as error:
            raise EchoForgeError(f"'{path}' is not a YuNet model; get it again with `weights fetch yunet`.") from error
        self._share = cfg.min_share

    def detect(self, image: np.ndarray) -> list[Face]:
        """Scores in 0..1."""
        height, width = image.shape[:2]
        self._net.setInputSize((width, height))
        _, found = self._net.detect(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        faces = []
        for row in cast(Any, found) if found is not None else ():
            x, y, w, h = row[:4]
            if min(w, h) >= self._share * min(height, width):
                mouth = row[10:14].reshape(2, 2).astype(np.float32)
                faces.append(Face(np.array([x, y, x + w, y + h], np.float32), float(row[14]), mouth))
        return faces


class S3FD(_Near):
    """S3FD as `syncnet-python` defines it (SyncNet's own detector). 1.1 core-seconds a picture at 270×480."""

    name = "s3fd"

    def __init__(self, cfg: FacesConfig) -> None:
        packages.require("syncnet_python", "faces.detector=s3fd")
        import torch
        from syncnet_python.detectors.s3fd import S3FD as Detector
        from syncnet_python.detectors.s3fd.nets import S3FDNet

        path = locate("faces.weights", cfg.weights, "s3fd")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        net = S3FDNet(device=device)
        try:
            net.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        except Exception as error:  # pickles fail in many ways
            message = f"'{path}' does not hold S3FD's weights; get them again with `weights fetch s3fd`."
            raise EchoForgeError(message) from error
        self._net = Detector(net, device=device)
        self._share = cfg.min_share
        self._least = cfg.min_score if cfg.min_score is not None else 0.9  # SyncNet's conf_th

    def detect(self, image: np.ndarray) -> list[Face]:
        """Scores in 0..1."""
        faces = []
        for row in self._net.detect_faces(image, conf_th=self._least, scales=[1]):
            box = np.asarray(row[:4], np.float32)
            if min(box[2] - box[0], box[3] - box[1]) >= self._share * min(image.shape[:2]):
                faces.append(Face(box, float(row[4])))
        return faces


def _cut_out(image: np.ndarray, box: np.ndarray, around: float) -> tuple[tuple[int, int], np.ndarray]:
    """The surroundings of a box, and where their corner lies."""
    height, width = image.shape[:2]
    more_x, more_y = around * (box[2] - box[0]), around * (box[3] - box[1])
    x0, y0 = int(max(0, box[0] - more_x)), int(max(0, box[1] - more_y))
    x1, y1 = int(min(width, np.ceil(box[2] + more_x))), int(min(height, np.ceil(box[3] + more_y)))
    return (x0, y0), np.ascontiguousarray(image[y0:y1, x0:x1])


def _moved(face: Face, x: int, y: int) -> Face:
    mouth = None if face.mouth is None else face.mouth + np.array([x, y], np.float32)
    return Face(face.box + np.array([x, y, x, y], np.float32), face.score, mouth)


def _nearest(found: list[Face], face: Face) -> Face | None:
    """The one whose centre is nearest."""

    def distance(other: Face) -> float:
        return float(np.abs(other.box - face.box).sum())

    return min(found, key=distance, default=None)


def load_detector(cfg: FacesConfig) -> FaceDetector:
    """The configured detector.

    Raises:
        MissingWeights: its file is not here.
    """
    kinds: dict[str, type] = {"cascade": Cascade, "yunet": YuNet, "s3fd": S3FD}
    return cast(FaceDetector, kinds[cfg.detector](cfg))


def mouth_box(box: np.ndarray, mouth: np.ndarray | None) -> np.ndarray:
    """The box around the mouth, float32 [4]: centred on its corners where known, else where mouths are in faces."""
    width, height = box[2] - box[0], box[3] - box[1]
    if mouth is None:
        x, y = (box[0] + box[2]) / 2, box[1] + _MOUTH_Y * height
    else:
        x, y = mouth.mean(axis=0)
    half_w, half_h = _MOUTH_W * width / 2, _MOUTH_H * height / 2
    return np.array([x - half_w, y - half_h, x + half_w, y + half_h], np.float32)
