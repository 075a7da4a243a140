"""From sparse detections to a box per frame: association by overlap, a light smoothing, interpolation.

A track ends at every cut. Its boxes on detection frames are smoothed with their neighbours (1 : 2 : 1), those between
are interpolated; a face missed for a while is bridged when it comes back, and held until it does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from curation.config import FacesConfig
from curation.faces.detect import Face, mouth_box
from curation.schema import FPS


@dataclass(frozen=True)
class TrackBox:
    """Where a track is in one frame; pixels of the displayed frame."""

    track: int
    box: np.ndarray  # float32 [4]
    mouth: np.ndarray  # float32 [4]


@dataclass
class TrackedFace:
    """One face from its first to its last detection within one shot."""

    number: int
    shot: int
    frames: list[int] = field(default_factory=list)  # of the detections
    boxes: list[np.ndarray] = field(default_factory=list)  # float32 [8]: face box, mouth box

    def smooth(self, at: int) -> np.ndarray:
        """Box ``at`` the given detection, averaged with its neighbours."""
        before, after = max(at - 1, 0), min(at + 1, len(self.boxes) - 1)
        return 0.25 * self.boxes[before] + 0.5 * self.boxes[at] + 0.25 * self.boxes[after]

    def at(self, frame: int) -> np.ndarray:
        """Interpolated box; outside the detections the nearest one is held."""
        right = bisect_right(self.frames, frame)
        if right == 0 or right == len(self.frames):
            return self.smooth(min(right, len(self.frames) - 1))
        left = right - 1
        share = (frame - self.frames[left]) / (self.frames[right] - self.frames[left])
        return (1 - share) * self.smooth(left) + share * self.smooth(right)


class FaceTracker:
    """Takes detections in order; associates them once the cuts before them are known."""

    def __init__(self, cfg: FacesConfig, step: int) -> None:
        self._cfg = cfg
        self._step = step  # frames between two detections
        self._waiting: deque[tuple[int, list[Face]]] = deque()
        self._done: list[int] = []  # frames of the associated detections
        self._count = 0
        self.tracks: list[TrackedFace] = []

    def detected(self, frame: int, faces: list[Face]) -> None:
        """What was found in a frame, in displayed pixels."""
        self._waiting.append((frame, faces))

    def advance(self, cuts: list[int], cuts_until: int) -> None:
        """All cuts before ``cuts_until`` are known: associate the detections that lie before it."""
        while self._waiting and self._waiting[0][0] < cuts_until:
            frame, faces = self._waiting.popleft()
            self._associate(frame, faces, bisect_right(cuts, frame))
            self._done.append(frame)

    @property
    def settled_until(self) -> int:
        """Boxes of frames before this one will not change (but for a cut that is not yet known)."""
        return self._done[-2] if len(self._done) > 1 else 0

    def boxes(self, frame: int, shot: int) -> list[TrackBox]:
        """Every track that covers a frame of the given shot (the number of cuts at or before it)."""
        found = []
        for track in self.tracks:
            near = track.frames[0] - self._step < frame < track.frames[-1] + self._step
            if track.shot == shot and near:
                both = track.at(frame).astype(np.float32)
                found.append(TrackBox(track.number, both[:4], both[4:]))
        return found

    def forget(self, before: int) -> None:
        """Tracks that ended long before a frame are not needed again."""
        self.tracks = [t for t in self.tracks if t.frames[-1] >= before - self._horizon]
        self._done = self._done[-4:]

    @property
    def _horizon(self) -> int:
        return round(self._cfg.max_gap_s * FPS) + self._step

    def _associate(self, frame: int, faces: list[Face], shot: int) -> None:
        alive = [t for t in self.tracks if t.shot == shot and frame - t.frames[-1] <= self._horizon]
        boxes = [face.box for face in faces]
        taken = set()
        if alive and boxes:
            overlap = np.array([[_iou(track.boxes[-1][:4], box) for box in boxes] for track in alive])
            for row, column in zip(*linear_sum_assignment(-overlap), strict=True):
                if overlap[row, column] >= self._cfg.iou:
                    _extend(alive[row], frame, faces[column])
                    taken.add(int(column))
        for number, face in enumerate(faces):
            if number not in taken:
                track = TrackedFace(self._count, shot)
                self._count += 1
                _extend(track, frame, face)
                self.tracks.append(track)


def _extend(track: TrackedFace, frame: int, face: Face) -> None:
    track.frames.append(frame)
    track.boxes.append(np.concatenate([face.box, mouth_box(face.box, face.mouth)]))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = float(width * height)
    return shared / float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
