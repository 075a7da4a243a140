"""What is said of a catalog: ``run.json``, the report, and a summary for people. Loads no network library."""

from __future__ import annotations

import json
import platform
from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from configs import schema, strict
from curation.catalog import VERDICTS
from curation.report import render
from pipeline import store
from pipeline.ledger import code_version


@dataclass(frozen=True)
class CurateSummary:
    """What a run of `curate` did and what the catalog holds now."""

    catalog: str
    videos: dict[str, int]  # by verdict
    clips: dict[str, int]
    hours: dict[str, float]  # of clips, by verdict
    analysed_now: int
    seconds: float
    set_aside: list[str] = field(default_factory=list)
    top_reasons: list[tuple[str, int]] = field(default_factory=list)
    report: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.catalog}: {sum(self.videos.values())} videos, {sum(self.clips.values())} clips "
                 f"({self.analysed_now} videos analysed now in {self.seconds:.0f} s)"]  # fmt: skip
        for verdict in VERDICTS:
            if self.videos.get(verdict) or self.clips.get(verdict):
                lines.append(
                    f"  {verdict:<7} {self.videos.get(verdict, 0):>6} videos {self.clips.get(verdict, 0):>6} clips "
                    f"{60 * self.hours.get(verdict, 0.0):8.1f} min"
                )
        lines += [f"  {count:>6} x {reason}" for reason, count in self.top_reasons]
        lines += [f"  set aside: {cause}" for cause in self.set_aside[:20]]
        if self.report:
            lines.append(f"report: {self.report}")
        return "\n".join(lines)

    def __rich__(self) -> str:
        return str(self).replace("[", r"\[")


def publish(out: str, videos: pa.Table, clips: pa.Table, config: Any, facts: dict[str, Any]) -> str:
    """Write ``run.json`` and the report of decided tables; returns where the report is."""
    run = {
        **facts,
        "version": code_version(),
        "config_digest": strict.digest(config.curation, ""),
        "preset": config.preset,
        "config": _redacted(schema.to_mapping(config)),
        "versions": {name: _version(name) for name in ("av", "opencv-python-headless", "rapidocr", "torch", "ray")},
        "python": platform.python_version(),
    }
    store.write_bytes(store.join(out, "run.json"), json.dumps(run, indent=1, ensure_ascii=False).encode())
    report = store.join(out, "report.html")
    store.write_bytes(report, render(videos, clips, config.curation, run).encode())
    return report


def summarise(
    out: str, videos: pa.Table, clips: pa.Table, now: int, seconds: float, set_aside: list[str], report: str | None
) -> CurateSummary:
    """Counts for people."""
    length = pc.divide(pc.subtract(clips["end_s"], clips["start_s"]), 3600.0)
    hours = pa.table({"verdict": clips["verdict"], "h": length}).group_by("verdict").aggregate([("h", "sum")])
    broken = videos.filter(pc.equal(videos["verdict"], "error"))
    reasons = reason_counts(clips["reasons"]) + reason_counts(broken["reasons"])
    return CurateSummary(
        out, count(videos["verdict"]), count(clips["verdict"]),
        dict(zip(hours["verdict"].to_pylist(), hours["h_sum"].to_pylist(), strict=True)),
        now, seconds, set_aside, reasons.most_common(8), report,
    )  # fmt: skip


def reason_counts(column: pa.ChunkedArray) -> Counter[str]:
    """How many rows each rule speaks against; of a reason ``code: sentence`` the code counts."""
    codes = pc.list_element(pc.split_pattern(pc.list_flatten(column), ":", max_splits=1), 0)
    return Counter({code["values"]: code["counts"] for code in pc.value_counts(codes).to_pylist()})


def count(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs."""
    return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}


def _redacted(value: Any) -> Any:
    """The same tree with no credentials in its texts."""
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return store.redact(value) if isinstance(value, str) else value


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
