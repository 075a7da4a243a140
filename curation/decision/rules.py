"""The rules of the decision, as data: which score, which threshold, which sentence. Built from the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curation.config import CurationConfig
from curation.decision.reasons import SYNC_REMEDY


@dataclass(frozen=True)
class Rule:
    """``value op limit`` must hold, else the clip is rejected (or held) with ``sentence``.

    A null value passes unless ``null`` gives a sentence for it.
    """

    code: str
    column: str  # of the clips table, or a name that `curation.decision.decide.value` derives
    op: Literal[">=", "<=", "abs<="]
    limit: float
    sentence: str  # with {value} and {limit}
    null: str | None = None  # sentence for a missing value
    outcome: Literal["reject", "hold"] = "reject"
    unit: str = ""
    sync: bool = False  # one of those that a correction of the sound must pass


def rules(cfg: CurationConfig) -> list[Rule]:
    """All numeric rules, in the order in which their reasons are given. Text by kind and duplicates come beside."""
    d = cfg.decide
    sync_null = f"no sync score could be computed; {SYNC_REMEDY}" if cfg.sync.required else None
    missing_face = "no steady face was found"
    return [
        Rule(
            "face_frac",
            "face_frac",
            ">=",
            d.min_face_frac,
            "the face is in {value:.0%} of the clip, {limit:.0%} needed",
            missing_face,
        ),
        Rule("face_count", "n_faces", "<=", d.max_faces, "{value:.0f} faces, at most {limit:.0f} allowed"),
        Rule(
            "face_size",
            "face_px",
            ">=",
            d.min_face_px,
            "the face is {value:.0f} px, {limit:.0f} needed",
            None,
            unit="px",
        ),
        Rule(
            "face_share",
            "face_share",
            ">=",
            d.min_face_share,
            "the face fills {value:.0%} of the shorter side, {limit:.0%} needed",
        ),
        Rule(
            "speech",
            "speech_frac",
            ">=",
            d.min_speech,
            "{value:.0%} of the sound is speech, {limit:.0%} needed",
            "there is no sound",
        ),
        Rule("silence", "lufs", ">=", d.min_lufs, "loudness {value:.0f} LUFS, {limit:.0f} needed", None, unit="LUFS"),
        Rule("clipping", "clip_frac", "<=", d.max_clipped, "{value:.1%} of the sound is clipped, {limit:.1%} allowed"),
        Rule(
            "voices",
            "second_voice",
            "<=",
            d.max_second_voice,
            "a second voice or music in {value:.0%} of the speech, {limit:.0%} allowed",
        ),
        Rule(
            "text_area",
            "text_area",
            "<=",
            d.max_text_area,
            "text covers {value:.1%} of the picture, {limit:.1%} allowed",
        ),
        Rule(
            "sharpness",
            "sharpness",
            ">=",
            d.min_sharpness,
            "sharpness {value:.2f}, {limit:.2f} needed: the face is blurred",
        ),
        Rule("dark", "exposure", ">=", d.min_exposure, "mean light {value:.2f}, {limit:.2f} needed: too dark"),
        Rule("bright", "exposure", "<=", d.max_exposure, "mean light {value:.2f}, {limit:.2f} allowed: too bright"),
        Rule("still", "motion", ">=", d.min_motion, "motion {value:.2f}, {limit:.2f} needed"),
        Rule("motion", "motion", "<=", d.max_motion, "motion {value:.1f}, {limit:.1f} allowed"),
        Rule("shake", "shake", "<=", d.max_shake, "the camera shakes by {value:.1%} of the width, {limit:.1%} allowed"),
        Rule(
            "frozen",
            "freeze_frac",
            "<=",
            d.max_freeze,
            "{value:.0%} of the clip is frozen or black, {limit:.0%} allowed",
        ),
        Rule("blocks", "blockiness", "<=", d.max_blockiness, "blockiness {value:.1f}, {limit:.1f} allowed"),
        Rule("aesthetic", "aesthetic", ">=", d.min_aesthetic, "aesthetic score {value:.1f}, {limit:.1f} needed"),
        Rule(
            "fps",
            "fps",
            ">=",
            d.min_fps,
            "{value:.1f} frames a second in the source, {limit:.0f} needed",
            None,
            unit="fps",
        ),
        Rule(
            "resolution",
            "used_side",
            ">=",
            d.min_height,
            "the shorter side is {value:.0f} px after the crop, {limit:.0f} needed",
        ),
        Rule(
            "sync_conf",
            "sync_c",
            ">=",
            d.sync_min_conf,
            "sync confidence {value:.1f}, {limit:.1f} needed",
            sync=True,
        ),
        Rule(
            "sync_fit",
            "sync_fit_conf",
            ">=",
            d.sync_min_fit_conf,
            "confidence of the fitted sync {value:.2f} (1 is its own threshold), {limit:.2f} needed",
            sync=True,
        ),
        Rule(
            "sync_offset",
            "av_offset_frames",
            "abs<=",
            d.sync_max_offset,
            "sound and lips are {value:+.0f} frames apart, {limit:.0f} can be corrected",
            sync=True,
        ),
        Rule(
            "sync_residual",
            "residual_offset",
            "abs<=",
            d.sync_max_residual,
            "{value:+.0f} frames remain after correction, {limit:.0f} allowed",
            sync=True,
        ),
        Rule(
            "sync_unstable",
            "sync_frames_left",
            ">=",
            float("inf"),
            "only {value:.0f} frames are left after correction, too few to measure what remains of the offset",
            sync=True,
        ),
        Rule(
            "sync_unmeasured",
            "sync_unmeasured",
            "abs<=",
            float("-inf"),
            "what remains of an offset of {value:+.0f} frames was never measured; run `curate` again, which measures sync "
            "again and repeats no other score",
            outcome="hold",
            sync=True,
        ),
        Rule("sync_missing", "sync_any", ">=", float("-inf"), "", sync_null, "hold"),
    ]
