"""One video → its row and its clips' rows: one decoding pass that every operator watches. All scores, no decision.

The pass runs ahead of the decisions that it feeds: a cut is certain a few frames after it, a face's box once the
detection after it is known. Decoded frames wait in a short buffer until then, so that crops for the sync network are
cut without decoding twice; memory does not grow with the length of the video.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import EchoForgeError
from configs.runtime.shown import visible
from curation import schema, sidecars
from curation.analysis.clips import ClipCutter, first_tick, on_clock_spans, wanted
from curation.analysis.registry import Backends
from curation.analysis.shots import ShotDetector
from curation.config import CurationConfig
from curation.faces import Face, FaceTracker, NearFaces, TrackBox
from curation.media.audio import SoundReader
from curation.media.clock import FramePass, Tick, every, open_video, picture, scaled
from curation.media.container import MediaError
from curation.media.frames import Frame
from curation.media.video_file import MediaInfo
from curation.operators.base import ClipContext, FrameNeed, FrameOperator, Span
from curation.operators.captions import captions, facts, written
from curation.schema import FPS
from curation.sync import Residual, Square, SyncBackend, SyncScore, cut, measure_residual, square

_BOX_EVERY = 4  # boxes are stored for every 4th frame (one latent frame); clips have 4k+1 frames, so the ends are in
_PRESENT = 0.3  # a track in less of the clip than this is a passer-by or a mistake of the detector
_SCORED = 0.5  # a track in at least so much of the clip is asked whether it speaks
_SOUND_BEFORE_S = 2.0  # read before the first frame wanted: codecs need a run-up
_NO_FRAME = Frame(0.0, 0.0, damaged=False)  # decoded frames are large: they wait only for crops
_AFTER = 100  # frames looked at after the last wanted one: a fade that begins before it is known by then
_CROP_SIDES = 32  # crops are cut from pictures whose longer side is a multiple of this, so few sizes are rendered


def analyse_video(
    uri: str,
    cfg: CurationConfig,
    *,
    backends: Backends,
    spans: Sequence[tuple[float, float]] = (),
    caption: str | None = None,
    speaker: str | None = None,
    licence: str | None = None,
    source: str | None = None,
    region: tuple[int, int, int, int, int] | None = None,
    root: str = "",
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Everything that can be known of one video by itself.

    Args:
        spans: seconds [start, end) to which clips are restricted; none: the whole video.
        caption, speaker, licence, source: what a manifest says of it.
        region: x, y, w, h that the speaker's face lies in, and the height of the picture that they are meant for (0:
            this one's). Faces with their middle elsewhere are not looked at.
        root: folder of sources that the video was found in: sidecars must lie in it. Empty: the video's own.

    Returns:
        (row of `catalog.VIDEOS`, rows of `catalog.CLIPS`). A file that cannot be used gives a row with the verdict
        `error`, the stage and one sentence, and the clips found before it broke are dropped.
    """
    extra = {"licence": licence, "source": source}
    place = sidecars.root_of(uri, root, cfg.sources.follow_links)
    try:
        said = facts(uri, place)
        written_captions = written(uri, cfg.captions, caption, place)
    except EchoForgeError as error:
        return error_row(uri, "captions", str(error)) | extra, []
    extra = {"licence": licence or said.get("licence"), "source": source or said.get("source")}
    speaker = speaker or said.get("speaker")
    info = None
    try:
        with open_video(uri, cfg.video) as video:
            info = video.info
            first = first_tick(on_clock_spans(spans))
            frames = FramePass(video, cfg.video, first)
            with SoundReader(uri, video.info.origin_s, max(0.0, first / FPS - _SOUND_BEFORE_S)) as sound:
                work = _Analysis(video.info, cfg, backends, sound, spans, region)
                if backends.captioner and not written_captions:
                    work.watch(backends.captioner())
                clips: list[dict[str, Any]] = []
                for tick in frames.run():
                    clips += work.tick(tick)
                    if work.past(tick.index):
                        break
                clips += work.finish(frames)
            row = _video_row(video.info, frames, whole=not work.past(frames.ticks)) | extra
    except MediaError as error:
        return error_row(uri, error.stage, str(error), info) | extra, []
    except EchoForgeError as error:
        return error_row(uri, "analyse", str(error), info) | extra, []
    for clip in clips:
        clip["captions"] = captions(clip, written_captions, cfg.captions)
        clip["speaker"] = speaker
    return row, clips


