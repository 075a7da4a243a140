"""The clips of a video, found while it is decoded: its shots, and the faces in them.

The search runs behind the pass: a cut is certain a few frames after it, a face's box once the detection after it is
known. Decoded frames wait in a short buffer until then, so that crops for the sync network are cut without decoding
twice; memory does not grow with the length of the video.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from curation import schema
from curation.analysis.clips import ClipCutter, wanted
from curation.analysis.shots import ShotDetector
from curation.analysis.sync_scores import Crops
from curation.analysis.tracks import SeenFrame, clip_tracks, largest, with_speaker
from curation.clip import Clip
from curation.config import CurationConfig
from curation.faces import Face, FaceDetector, FaceTracker, NearFaces, TrackBox
from curation.media.clock import Tick, every, picture, scaled
from curation.media.frames import Frame
from curation.media.video_file import MediaInfo
from curation.operators.base import FrameNeed, Span
from curation.sync import CropNeed, Square, cut, square

Region = tuple[int, int, int, int, int]
"""x, y, w, h in pixels, and the height of the picture that they are meant for (0: the video's)."""

_NO_FRAME = Frame(0.0, 0.0, damaged=False)  # decoded frames are large: they wait only for crops
_AFTER = 100  # frames looked at after the last wanted one: a fade that begins before it is known by then
_CROP_SIDES = 32  # crops are cut from pictures whose longer side is a multiple of this, so few sizes are rendered


@dataclass(frozen=True)
class FoundClip:
    """A clip with nothing scored yet. ``crops``: of each of its tracks, empty where no sync network asks for them."""

    clip: Clip
    crops: tuple[Crops, ...] = ()


class ClipFinder:
    """Serves one video: takes its ticks, gives its clips in order."""

    pictures = True
    """It looks at pictures itself."""

    def __init__(
        self,
        info: MediaInfo,
        cfg: CurationConfig,
        detector: FaceDetector,
        crop: CropNeed | None,
        spans: Sequence[Span] = (),
        region: Region | None = None,
    ) -> None:
        """
        Args:
            crop: what the sync network wants to see; None: no crops are cut.
            spans: frames that clips are restricted to, in order; none: all.
            region: faces with their middle elsewhere are not looked at.
        """
        self._info, self._cfg, self._crop, self._spans = info, cfg, crop, spans
        self._region = None if region is None else _scaled_region(region, info.height)
        self._shots = ShotDetector(cfg.shots)
        self._cutter = ClipCutter(cfg.clips)
        self._face_need = FrameNeed(cfg.faces.rate, cfg.faces.side)
        self._faces = NearFaces(detector, cfg.faces)
        self._tracker = FaceTracker(cfg.faces, every(self._face_need))
        self._transitions: list[Span] | None = None
        self._ends: list[tuple[int, int, bool]] = []  # of shots and of wanted spans: first frame, next start, a cut?
        self._closed = 0  # of them, those that are dealt with
        self._waiting: deque[Tick] = deque()  # frames whose boxes are not certain yet
        self._seen: dict[int, SeenFrame] = {}
        self._clips: deque[Span] = deque()  # cut, not yet given
        self._last = 0
        self._oldest = 0

    def tick(self, tick: Tick) -> Iterator[FoundClip]:
        """One step of the pass; clips whose frames are all settled now. The tick's pictures are released."""
        self._last = tick.index + 1
        info = self._info
        self._shots.frame(picture(tick, self._shots.needs, info.width, info.height))
        if tick.index % every(self._face_need) == 0:
            self._tracker.detected(tick.index, self._detect(tick) if wanted(self._spans, tick.index) else [])
        tick.frame.release()
        self._waiting.append(tick if self._crop else replace(tick, frame=_NO_FRAME))
        self._tracker.advance(self._shots.cuts, self._shots.cuts_until)
        self._settle(self._tracker.settled_until)
        self._cut(self._shots.safe_until)
        yield from self._complete(self._waiting[0].index if self._waiting else self._last)

    def finish(self, damaged: Collection[int]) -> Iterator[FoundClip]:
        """The rest, once the video has ended, without the clips that have ``damaged`` frames."""
        self._shots.finish()
        self._tracker.advance(self._shots.cuts, self._last + 1)
        self._settle(self._last)
        self._cut(self._last)
        self._clips.extend(self._cutter.close(self._last, self._last, cut=False))
        self._clips = deque(c for c in self._clips if not any(c.start <= d < c.end for d in damaged))
        yield from self._complete(self._last)

    def past(self, frame: int) -> bool:
        """Is nothing wanted any more, so that the rest need not be decoded?"""
        return bool(self._spans) and frame > self._spans[-1].end + _AFTER

    @property
    def oldest(self) -> int:
        """No clip to come begins before this frame."""
        return self._oldest

    def forget(self, before: int) -> None:
        """Faces before a frame are not needed again."""
        self._tracker.forget(before)

    # ---- faces ----------------------------------------------------------------------------------------------------

    def _detect(self, tick: Tick) -> list[Face]:
        seen = picture(tick, self._face_need, self._info.width, self._info.height)
        faces = self._faces.detect(seen.image)
        shown = [_scaled_up(face, seen.scale) for face in faces]
        return [face for face in shown if self._region is None or _inside(face, self._region)]

    def _settle(self, until: int) -> None:
        """Boxes of the waiting frames before ``until`` are certain: keep them, and the crops for the sync network."""
        while self._waiting and self._waiting[0].index < until:
            tick = self._waiting.popleft()
            boxes = self._tracker.boxes(tick.index, bisect_right(self._shots.cuts, tick.index))
            self._seen[tick.index] = SeenFrame(boxes, self._crops(tick, boxes))

    def _crops(self, tick: Tick, boxes: list[TrackBox]) -> dict[int, np.ndarray]:
        if self._crop is None:
            return {}
        crops = {box.track: self._cut_crop(tick, box, self._crop) for box in boxes}
        tick.frame.release()
        return crops

    def _cut_crop(self, tick: Tick, box: TrackBox, need: CropNeed) -> np.ndarray:
        """Cut from a picture just large enough for the crop: the scaler does the shrinking."""
        place = square(need, box.box, box.mouth)
        width, height = self._info.width, self._info.height
        scale = min(1.0, 1.25 * need.size / max(2 * place.half, 1.0))
        side = min(max(width, height), -(-round(scale * max(width, height)) // _CROP_SIDES) * _CROP_SIDES)
        small = scaled(width, height, side)
        ratio = small[0] / width
        image = tick.frame.picture(*small, need.gray)
        return cut(image, Square(place.x * ratio, place.y * ratio, place.half * ratio), need)

    # ---- clips ----------------------------------------------------------------------------------------------------

    def _cut(self, safe_until: int) -> None:
        """Clips that no unknown transition can touch."""
        transitions = self._shots.transitions()
        if transitions is not self._transitions:  # the same list as long as none is new
            edges = [(edge, edge, False) for span in self._spans for edge in (span.start, span.end)]
            self._transitions = transitions
            self._ends = sorted([*((t.start, t.end, True) for t in transitions), *edges])
        ends = self._ends
        while self._closed < len(ends) and ends[self._closed][1] <= safe_until:
            start, end, cut = ends[self._closed]
            self._clips.extend(self._cutter.close(start, end, cut=cut))
            self._closed += 1
        ahead = ends[self._closed][0] if self._closed < len(ends) else safe_until
        self._clips.extend(self._cutter.advance(min(ahead, safe_until)))

    def _complete(self, known_until: int) -> Iterator[FoundClip]:
        """Clips whose frames are all settled; what lies before them is forgotten."""
        while self._clips and self._clips[0].end <= known_until:
            span = self._clips.popleft()
            if wanted(self._spans, span.start) and wanted(self._spans, span.end - 1):
                yield self._found(span)
        self._oldest = min([self._cutter.oldest, known_until, *(c.start for c in self._clips)])
        for frame in [f for f in self._seen if f < self._oldest]:
            del self._seen[frame]

    def _found(self, span: Span) -> FoundClip:
        info = self._info
        tracks = clip_tracks(span, self._seen, self._tracker, every(self._face_need), self._cfg.faces)
        clip = Clip(
            clip_id=schema.clip_id(info.video_id, span.start, span.end),
            video_id=info.video_id,
            source_uri=info.uri,
            start_frame=span.start,
            end_frame=span.end,
            width=info.width,
            height=info.height,
        )
        faces = list(tracks.values())
        crops = tuple(self._crops_of(number, span) for number in tracks)
        return FoundClip(with_speaker(clip, faces, largest(faces), scored=False), crops)

    def _crops_of(self, number: int, span: Span) -> Crops:
        seen = ((frame, self._seen[frame].crops) for frame in range(span.start, span.end) if frame in self._seen)
        return {frame - span.start: crops[number] for frame, crops in seen if number in crops}


def _scaled_up(face: Face, scale: float) -> Face:
    mouth = None if face.mouth is None else face.mouth * scale
    return replace(face, box=face.box * scale, mouth=mouth)


def _scaled_region(region: Region, height: int) -> np.ndarray:
    """x0, y0, x1, y1 in displayed pixels."""
    x, y, w, h, meant = region
    return np.array([x, y, x + w, y + h]) * (height / meant if meant else 1.0)


def _inside(face: Face, region: np.ndarray) -> bool:
    middle = (face.box[:2] + face.box[2:]) / 2
    return bool((middle >= region[:2]).all() and (middle <= region[2:]).all())
