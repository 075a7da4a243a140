"""A video analysed again by some stages only: the others' scores are taken from its earlier analysis.

A changed operator that only scores clips (text, quality, sound …) needs the clips and the face tracks, and both are
known: one pass with that operator alone, no shots, no faces. Sync scores need the face of every frame, which rows do not
hold: for them shots and faces are found again, and no other score is computed. A caption that the template wrote says
what was measured, so it is written again from every new row; that costs nothing, and is therefore no dependence of
`captions`, which may be a large model. What depends on what is in `curation.analysis.stages`.
"""

from __future__ import annotations

from collections.abc import Set

from configs.errors import EchoForgeError
from curation.analysis.registry import Backends
from curation.analysis.stages import OPERATORS
from curation.analysis.video import Analysis, analyse_video, score_known_clips, written_of
from curation.captions import captioned, retold
from curation.clip import Clip
from curation.config import CurationConfig
from curation.operators.captions import CaptionOperator
from curation.sources.source import Source

CAPTIONS = CaptionOperator.name


def analyse_changed(
    source: Source, cfg: CurationConfig, *, backends: Backends, run: Set[str], before: Analysis
) -> Analysis:
    """As `analyse_video`, with only the stages ``run`` at work.

    Args:
        run: as `stages.outdated` gives it.
        before: an earlier analysis of the same bytes.

    Returns:
        what a whole analysis would.
    """
    video, clips = before
    if video.error_stage:
        return analyse_video(source, cfg, backends=backends)
    if "faces" not in run and backends.sync is None and all(clip.scores.get("sync_backend") is None for clip in clips):
        run = run - {"sync"}  # nothing was scored, and nothing will be
    if run & {"faces", "sync"}:
        found = analyse_video(source, cfg, backends=backends.only(run))
        if found[0].error_stage or [_place(clip) for clip in found[1]] != [_place(clip) for clip in clips]:
            return analyse_video(source, cfg, backends=backends)
        kept = _columns({*backends.frame_operators, *backends.sound_operators, CAPTIONS} - run)
        merged = (new.scored(old.columns(kept)) for new, old in zip(found[1], clips, strict=True))
        return found[0], tuple(retold(clip, cfg.captions) for clip in merged)
    try:
        return video, tuple(retold(clip, cfg.captions) for clip in _score(source, cfg, backends, run, clips))
    except EchoForgeError:  # the whole analysis says where and why, in a row
        return analyse_video(source, cfg, backends=backends)


def _score(
    source: Source, cfg: CurationConfig, backends: Backends, run: Set[str], clips: tuple[Clip, ...]
) -> tuple[Clip, ...]:
    """The clips with the scores of the operators ``run``, and no others, measured again."""
    selected = backends.only(run)
    said = written_of(source, cfg).captions if CAPTIONS in run else ()
    if said:
        selected = selected.without(CAPTIONS)
    clips = tuple(clip.scored(dict.fromkeys(_columns(run & OPERATORS.keys()))) for clip in clips)
    if selected.frame_operators or selected.sound_operators:
        clips = score_known_clips(source, cfg, clips, backends=selected)
    return tuple(captioned(clip, said, cfg.captions) for clip in clips) if CAPTIONS in run else clips


def _columns(operators: Set[str]) -> list[str]:
    return [column for name in sorted(operators) for column in OPERATORS[name].columns]


def _place(clip: Clip) -> tuple[int, int]:
    return clip.start_frame, clip.end_frame
