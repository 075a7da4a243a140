"""The rules of the decision, as data: which score, which threshold, which sentence.

Adding a rule is one row of :data:`RULES` and its threshold in `DecideConfig`; the summary, the report, ``catalog
explain`` and what-ifs follow from the row. Text by kind and duplicates come beside (`curation.decision.decide`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from curation.config import CurationConfig

SYNC_REMEDY = (
    "get SyncNet's weights (`weights fetch syncnet-v2`) and curate again, fit a backend on your own clips "
    "(`sync fit`), or set sync.required=false"
)
"""The three ways to go on without a sync score, in the sentence of a single clip."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """``value op limit`` must hold, else the clip is rejected (or held) with ``sentence``.

    A null value passes unless ``null`` gives a sentence for it.
    """

    code: str
    column: str  # of the clips table, or a name that `curation.decision.decide.value` derives
    op: Literal[">=", "<=", "abs<="]
    setting: str | None = None  # key of ``decide`` that holds the limit; None: no threshold changes the rule
    limit: float = math.nan  # of a row without ``setting``; :func:`rules` fills in the others
    words: str  # after a count in a summary, without numbers
    sentence: str  # with {value} and {limit}
    null: str | None = None  # sentence for a missing value
    outcome: Literal["reject", "hold"] = "reject"
    unit: str = ""
    sync: bool = False  # one of those that a correction of the sound must pass


RULES: tuple[Rule, ...] = (
    Rule(
        code="face_frac",
        column="face_frac",
        op=">=",
        setting="min_face_frac",
        words="no face, or not in enough of the clip",
        sentence="the face is in {value:.0%} of the clip, {limit:.0%} needed",
        null="no steady face was found",
    ),
    Rule(
        code="face_count",
        column="n_faces",
        op="<=",
        setting="max_faces",
        words="too many faces",
        sentence="{value:.0f} faces, at most {limit:.0f} allowed",
    ),
    Rule(
        code="face_size",
        column="face_px",
        op=">=",
        setting="min_face_px",
        words="face of too few pixels",
        sentence="the face is {value:.0f} px, {limit:.0f} needed",
        unit="px",
    ),
    Rule(
        code="face_share",
        column="face_share",
        op=">=",
        setting="min_face_share",
        words="face too small a part of the picture",
        sentence="the face fills {value:.0%} of the shorter side, {limit:.0%} needed",
    ),
    Rule(
        code="speech",
        column="speech_frac",
        op=">=",
        setting="min_speech",
        words="no sound, or too little speech",
        sentence="{value:.0%} of the sound is speech, {limit:.0%} needed",
        null="there is no sound",
    ),
    Rule(
        code="silence",
        column="lufs",
        op=">=",
        setting="min_lufs",
        words="too quiet",
        sentence="loudness {value:.0f} LUFS, {limit:.0f} needed",
        unit="LUFS",
    ),
    Rule(
        code="clipping",
        column="clip_frac",
        op="<=",
        setting="max_clipped",
        words="clipped sound",
        sentence="{value:.1%} of the sound is clipped, {limit:.1%} allowed",
    ),
    Rule(
        code="voices",
        column="second_voice",
        op="<=",
        setting="max_second_voice",
        words="a second voice, or music",
        sentence="a second voice or music in {value:.0%} of the speech, {limit:.0%} allowed",
    ),
    Rule(
        code="text_area",
        column="text_area",
        op="<=",
        setting="max_text_area",
        words="too much text in the picture",
        sentence="text covers {value:.1%} of the picture, {limit:.1%} allowed",
    ),
    Rule(
        code="sharpness",
        column="sharpness",
        op=">=",
        setting="min_sharpness",
        words="blurred face",
        sentence="sharpness {value:.2f}, {limit:.2f} needed: the face is blurred",
    ),
    Rule(
        code="dark",
        column="exposure",
        op=">=",
        setting="min_exposure",
        words="too dark",
        sentence="mean light {value:.2f}, {limit:.2f} needed: too dark",
    ),
    Rule(
        code="bright",
        column="exposure",
        op="<=",
        setting="max_exposure",
        words="too bright",
        sentence="mean light {value:.2f}, {limit:.2f} allowed: too bright",
    ),
    Rule(
        code="still",
        column="motion",
        op=">=",
        setting="min_motion",
        words="too little motion",
        sentence="motion {value:.2f}, {limit:.2f} needed",
    ),
    Rule(
        code="motion",
        column="motion",
        op="<=",
        setting="max_motion",
        words="too much motion",
        sentence="motion {value:.1f}, {limit:.1f} allowed",
    ),
    Rule(
        code="shake",
        column="shake",
        op="<=",
        setting="max_shake",
        words="shaking camera",
        sentence="the camera shakes by {value:.1%} of the width, {limit:.1%} allowed",
    ),
    Rule(
        code="frozen",
        column="freeze_frac",
        op="<=",
        setting="max_freeze",
        words="frozen or black for too long",
        sentence="{value:.0%} of the clip is frozen or black, {limit:.0%} allowed",
    ),
    Rule(
        code="blocks",
        column="blockiness",
        op="<=",
        setting="max_blockiness",
        words="blocks of strong compression",
        sentence="blockiness {value:.1f}, {limit:.1f} allowed",
    ),
    Rule(
        code="aesthetic",
        column="aesthetic",
        op=">=",
        setting="min_aesthetic",
        words="low aesthetic score",
        sentence="aesthetic score {value:.1f}, {limit:.1f} needed",
    ),
    Rule(
        code="fps",
        column="fps",
        op=">=",
        setting="min_fps",
        words="too few frames a second",
        sentence="{value:.1f} frames a second in the source, {limit:.0f} needed",
        unit="fps",
    ),
    Rule(
        code="resolution",
        column="used_side",
        op=">=",
        setting="min_height",
        words="picture too small",
        sentence="the shorter side is {value:.0f} px after the crop, {limit:.0f} needed",
    ),
    Rule(
        code="sync_conf",
        column="sync_c",
        op=">=",
        setting="sync_min_conf",
        words="low sync confidence",
        sentence="sync confidence {value:.1f}, {limit:.1f} needed",
        sync=True,
    ),
    Rule(
        code="sync_fit",
        column="sync_fit_conf",
        op=">=",
        setting="sync_min_fit_conf",
        words="low sync confidence of the fitted SyncNet",
        sentence="confidence of the fitted sync {value:.2f} (1 is its own threshold), {limit:.2f} needed",
        sync=True,
    ),
    Rule(
        code="sync_offset",
        column="av_offset_frames",
        op="abs<=",
        setting="sync_max_offset",
        words="sound and lips too far apart to correct",
        sentence="sound and lips are {value:+.0f} frames apart, {limit:.0f} can be corrected",
        sync=True,
    ),
    Rule(
        code="sync_residual",
        column="residual_offset",
        op="abs<=",
        setting="sync_max_residual",
        words="out of sync after correction",
        sentence="{value:+.0f} frames remain after correction, {limit:.0f} allowed",
        sync=True,
    ),
    Rule(
        code="sync_unstable",
        column="sync_frames_left",
        op=">=",
        limit=math.inf,  # every value fails
        words="too few frames left after correcting the sound",
        sentence="only {value:.0f} frames are left after correction, too few to measure what remains of the offset",
        sync=True,
    ),
    Rule(
        code="sync_unmeasured",
        column="sync_unmeasured",
        op="abs<=",
        limit=-math.inf,  # every value fails
        words="sync after correction not measured",
        sentence="what remains of an offset of {value:+.0f} frames was never measured; run `curate` again, which "
        "measures sync again and repeats no other score",
        outcome="hold",
        sync=True,
    ),
    Rule(
        code="sync_missing",
        column="sync_any",
        op=">=",
        limit=-math.inf,  # every value passes
        words="no sync score",
        sentence="",
        null=f"no sync score could be computed; {SYNC_REMEDY}",
        outcome="hold",
    ),
)
"""All numeric rules, in the order in which their reasons are given."""


def rules(cfg: CurationConfig) -> list[Rule]:
    """All rules with the limits of a configuration."""
    found = [r if r.setting is None else replace(r, limit=getattr(cfg.decide, r.setting)) for r in RULES]
    return found if cfg.sync.required else [replace(r, null=None) if r.code == "sync_missing" else r for r in found]
