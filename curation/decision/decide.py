"""Scores and thresholds → verdict, reasons, tier and the correction of the sound. Pure and vectorised.

Operators only measure; every threshold is applied here, so a new one costs no decoding.

Precedence: error (kept from analysis) > reject > hold > keep. A reason is ``code: sentence``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.config import CurationConfig, TextKind
from curation.decision.rules import Rule, rules
from curation.schema import SAMPLES_PER_FRAME

_FLAG_KINDS = {
    "subtitle": "a subtitle",
    "ticker": "a ticker",
    "watermark": "a watermark",
    "logo": "a logo",
    "scene": "text",
}
_BEST = ("keep", "hold", "reject", "error")
TIERS = ("strict", "standard")
DECIDED = ("verdict", "reasons", "tier", "offset_samples")
"""Columns of the clips table that :func:`decide_clips` writes, whatever they held before."""
_SLICE = 100_000
"""Rows decided at a time: sentences are Python strings on their way, which are large."""


@dataclass(frozen=True)
class RuleResult:
    """One rule for one clip, for ``catalog explain``."""

    code: str
    column: str
    value: float | str | None
    op: str
    limit: float | str | None
    passed: bool
    outcome: str  # what a failure means: reject | hold
    sentence: str  # empty when passed


def decide_clips(table: pa.Table, cfg: CurationConfig) -> pa.Table:
    """The clips table with its decided columns (:data:`DECIDED`) replaced; all other columns as they are."""
    slices = [table.slice(start, _SLICE) for start in range(0, max(table.num_rows, 1), _SLICE)]
    return pa.concat_tables([_decide_slice(part, cfg) for part in slices])


def _decide_slice(table: pa.Table, cfg: CurationConfig) -> pa.Table:
    rows = table.num_rows
    failed = np.zeros(rows, bool)
    held = np.zeros(rows, bool)
    uncorrected = np.zeros(rows, bool)
    reasons: list[tuple[np.ndarray, np.ndarray]] = []  # row numbers, sentences
    for rule, _, _, bad, sentences in _judged(table, cfg):
        (held if rule.outcome == "hold" else failed)[bad] = True
        if rule.sync:
            uncorrected[bad] = True
        reasons.append((bad, sentences))
    for bad, sentences in _text_reasons(table, cfg):
        failed[bad] = True
        reasons.append((bad, sentences))
    if cfg.dedup.enabled:
        copy = np.flatnonzero(pc.is_valid(table["duplicate_of"]).to_numpy(zero_copy_only=False))
        failed[copy] = True
        ids = table["duplicate_of"].take(pa.array(copy)).to_numpy(zero_copy_only=False) if len(copy) else []
        reasons.append((copy, np.array([f"duplicate: a copy of {i}" for i in ids], dtype=object)))
    error = _strings(table["verdict"]) == "error"
    verdict = np.where(failed, "reject", np.where(held, "hold", "keep")).astype(object)
    verdict[error] = "error"
    old = table["reasons"].combine_chunks().filter(pa.array(error)).to_pylist() if error.any() else []
    lists = _lists(rows, reasons, dict(zip(np.flatnonzero(error).tolist(), old, strict=True)))
    decided = {
        "verdict": pa.array(verdict, pa.string()),
        "reasons": lists,
        "tier": _tiers(table, verdict, cfg),
        "offset_samples": _corrections(table, uncorrected),
    }
    return _with(table, decided)


def decide_videos(videos: pa.Table, clips: pa.Table, cfg: CurationConfig) -> pa.Table:
    """The videos table with verdict and reasons replaced: the best verdict of its clips; errors stay errors.

    ``clips`` has been decided already. A video without clips is rejected, with the reasons found at analysis if any.
    """
    count = videos.num_rows
    owner = pc.fill_null(pc.index_in(_keys(clips), value_set=_keys(videos)), -1).to_numpy(zero_copy_only=False)
    rank = pc.index_in(clips["verdict"], value_set=pa.array(_BEST)).to_numpy(zero_copy_only=False)
    best = np.full(count, len(_BEST))
    np.minimum.at(best, owner[owner >= 0], rank[owner >= 0])
    without, best[best == len(_BEST)] = best == len(_BEST), _BEST.index("reject")
    error = _strings(videos["verdict"]) == "error"
    telling = (owner >= 0) & (rank == best[owner]) & (rank > 0) & ~error[owner]
    fixed = {int(row): old or [_no_clip(cfg)] for row, old in _some(videos["reasons"], without & ~error)}
    fixed |= {int(row): old or [] for row, old in _some(videos["reasons"], error)}
    reasons = _lists(count, _distinct(clips["reasons"], owner, telling), fixed)
    verdict = np.where(error, "error", np.array(_BEST, dtype=object)[best])
    return _with(videos, {"verdict": pa.array(verdict, pa.string()), "reasons": reasons})


def _some(column: pa.ChunkedArray, wanted: np.ndarray) -> list[tuple[int, Any]]:
    at = np.flatnonzero(wanted)
    return list(zip(at.tolist(), column.take(pa.array(at)).to_pylist(), strict=True))


def _distinct(reasons: pa.ChunkedArray, owner: np.ndarray, wanted: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Reasons of the wanted clips by owner, each once for an owner, in the order of the clips."""
    column = reasons.combine_chunks()
    of = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    chosen = np.flatnonzero(wanted[of])
    texts = pc.list_flatten(column).take(pa.array(chosen)).dictionary_encode()
    codes = texts.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    rows = owner[of[chosen]].astype(np.int64)
    _, first = np.unique(rows * (len(texts.dictionary) + 1) + codes, return_index=True)
    first.sort()
    return [(rows[first], texts.dictionary.take(pa.array(codes[first])).to_numpy(zero_copy_only=False))]


