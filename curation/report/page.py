"""report.html: one self-contained page that says what was kept, what was lost and why, and what a threshold costs.

No script libraries, no fonts, no requests: bars and histograms are inline SVG, thumbnails are inlined JPEGs.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from pathlib import Path

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from configs.errors import EchoForgeError
from curation.config import CurationConfig
from curation.decision.reasons import reason
from curation.decision.rules import rules
from curation.report.charts import WhatIf, failed_rules, histogram, only_this, what_if
from curation.report.content import (
    Bar,
    Cell,
    Collection,
    Cost,
    Distribution,
    RunFacts,
    Sheet,
    Step,
    Tile,
    Unreadable,
)
from curation.schema import CLIPS, FPS

_SHEET = 6  # borderline clips shown per rule
_SHEETS = 10  # rules shown
_THUMB = 168  # pixels
_SHOWN_ERRORS = 60
_SIGNS = {">=": "≥", "<=": "≤", "abs<=": "± ≤"}
_LABELS = {"keep": "kept", "hold": "on hold", "reject": "rejected", "error": "unreadable"}


def render(videos: pa.Table, clips: pa.Table, cfg: CurationConfig, run: RunFacts) -> str:
    """The report of a catalog as one page.

    The tables' own verdicts are shown; thresholds drawn are those of ``cfg``. Sources that are gone cost thumbnails,
    nothing else.
    """
    broken = videos.filter(pc.equal(videos["verdict"], "error"))
    hours = _hours(clips)
    verdicts = np.asarray(clips["verdict"].to_pylist(), dtype=object)
    codes = failed_rules(clips)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("curation.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.jinja").render(
        tiles=_tiles(videos, verdicts, hours),
        funnel=_funnel(codes, verdicts, hours),
        histograms=_histograms(clips, cfg),
        what_ifs=[w for w in _what_ifs(clips, codes, cfg) if w.rows],
        sheets=_sheets(clips, cfg),
        sources=_sources(videos, clips, verdicts, hours),
        errors=_unreadable(broken.slice(0, _SHOWN_ERRORS)),
        more_errors=max(0, broken.num_rows - _SHOWN_ERRORS),
        throughput=_throughput(run),
        held=_held(clips),
        run=run,
    )


def _hours(clips: pa.Table) -> np.ndarray:
    frames = pc.subtract(clips["end_frame"], clips["start_frame"]).to_numpy(zero_copy_only=False)
    return np.asarray(np.nan_to_num(frames.astype(float)) / FPS / 3600)


def _span(hours: float) -> str:
    """Hours as a person reads them."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"


def _tiles(videos: pa.Table, verdicts: np.ndarray, hours: np.ndarray) -> list[Tile]:
    tiles = [Tile("videos", f"{videos.num_rows:,}", f"{len(verdicts):,} clips", "all")]
    for verdict in ("keep", "hold", "reject"):
        chosen = verdicts == verdict
        share = chosen.mean() if len(chosen) else 0
        note = f"{int(chosen.sum()):,} clips · {share:.0%}"
        tiles.append(Tile(_LABELS[verdict], _span(float(hours[chosen].sum())), note, verdict))
    broken = sum(v == "error" for v in videos["verdict"].to_pylist())
    tiles.append(Tile("unreadable", f"{broken:,}", "videos", "error"))
    return tiles


def _funnel(codes: dict[str, np.ndarray], verdicts: np.ndarray, hours: np.ndarray) -> list[Step]:
    """What is left after each rule, most costly first, those that only hold a clip after those that reject it.

    A clip counts for the first rule in this order that it fails.
    """
    total = float(hours.sum()) or 1.0
    cost = {name: float(hours[rows].sum()) for name, rows in codes.items()}
    alive = np.ones(len(hours), bool)
    steps = [_step("all clips", alive, hours, total, "all", 0, 0.0)]
    for name, _ in sorted(cost.items(), key=lambda item: (reason(item[0]).holds, -item[1])):
        falls = alive & codes[name]
        if falls.any():
            alive &= ~falls
            kind = "hold" if reason(name).holds else "reject"
            steps.append(_step(name, alive, hours, total, kind, int(falls.sum()), float(hours[falls].sum())))
    steps.append(_step("kept", verdicts == "keep", hours, total, "keep", 0, 0.0))
    return steps


def _step(name: str, alive: np.ndarray, hours: np.ndarray, total: float, kind: str, n: int, lost: float) -> Step:
    left = float(hours[alive].sum())
    return Step(
        name=name.replace("_", " "),
        clips=int(alive.sum()),
        hours=_span(left),
        left=100 * left / total,
        lost=100 * lost / total,
        lost_clips=n,
        lost_hours=_span(lost),
        kind=kind,
    )


def _histograms(clips: pa.Table, cfg: CurationConfig) -> list[Distribution]:
    limits: dict[str, list[tuple[float, str]]] = {}
    for rule in rules(cfg):
        if rule.column in CLIPS.names and np.isfinite(rule.limit):
            limits.setdefault(rule.column, []).append((rule.limit, rule.op))
    shown = []
    for column, lines in limits.items():
        values = pc.drop_null(clips[column]).to_numpy().astype(float)
        values = values[np.isfinite(values)]
        if len(values):
            shown.append(Distribution(column.replace("_", " "), histogram(values, lines), len(values)))
    return shown


