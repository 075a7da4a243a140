"""A video looked at again by some operators only: the others' scores are taken from its earlier rows.

What an operator's result depends on is written here once. A changed operator that only measures clips (text, quality,
sound …) needs the clips and the face tracks, and both are in the rows: one decoding pass with that operator alone, no
shots, no faces. Sync scores need the face of every frame, which rows do not hold: for them shots and faces are found
again, and no other score is computed. Where clips themselves may change (`video`, `shots`, `clips`), everything depends
on it. A caption that the template wrote says what was measured, so it is written again from every new row; that costs
nothing, and is therefore no dependence of `captions`, which may be a large model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from configs.errors import EchoForgeError
from curation import sidecars
from curation.analysis.clips import first_tick, on_clock_spans, wanted
from curation.analysis.registry import FRAME_OPERATORS, SOUND_OPERATORS, Backends
from curation.analysis.video import analyse_video
from curation.config import CurationConfig
from curation.media.audio import SoundReader
from curation.media.clock import FramePass, every, open_video, picture
from curation.operators.base import ClipContext, FrameOperator, Span
from curation.operators.captions import captions, written
from curation.schema import CLIPS

Row = dict[str, Any]
Rows = tuple[Row, list[Row]]
"""A row of `catalog.VIDEOS` and the rows of `catalog.CLIPS`."""

WHOLE = frozenset({"video", "shots", "clips"})
"""A change of these can move clips, so every operator depends on them."""
DEPENDENTS: dict[str, tuple[str, ...]] = {
    # crops; text and sharpness are weighed by the face's place; a model is asked only about clips with a face
    "faces": ("sync", "text", "detail", "captions"),
}
"""Operator → those that use its result. Operators not named here are used by none."""
_FORGET = 250  # frames between two times that operators are told what is not needed any more
_SYNC_COLUMNS = ("av_offset", "conf", "dist")  # of a track: no part of what other operators see


def outdated(before: Mapping[str, str], now: Mapping[str, str]) -> frozenset[str] | None:
    """The operators to run again when parameter hashes change from ``before`` to ``now`` (both by operator).

    Returns:
        Changed and new operators and all that depend on them; None when that is every operator.
    """
    run = {name for name, digest in now.items() if before.get(name) != digest}
    if run & WHOLE:
        return None
    waiting = list(run)
    while waiting:
        for dependent in DEPENDENTS.get(waiting.pop(), ()):
            if dependent not in run:
                run.add(dependent)
                waiting.append(dependent)
    return frozenset(run)


def analyse_again(
    uri: str,
    cfg: CurationConfig,
    *,
    backends: Backends,
    run: Set[str],
    before: Rows,
    spans: Sequence[tuple[float, float]] = (),
    caption: str | None = None,
    **facts: Any,
) -> Rows:
    """As `analyse_video`, with only the operators ``run`` at work.

    Args:
        run: as :func:`outdated` gives it.
        before: the video's rows from an earlier analysis of the same bytes.
        facts: ``speaker``, ``licence``, ``source``, ``region``, as a manifest says; ``root`` of `analyse_video`.

    Returns:
        Rows equal to those of a whole analysis.
    """

    def whole(backends: Backends = backends) -> Rows:
        return analyse_video(uri, cfg, backends=backends, spans=spans, caption=caption, **facts)

    video, clips = before[0], [{name: clip.get(name) for name in CLIPS.names} for clip in before[1]]
    if video.get("error_stage"):
        return whole()
    if "faces" not in run and backends.sync is None and all(clip["sync_backend"] is None for clip in clips):
        run = run - {"sync"}  # nothing was scored, and nothing will be
    few = _only(backends, run)
    if run & {"faces", "sync"}:
        again, found = whole(few)
        if again.get("error_stage") or [_place(c) for c in found] != [_place(c) for c in clips]:
            return whole()
        kept = _columns_of(backends, run)
        merged = [new | {name: old[name] for name in kept} for new, old in zip(found, clips, strict=True)]
        _fill_templates(merged, cfg)
        return again, merged
    try:
        if "captions" in run:
            clips = [clip | {"captions": None} for clip in clips]
        place = sidecars.root_of(uri, facts.get("root", ""), cfg.sources.follow_links)
        said = written(uri, cfg.captions, caption, place) if "captions" in run else []
        asked = [few.captioner()] if few.captioner and not said else []
        if asked or run & {*FRAME_OPERATORS, *SOUND_OPERATORS}:
            _look(uri, cfg, few, clips, asked, on_clock_spans(spans))
        if "captions" in run:
            for clip in clips:
                clip["captions"] = captions(clip, said, cfg.captions)
        _fill_templates(clips, cfg)
    except EchoForgeError:  # the whole analysis says where and why, in a row
        return whole()
    return {name: value for name, value in video.items() if value is not None}, clips


def _fill_templates(clips: list[Row], cfg: CurationConfig) -> None:
    """Write the captions anew that the template wrote: it says how large the speaking face is and whether it talks."""
    for clip in clips:
        if [said["source"] for said in clip["captions"] or ()] == ["template"]:
            clip["captions"] = captions(clip | {"captions": None}, [], cfg.captions)


def _only(backends: Backends, run: Set[str]) -> Backends:
    return replace(
        backends,
        sync=backends.sync if "sync" in run else None,
        captioner=backends.captioner if "captions" in run else None,
        frame_operators={name: make for name, make in backends.frame_operators.items() if name in run},
        sound_operators={name: make for name, make in backends.sound_operators.items() if name in run},
    )


def _columns_of(backends: Backends, run: Set[str]) -> list[str]:
    """Columns of the clips table that the operators not in ``run`` wrote."""
    makers: dict[str, Any] = {**backends.frame_operators, **backends.sound_operators}
    kept = [column for name, make in makers.items() if name not in run for column in make().columns]
    return kept if "captions" in run else [*kept, "captions"]


def _place(clip: Row) -> tuple[int, int]:
    return clip["start_frame"], clip["end_frame"]


def _look(
    uri: str, cfg: CurationConfig, backends: Backends, clips: list[Row], more: list[FrameOperator], within: list[Span]
) -> None:
    """Run the operators of ``backends`` and ``more`` over the known ``clips`` (in order); write their columns there."""
    with open_video(uri, cfg.video, identify=False) as video:
        info = video.info
        operators = [*(make() for make in backends.frame_operators.values()), *more]
        if operators:
            waiting = deque(clips)
            for tick in FramePass(video, cfg.video, first_tick(within)).run():
                for operator in operators if wanted(within, tick.index) else ():
                    if tick.index % every(operator.needs) == 0:
                        operator.frame(picture(tick, operator.needs, info.width, info.height))
                tick.frame.release()
                while waiting and waiting[0]["end_frame"] <= tick.index + 1:
                    _answer(operators, waiting.popleft(), info.width, info.height, info.fps)
                if tick.index % _FORGET == 0:
                    for operator in operators:
                        operator.forget(min(clip["start_frame"] for clip in waiting) if waiting else tick.index)
            for clip in waiting:
                _answer(operators, clip, info.width, info.height, info.fps)
        if backends.sound_operators:
            _listen(uri, info.origin_s, backends, clips)


def _answer(operators: list[FrameOperator], clip: Row, width: int, height: int, fps: float) -> None:
    tracks = tuple({k: v for k, v in track.items() if k not in _SYNC_COLUMNS} for track in clip["tracks"] or ())
    active = max(range(len(tracks)), key=lambda i: tracks[i]["size_px"] * tracks[i]["frac_present"], default=None)
    context = ClipContext(width, height, fps, tracks, active)
    for operator in operators:
        clip |= operator.clip(Span(clip["start_frame"], clip["end_frame"]), context)


def _listen(uri: str, origin_s: float, backends: Backends, clips: list[Row]) -> None:
    with SoundReader(uri, origin_s) as sound:
        if not sound.present:
            return
        listeners = [make() for make in backends.sound_operators.values()]
        for clip in clips:
            sound.forget(clip["start_frame"])
            heard = sound.read(clip["start_frame"], clip["end_frame"])
            for listener in listeners:
                clip |= listener.clip(heard.pcm, heard.native, heard.rate)