def explain(one: pa.Table, cfg: CurationConfig) -> list[RuleResult]:
    """Every rule for a clips table of one row: the score, the threshold, and whether it passed."""
    results = []
    for rule, values, valid, bad, sentences in _judged(one, cfg):
        score = float(values[0]) if valid[0] else None
        limit = None if np.isinf(rule.limit) else rule.limit
        results.append(
            RuleResult(
                rule.code,
                rule.column,
                score,
                rule.op,
                limit,
                not len(bad),
                rule.outcome,
                str(sentences[0]) if len(bad) else "",
            )
        )
    found = {str(s[0]).split(":")[0]: str(s[0]) for bad, s in _text_reasons(one, cfg) if len(bad)}
    boxes = one["text_boxes"][0].as_py()
    for kind, action in cfg.decide.text.items():
        best = None if boxes is None else max((float(b["score"]) for b in boxes if b["kind"] == kind), default=0.0)
        results.append(
            RuleResult(kind, "text_boxes", best, "action", action, kind not in found, "reject", found.get(kind, ""))
        )
    if cfg.dedup.enabled:
        copy = one["duplicate_of"][0].as_py()
        results.append(
            RuleResult(
                "duplicate",
                "duplicate_of",
                copy,
                "is",
                None,
                not copy,
                "reject",
                f"duplicate: a copy of {copy}" if copy else "",
            )
        )
    return results