def _what_ifs(clips: pa.Table, codes: dict[str, np.ndarray], cfg: CurationConfig) -> list[WhatIf]:
    keep = pc.is_in(clips["verdict"], pa.array(["keep", "hold"])).to_numpy(zero_copy_only=False)
    hours, finite = _hours(clips), [rule for rule in rules(cfg) if np.isfinite(rule.limit)]
    return [what_if(rule, clips, only_this(rule.code, codes, len(hours)), keep, hours) for rule in finite]


def _sheets(clips: pa.Table, cfg: CurationConfig) -> list[Sheet]:
    """Per rule the clips nearest to its threshold, on both sides, with a thumbnail where the source can be read."""
    sheets = []
    for rule in rules(cfg):
        if rule.column not in CLIPS.names or not np.isfinite(rule.limit):
            continue
        values = pc.fill_null(pc.cast(clips[rule.column], pa.float64()), np.nan).to_numpy(zero_copy_only=False)
        values = np.abs(values) if rule.op == "abs<=" else values
        bad = values < rule.limit if rule.op == ">=" else values > rule.limit
        if not bad.any():
            continue
        distance = np.where(np.isnan(values), np.inf, np.abs(values - rule.limit))
        order = np.argsort(distance, kind="stable")
        order = order[np.isfinite(distance[order])]
        below = order[bad[order]][: _SHEET // 2].tolist()
        above = order[~bad[order]][: _SHEET - len(below)].tolist()
        sheets.append((int(bad.sum()), rule, below + above, values, bad))
    sheets.sort(key=lambda s: -s[0])
    return [
        Sheet(
            name=rule.code.replace("_", " "),
            limit=f"{rule.column.replace('_', ' ')} {_SIGNS[rule.op]} {rule.limit:g}",
            failed=count,
            cells=[_cell(clips, i, float(values[i]), bool(bad[i])) for i in chosen],
        )
        for count, rule, chosen, values, bad in sheets[:_SHEETS]
    ]


def _cell(clips: pa.Table, row: int, value: float, failed: bool) -> Cell:
    uri = clips["source_uri"][row].as_py()
    start, end = clips["start_frame"][row].as_py(), clips["end_frame"][row].as_py()
    return Cell(
        value=f"{value:.3g}",
        failed=failed,
        name=Path(uri).name,
        id=clips["clip_id"][row].as_py(),
        at=f"{start / FPS:.1f}–{end / FPS:.1f} s",
        image=_thumbnail(uri, start, end, clips["width"][row].as_py(), clips["height"][row].as_py()),
    )


def _thumbnail(uri: str, start: int, end: int, width: int | None, height: int | None) -> str | None:
    """JPEG of one of the frames as a data address; None where the source cannot be read (moved, damaged, offline)."""
    from curation.media.clip_reader import read_still

    if not width or not height:
        return None
    try:
        image = read_still(uri, start, end, width=max(1, round(_THUMB * width / height)), height=_THUMB)
    except (EchoForgeError, OSError, ValueError, IndexError):
        return None
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _sources(videos: pa.Table, clips: pa.Table, verdicts: np.ndarray, hours: np.ndarray) -> list[Collection]:
    names = dict(zip(videos["source_uri"].to_pylist(), videos["source"].to_pylist(), strict=True))
    licences = dict(zip(videos["source"].to_pylist(), videos["licence"].to_pylist(), strict=True))
    count = Counter(videos["source"].to_pylist())
    table: dict[str | None, dict[str, float]] = {name: dict.fromkeys(_LABELS, 0.0) for name in count}
    for uri, verdict, length in zip(clips["source_uri"].to_pylist(), verdicts, hours, strict=True):
        table.setdefault(names.get(uri), dict.fromkeys(_LABELS, 0.0))[verdict or "reject"] += float(length)
    rows = []
    for name, by in table.items():
        total = sum(by.values())
        rows.append(
            Collection(
                name=name or "(unnamed)",
                licence=licences.get(name) or "",
                videos=count[name],
                hours=_span(total),
                parts=[Bar(k, 100 * v / total if total else 0) for k, v in by.items()],
                kept=f"{by['keep'] / total:.0%}" if total else "–",
                total=total,
            )
        )
    return sorted(rows, key=lambda r: -r.total)


def _unreadable(videos: pa.Table) -> list[Unreadable]:
    columns = (videos[name].to_pylist() for name in ("source_uri", "error_stage", "error"))
    return [
        Unreadable(uri.rsplit("/", 1)[-1], stage or "", error or "") for uri, stage, error in zip(*columns, strict=True)
    ]


def _held(clips: pa.Table) -> str | None:
    """Why clips are on hold, in words without the numbers of one of them; None where none is."""
    codes = failed_rules(clips.filter(pc.equal(clips["verdict"], "hold")))
    return "; ".join(dict.fromkeys(reason(code).words for code in codes)) or None


def _throughput(run: RunFacts) -> list[Cost]:
    total = sum(run.seconds.values()) or 1.0
    return [
        Cost(
            name=name,
            share=100 * spent / total,
            rate=f"{spent / run.video_seconds:.3f}" if run.video_seconds else "–",
            spent=f"{spent:,.1f}",
        )
        for name, spent in sorted(run.seconds.items(), key=lambda item: -item[1])
    ]