@dataclass(frozen=True)
class _Scored:
    """The sync score of one track, and what was scored: crops [F, …] and their sound float32 [F · 640]."""

    score: SyncScore
    crops: np.ndarray
    pcm: np.ndarray


@dataclass
class _Seen:
    """What became of one frame once its boxes were certain."""

    boxes: list[TrackBox]
    crops: dict[int, np.ndarray]  # by track


class _Analysis:
    """The state of one pass."""

    def __init__(
        self,
        info: MediaInfo,
        cfg: CurationConfig,
        backends: Backends,
        sound: SoundReader,
        spans: Sequence[tuple[float, float]],
        region: tuple[int, int, int, int, int] | None = None,
    ) -> None:
        self._info, self._cfg, self._backends, self._sound = info, cfg, backends, sound
        self._spans = on_clock_spans(spans)
        self._region = None if region is None else _scaled_region(region, info.height)
        self._shots = ShotDetector(cfg.shots)
        self._cutter = ClipCutter(cfg.clips)
        self._face_need = FrameNeed(cfg.faces.rate, cfg.faces.side)
        self._faces = NearFaces(backends.detector, cfg.faces)
        self._tracker = FaceTracker(cfg.faces, every(self._face_need))
        self._operators: list[FrameOperator] = [make() for make in backends.frame_operators.values()]
        self._listeners = [make() for make in backends.sound_operators.values()]
        self._cuts_crops = backends.sync is not None and sound.present
        self._transitions: list[Span] | None = None
        self._ends: list[tuple[int, int, bool]] = []  # of shots and of wanted spans: first frame, next start, a cut?
        self._closed = 0  # of them, those that are dealt with
        self._waiting: deque[Tick] = deque()  # frames whose boxes are not certain yet
        self._seen: dict[int, _Seen] = {}
        self._clips: deque[Span] = deque()  # certain clips, not yet answered for
        self._last = 0
        self._forgotten = 0  # frame before which nothing is kept

    def watch(self, operator: FrameOperator) -> None:
        """Let one more operator see this video."""
        self._operators.append(operator)

    def tick(self, tick: Tick) -> Iterator[dict[str, Any]]:
        """One step of the pass; rows of clips that are complete now."""
        self._last = tick.index + 1
        info = self._info
        self._shots.frame(picture(tick, self._shots.needs, info.width, info.height))
        here = wanted(self._spans, tick.index)
        for operator in self._operators if here else ():
            if tick.index % every(operator.needs) == 0:
                operator.frame(picture(tick, operator.needs, info.width, info.height))
        if tick.index % every(self._face_need) == 0:
            self._tracker.detected(tick.index, self._detect(tick) if here else [])
        tick.frame.release()
        self._waiting.append(tick if self._cuts_crops else replace(tick, frame=_NO_FRAME))
        self._tracker.advance(self._shots.cuts, self._shots.cuts_until)
        self._settle(self._tracker.settled_until)
        self._cut(self._shots.safe_until)
        yield from self._answer(self._waiting[0].index if self._waiting else self._last)

    def past(self, frame: int) -> bool:
        """Is nothing wanted any more, so that the rest need not be decoded?"""
        return bool(self._spans) and frame > self._spans[-1].end + _AFTER

    def finish(self, frames: FramePass) -> Iterator[dict[str, Any]]:
        """The rest, once the video has ended."""
        self._shots.finish()
        self._tracker.advance(self._shots.cuts, self._last + 1)
        self._settle(self._last)
        self._cut(self._last)
        self._clips.extend(self._cutter.close(self._last, self._last, cut=False))
        damaged = frames.damaged
        self._clips = deque(c for c in self._clips if not any(c.start <= d < c.end for d in damaged))
        yield from self._answer(self._last)

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
            self._seen[tick.index] = _Seen(boxes, self._crops(tick, boxes))

    def _crops(self, tick: Tick, boxes: list[TrackBox]) -> dict[int, np.ndarray]:
        backend = self._backends.sync
        if backend is None or not self._cuts_crops:
            return {}
        crops = {box.track: self._crop(tick, box, backend) for box in boxes}
        tick.frame.release()
        return crops

    def _crop(self, tick: Tick, box: TrackBox, backend: SyncBackend) -> np.ndarray:
        """Cut from a picture just large enough for the crop: the scaler does the shrinking."""
        place = square(backend.crop, box.box, box.mouth)
        width, height = self._info.width, self._info.height
        scale = min(1.0, 1.25 * backend.crop.size / max(2 * place.half, 1.0))
        side = min(max(width, height), -(-round(scale * max(width, height)) // _CROP_SIDES) * _CROP_SIDES)
        small = scaled(width, height, side)
        ratio = small[0] / width
        image = tick.frame.picture(*small, backend.crop.gray)
        return cut(image, Square(place.x * ratio, place.y * ratio, place.half * ratio), backend.crop)

    # ---- clips ----------------------------------------------------------------------------------------------------

    def _cut(self, safe_until: int) -> None:
        """Clips that no unknown transition can touch."""
        transitions = self._shots.transitions()
        if transitions is not self._transitions:  # the same list as long as none is new
            edges = [(edge, edge, False) for span in self._spans for edge in (span.start, span.end)]
            self._transitions, self._ends = (
                transitions,
                sorted([*((t.start, t.end, True) for t in transitions), *edges]),
            )
        ends = self._ends
        while self._closed < len(ends) and ends[self._closed][1] <= safe_until:
            start, end, cut = ends[self._closed]
            self._clips.extend(self._cutter.close(start, end, cut=cut))
            self._closed += 1
        ahead = ends[self._closed][0] if self._closed < len(ends) else safe_until
        self._clips.extend(self._cutter.advance(min(ahead, safe_until)))

    def _answer(self, known_until: int) -> Iterator[dict[str, Any]]:
        """Rows of the clips whose frames are all settled; what lies before them is forgotten."""
        while self._clips and self._clips[0].end <= known_until:
            span = self._clips.popleft()
            if wanted(self._spans, span.start) and wanted(self._spans, span.end - 1):
                yield self._row(span)
        oldest = min([self._cutter.oldest, known_until, *(c.start for c in self._clips)])
        for frame in [f for f in self._seen if f < oldest]:
            del self._seen[frame]
        if oldest - self._forgotten >= 10 * FPS:
            self._forgotten = oldest
            self._tracker.forget(oldest)
            self._sound.forget(oldest)
            for operator in self._operators:
                operator.forget(oldest)

    def _row(self, span: Span) -> dict[str, Any]:
        info = self._info
        tracks, numbers = self._tracks(span)
        context = ClipContext(info.width, info.height, info.fps, tuple(tracks), _largest(tracks))
        row: dict[str, Any] = {
            "clip_id": schema.clip_id(info.video_id, span.start, span.end),
            "video_id": info.video_id,
            "source_uri": info.uri,
            "start_frame": span.start,
            "end_frame": span.end,
            "start_s": span.start / FPS,
            "end_s": span.end / FPS,
            "width": info.width,
            "height": info.height,
        }
        for operator in self._operators:
            row |= operator.clip(span, context)
        if self._sound.present:
            row |= self._sounds(span, tracks, numbers)
        active = row.setdefault("active_track", context.active)
        best = tracks[active] if active is not None else None
        row |= {
            "active_by": _chosen_by(tracks, scored="av_offset_frames" in row),
            "tracks": tracks,
            "n_faces": len(tracks),
            "face_frac": best["frac_present"] if best else 0.0,
            "face_px": best["size_px"] if best else None,
        }
        return row

    def _tracks(self, span: Span) -> tuple[list[dict[str, Any]], list[int]]:
        """The catalog's track rows, numbered from 0 within the clip, and the tracker's own numbers of them."""
        places: dict[int, dict[int, TrackBox]] = defaultdict(dict)
        for frame in range(span.start, span.end):
            for box in self._seen[frame].boxes if frame in self._seen else []:
                places[box.track][frame - span.start] = box
        rows: list[dict[str, Any]] = []
        numbers: list[int] = []
        for number, found in sorted(places.items()):
            if len(found) < _PRESENT * len(span) or not self._certain(number, span):
                continue
            boxes = np.stack([b.box for b in found.values()])
            sizes = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
            kept = [f for f in found if f % _BOX_EVERY == 0 or f == len(span) - 1] or list(found)[:1]
            rows.append(
                {
                    "track_id": len(rows),
                    "boxes": [found[f].box.tolist() for f in kept],
                    "mouth_boxes": [found[f].mouth.tolist() for f in kept],
                    "box_frames": kept,
                    "size_px": float(np.median(sizes)),
                    "jitter": _jitter(boxes, sizes),
                    "frac_present": len(found) / len(span),
                }
            )
            numbers.append(number)
        return rows, numbers

    def _certain(self, number: int, span: Span) -> bool:
        """Was the face detected often enough, and in most looks from its first to its last within the clip?"""
        track = next((t for t in self._tracker.tracks if t.number == number), None)
        hits = [f for f in track.frames if span.start <= f < span.end] if track else []
        step, cfg = every(self._face_need), self._cfg.faces
        least = max(1, min(cfg.min_hits, len(span) // step // 3))  # short clips hold few looks: a third is asked for
        return len(hits) >= least and len(hits) >= cfg.min_hit_share * ((hits[-1] - hits[0]) // step + 1)

    # ---- sound and sync -------------------------------------------------------------------------------------------

    def _sounds(self, span: Span, tracks: list[dict[str, Any]], numbers: list[int]) -> dict[str, Any]:
        heard = self._sound.read(span.start, span.end)
        values: dict[str, Any] = {}
        for listener in self._listeners:
            values |= listener.clip(heard.pcm, heard.native, heard.rate)
        backend = self._backends.sync
        if backend is None:
            return values
        best: _Scored | None = None  # the crops of one face at a time stay in memory beside the best's
        speaking = 0
        for i, (track, number) in enumerate(zip(tracks, numbers, strict=True)):
            result = self._score(span, number, heard.pcm, backend) if track["frac_present"] >= _SCORED else None
            if result is None:
                continue
            track |= {
                "av_offset": _small(result.score.offset_frames),
                "conf": result.score.conf / backend.unit,
                "dist": result.score.dist,
            }
            if best is None or result.score.conf > best.score.conf:
                speaking, best = i, result
        if best is None:
            return values
        least = self._cfg.sync.min_frames
        residual = measure_residual(backend, best.crops, best.pcm, best.score.offset_frames, least)
        return values | {"active_track": speaking} | _sync_columns(best.score, residual, backend)

    def _score(self, span: Span, number: int, pcm: np.ndarray, backend: SyncBackend) -> _Scored | None:
        """Score the longest unbroken stretch of a track's crops against its sound; None where it is too short."""
        have = [f for f in range(span.start, span.end) if f in self._seen and number in self._seen[f].crops]
        runs = np.split(np.asarray(have), np.flatnonzero(np.diff(have) > 1) + 1) if have else []
        run = max(runs, key=len, default=np.empty(0, int))
        if len(run) < self._cfg.sync.min_frames:
            return None
        crops = np.stack([self._seen[int(f)].crops[number] for f in run])
        first = int(run[0]) - span.start
        part = pcm[first * schema.SAMPLES_PER_FRAME : (first + len(run)) * schema.SAMPLES_PER_FRAME]
        return _Scored(backend.score(crops, part), crops, part)


def _scaled_up(face: Face, scale: float) -> Face:
    mouth = None if face.mouth is None else face.mouth * scale
    return replace(face, box=face.box * scale, mouth=mouth)


def _scaled_region(region: tuple[int, int, int, int, int], height: int) -> np.ndarray:
    """x0, y0, x1, y1 in displayed pixels."""
    x, y, w, h, meant = region
    return np.array([x, y, x + w, y + h]) * (height / meant if meant else 1.0)


def _inside(face: Face, region: np.ndarray) -> bool:
    middle = (face.box[:2] + face.box[2:]) / 2
    return bool((middle >= region[:2]).all() and (middle <= region[2:]).all())


def _sync_columns(score: SyncScore, residual: Residual, backend: SyncBackend) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "sync_backend": backend.name,
        "av_offset_frames": _small(score.offset_frames),
        "residual_offset": None if residual.offset_frames is None else _small(residual.offset_frames),
        "residual_frames": residual.frames,
    }
    if backend.name == "syncnet_v2":
        return columns | {"sync_c": score.conf, "sync_d": score.dist}
    return columns | {"sync_fit_conf": score.conf / backend.unit}


def _small(offset: int) -> int:
    return int(np.clip(offset, -128, 127))  # the column is int8


def _chosen_by(tracks: list[dict[str, Any]], *, scored: bool) -> str | None:
    """What made one face the speaking one: it is alone, its lips fit the sound best, or (unscored) it is the largest."""
    if len(tracks) < 2:
        return "alone" if tracks else None
    return "sync" if scored else "size"


def _largest(tracks: list[dict[str, Any]]) -> int | None:
    return max(range(len(tracks)), key=lambda i: tracks[i]["size_px"] * tracks[i]["frac_present"], default=None)


def _jitter(boxes: np.ndarray, sizes: np.ndarray) -> float:
    """Mean absolute second difference of the centre, in shares of the face."""
    if len(boxes) < 3:
        return 0.0
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return float(np.abs(np.diff(centres, 2, axis=0)).mean() / max(float(np.median(sizes)), 1.0))


def _video_row(info: MediaInfo, frames: FramePass, *, whole: bool) -> dict[str, Any]:
    fps, seen_s = frames.deltas.fps, frames.ticks / FPS
    return {
        "video_id": info.video_id,
        "source_uri": info.uri,
        "bytes": info.bytes,
        "container": info.container,
        "vcodec": info.vcodec,
        "acodec": info.acodec,
        "duration_s": seen_s if whole else max(seen_s, info.duration_s or 0.0),
        "fps": fps if fps is not None else info.fps,
        "vfr": frames.deltas.variable,
        "width": info.width,
        "height": info.height,
        "rotation": info.rotation,
        "sample_rate": info.sample_rate,
        "channels": info.channels,
    }


def error_row(uri: str, stage: str, sentence: str, info: MediaInfo | None = None) -> dict[str, Any]:
    """A file that cannot be used is still a row. One that was opened as a video has the id of its bytes."""
    sentence = visible(sentence)
    row: dict[str, Any] = {"source_uri": uri, "verdict": "error", "error_stage": stage, "error": sentence}
    row["reasons"] = [f"{stage}: {sentence}"]
    if info is not None:
        return row | {"video_id": info.video_id, "bytes": info.bytes}
    with suppress(OSError, ValueError):  # a remote or unreadable file: the sentence says so
        if Path(uri).is_file():  # a pipe would wait for ever
            row["bytes"] = Path(uri).stat().st_size
    return row