def _judged(
    table: pa.Table, cfg: CurationConfig
) -> Iterator[tuple[Rule, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Every rule with its values, their validity, the rows that fail and their sentences."""
    crops = _crops_used(table, cfg)
    uncorrected = np.zeros(table.num_rows, bool)
    for rule in rules(cfg):
        values, valid = value(table, rule.column, crops)
        if rule.column == "sync_unmeasured":  # asked only where a correction depends on it
            valid = valid & ~uncorrected
        bad, sentences = judge(rule, values, valid)
        if rule.sync:
            uncorrected[bad] = True
        yield rule, values, valid, bad, sentences


def fails(rule: Rule, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Numbers of the rows whose measured value breaks a rule."""
    with np.errstate(invalid="ignore"):
        measured = np.abs(values) if rule.op == "abs<=" else values
        bad = (measured < rule.limit) if rule.op == ">=" else (measured > rule.limit)
    return np.flatnonzero(bad & valid)


def judge(rule: Rule, values: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that fail, and their sentences."""
    bad = fails(rule, values, valid)
    form = f"{rule.code}: {rule.sentence}"
    sentences = [form.format(value=v, limit=rule.limit) for v in values[bad].tolist()]
    if rule.null is not None and not valid.all():
        missing = np.flatnonzero(~valid)
        bad = np.concatenate([bad, missing])
        sentences += [f"{rule.code}: {rule.null}"] * len(missing)
    return bad, np.array(sentences, dtype=object)


def value(table: pa.Table, column: str, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 values and bool validity of a column or a derived quantity."""
    if column == "sync_any":
        (c, c_ok), (f, f_ok) = value(table, "sync_c", crops), value(table, "sync_fit_conf", crops)
        return np.where(c_ok, c, f), c_ok | f_ok
    if column == "face_share":
        (face, ok), (w, wok), (h, hok) = (value(table, n, crops) for n in ("face_px", "width", "height"))
        return face / np.maximum(np.minimum(w, h), 1), ok & wok & hok
    if column == "used_side":
        sides = []
        for whole, part in (("width", "w"), ("height", "h")):
            full, ok = value(table, whole, crops)
            boxed, has_box = _field(table, "letterbox", part)
            cut, has_cut = _field(table, "crop", part)
            used = np.where(has_box, boxed, full)
            sides.append(np.where(has_cut & crops, np.minimum(cut, used), used))
        return np.minimum(*sides), ok
    if column in _WITHOUT_RESIDUAL:
        return _without_residual(table, column)
    array = table[column]
    valid = pc.is_valid(array).to_numpy(zero_copy_only=False)
    values = pc.fill_null(pc.cast(array, pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    return values, valid & np.isfinite(values)


_WITHOUT_RESIDUAL = ("sync_frames_left", "sync_unmeasured")


def _without_residual(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Why nothing is known of the offset that a correction leaves: values, and the rows of which this is true.

    ``sync_frames_left``: the correction leaves so few frames that the remainder cannot be measured.
    ``sync_unmeasured``: the offset whose remainder nobody measured. Earlier versions measured it only where the
    thresholds of their day asked for a correction.
    """
    none = np.zeros(table.num_rows, bool)
    (offset, scored), (_, measured), (frames, tried) = (
        value(table, name, none) for name in ("av_offset_frames", "residual_offset", "residual_frames")
    )
    unknown = scored & ~measured & (offset != 0)
    if column == "sync_frames_left":
        return frames, unknown & tried
    return offset, unknown & ~tried


def _field(table: pa.Table, column: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    array = pc.struct_field(table[column], name)
    return (
        pc.fill_null(pc.cast(array, pa.float64()), 0.0).to_numpy(zero_copy_only=False),
        pc.is_valid(array).to_numpy(zero_copy_only=False),
    )


def _text_rows(table: pa.Table, cfg: CurationConfig) -> dict[TextKind, np.ndarray]:
    """Kind → rows that hold a sure text of that kind."""
    column = table["text_boxes"].combine_chunks()
    parents = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    boxes = pc.list_flatten(column)
    kinds = pc.struct_field(boxes, "kind").to_numpy(zero_copy_only=False)
    sure = (
        pc.fill_null(pc.struct_field(boxes, "score"), 0.0).to_numpy(zero_copy_only=False) >= cfg.decide.text_min_score
    )
    return {kind: np.unique(parents[(kinds == kind) & sure]) for kind in cfg.decide.text}


def _text_reasons(table: pa.Table, cfg: CurationConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    has_crop = pc.is_valid(table["crop"]).to_numpy(zero_copy_only=False)
    result = []
    for kind, rows in _text_rows(table, cfg).items():
        action = cfg.decide.text[kind]
        bad = rows if action == "reject" else rows[~has_crop[rows]] if action == "crop" else rows[:0]
        tail = "" if action == "reject" else ", and no crop removes it and keeps the face"
        result.append((bad, np.array([f"{kind}: {_FLAG_KINDS[kind]} is burned in{tail}"] * len(bad), dtype=object)))
    return result


def _crops_used(table: pa.Table, cfg: CurationConfig) -> np.ndarray:
    """Rows whose proposed crop would be applied: some text of a kind whose action is ``crop``."""
    used = np.zeros(table.num_rows, bool)
    for kind, rows in _text_rows(table, cfg).items():
        used[rows] |= cfg.decide.text[kind] == "crop"
    return used


def _corrections(table: pa.Table, uncorrected: np.ndarray) -> pa.Array:
    """Samples that the sound is delayed by: the measured offset where every sync rule passes, else 0; null unscored."""
    offset, scored = value(table, "av_offset_frames", np.zeros(table.num_rows, bool))
    samples = np.where(uncorrected, 0, offset * SAMPLES_PER_FRAME).astype(np.int32)
    return pa.array(samples, pa.int32(), mask=~scored)


def _tiers(table: pa.Table, verdict: np.ndarray, cfg: CurationConfig) -> pa.Array:
    """``strict`` where SyncNet is sure and nearly nothing was corrected, ``standard`` otherwise; null if not kept."""
    conf, ok = value(table, "sync_c", np.zeros(table.num_rows, bool))
    offset, measured = value(table, "av_offset_frames", np.zeros(table.num_rows, bool))
    d = cfg.decide
    strict = ok & measured & (conf >= d.sync_strict_conf) & (np.abs(offset) <= d.sync_strict_offset)
    return pa.array(np.where(strict, *TIERS).astype(object), pa.string(), mask=verdict != "keep")


def _lists(rows: int, reasons: list[tuple[np.ndarray, np.ndarray]], fixed: dict[int, list[str] | None]) -> pa.Array:
    """One list of sentences a row, in the order of the rules; rows in ``fixed`` keep theirs."""
    at = np.concatenate([b for b, _ in reasons] or [np.zeros(0, int)]).astype(np.int64)
    text = np.concatenate([s for _, s in reasons] or [np.zeros(0, object)])
    if fixed:
        keep = ~np.isin(at, list(fixed))
        at, text = at[keep], text[keep]
        extra = [(row, sentence) for row, old in fixed.items() for sentence in old or []]
        at = np.concatenate([at, np.array([r for r, _ in extra], np.int64)])
        text = np.concatenate([text, np.array([s for _, s in extra], dtype=object)])
    order = np.argsort(at, kind="stable")
    offsets = np.searchsorted(at[order], np.arange(rows + 1))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(text[order], pa.string()))


def _keys(table: pa.Table) -> pa.ChunkedArray:
    """One text per video as it was given: content and name."""
    return pc.binary_join_element_wise(pc.fill_null(table["video_id"], ""), pc.fill_null(table["source_uri"], ""), "\n")


def _no_clip(cfg: CurationConfig) -> str:
    seconds = cfg.clips.min_frames / 25
    return f"too_short: no stretch of {seconds:.1f} s without a cut"


def _strings(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(column, "").to_numpy(zero_copy_only=False))


def _with(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    return table
