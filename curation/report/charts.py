"""Charts of the report: a histogram with threshold lines, and what another threshold would keep."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from curation.decision.decide import fails, value
from curation.decision.reasons import reason
from curation.decision.rules import Rule

_BINS = 32
_W, _H, _BASE = 320, 92, 74
_STEPS = (0.5, 0.75, 0.9, 1.1, 1.25, 1.5)


@dataclass(frozen=True)
class WhatIf:
    """Rows of one rule: (other limit, change in clips, change in hours, both as text)."""

    name: str
    now: str
    rows: list[dict[str, str]]


def histogram(values: np.ndarray, lines: list[tuple[float, str]]) -> Markup:
    """Inline SVG of a score; the rejected side of each threshold is coloured."""
    low, high = (float(v) for v in np.quantile(values, [0.005, 0.995]))
    marks = [m for m, _ in lines]
    low, high = min(low, *marks), max(high, *marks)
    pad = 0.04 * (high - low) or 0.5
    low, high = low - pad, high + pad
    counts, edges = np.histogram(np.clip(values, low, high), _BINS, (low, high))
    failing = np.zeros(len(values), bool)
    for limit, op in lines:
        failing |= values < limit if op == ">=" else np.abs(values) > limit if op == "abs<=" else values > limit
    bad = 2 * np.histogram(np.clip(values[failing], low, high), _BINS, (low, high))[0] > counts
    step, tallest = _W / _BINS, max(1, int(counts.max()))
    bars = "".join(
        f'<rect x="{i * step + 1:.1f}" y="{_BASE - 66 * c / tallest:.1f}" width="{step - 2:.1f}" '
        f'height="{66 * c / tallest:.1f}" rx="1.5" class="{"out" if b else "in"}"><title>{edges[i]:.3g} – '
        f"{edges[i + 1]:.3g}: {c} clips</title></rect>"
        for i, (c, b) in enumerate(zip(counts.tolist(), bad.tolist(), strict=True))
        if c
    )
    rules = ""
    for limit, op in lines:
        for mark in (limit, -limit) if op == "abs<=" else (limit,):
            if low <= mark <= high:
                x = (mark - low) / (high - low) * _W
                rules += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{_BASE}" class="limit"/>'
                left = x > _W - 44
                anchor = "end" if left else "start"
                at = x - 3 if left else x + 3
                rules += f'<text x="{at:.1f}" y="9" class="mark" text-anchor="{anchor}">{mark:g}</text>'
    ends = (
        f'<text x="0" y="{_H - 5}" class="tick">{low + pad:.3g}</text>'
        f'<text x="{_W}" y="{_H - 5}" class="tick" text-anchor="end">{high - pad:.3g}</text>'
    )
    axis = f'<line x1="0" x2="{_W}" y1="{_BASE}" y2="{_BASE}" class="axis"/>'
    return Markup(f'<svg viewBox="0 0 {_W} {_H}" role="img">{bars}{axis}{rules}{ends}</svg>')


def what_if(rule: Rule, clips: pa.Table, only: np.ndarray, keep: np.ndarray, hours: np.ndarray) -> WhatIf:
    """Clips and hours won or lost with other limits of one rule, all other rules as they are.

    ``only``: the clips that this rule alone rejects (:func:`only_this`).
    """
    none = np.zeros(clips.num_rows, bool)
    values, valid = value(clips, rule.column, none)
    now = np.zeros(clips.num_rows, bool)
    now[fails(rule, values, valid)] = True
    rows: list[dict[str, str]] = []
    for limit in _others(rule):
        then = np.zeros(clips.num_rows, bool)
        then[fails(replace(rule, limit=limit), values, valid)] = True
        lost, won = keep & then, only & now & ~then
        if lost.any() or won.any():
            change, clips_change = float(hours[won].sum() - hours[lost].sum()), int(won.sum()) - int(lost.sum())
            rows.append({"limit": f"{limit:g}", "clips": f"{clips_change:+,}", "hours": _signed(change),
                         "kind": "keep" if change > 0 else "reject"})  # fmt: skip
    return WhatIf(rule.column.replace("_", " "), f"{rule.limit:g}", rows)


def _others(rule: Rule) -> list[float]:
    """Limits worth asking about: whole numbers where the rule counts in them, never a share above 1."""
    hundredths = ".2f" in rule.sentence
    if float(rule.limit).is_integer() and abs(rule.limit) >= 1 and not hundredths:
        near = sorted({round(rule.limit * f) for f in _STEPS} | {rule.limit - 1, rule.limit + 1})
        return [float(v) for v in near if v != rule.limit and (v >= 0 or rule.limit < 0)]
    values = [float(f"{rule.limit * f:.3g}") for f in _STEPS] if rule.limit else []
    return [v for v in values if not ("%" in rule.sentence and v > 1)]


def failed_rules(clips: pa.Table) -> dict[str, np.ndarray]:
    """Code of a rule → bool [clips]: which clips name it among their reasons."""
    column = clips["reasons"].combine_chunks()
    parents = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    codes = pc.list_element(pc.split_pattern(pc.list_flatten(column), ":", max_splits=1), 0).dictionary_encode()
    indices = codes.indices.to_numpy(zero_copy_only=False)
    failed = {}
    for number, code in enumerate(codes.dictionary.to_pylist()):
        failed[code] = np.zeros(clips.num_rows, bool)
        failed[code][parents[indices == number]] = True
    return failed


def only_this(code: str, failed: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Clips that one rule alone rejects (reasons that only hold a clip aside)."""
    alone = failed.get(code, np.zeros(count, bool)).copy()
    for name, rows in failed.items():
        if name != code and not reason(name).holds:
            alone &= ~rows
    return alone


def _signed(hours: float) -> str:
    size = abs(hours)
    text = f"{size:,.1f} h" if size >= 1 else f"{size * 60:.1f} min" if size * 60 >= 1 else f"{size * 3600:.0f} s"
    return ("+" if hours >= 0 else "−") + text
