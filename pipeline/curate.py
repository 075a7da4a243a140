"""Sources → a catalog: plan units by listing, analyse them through the engine, then decide over the whole corpus.

Layout of ``out``: ``ledger/curate`` (the record of work, one part file per commit), ``videos/*.parquet``,
``clips/*.parquet``, ``run.json``, ``report.html``, ``status.json``. Everything but the ledger is made anew from it at
the end of every run, so a new threshold costs no decoding.
"""

from __future__ import annotations

import functools
import json
import platform
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from configs import strict
from configs.errors import EchoForgeError
from curation import backends, catalog
from curation.analyse import analyse_video
from curation.catalog import CLIPS, VIDEOS
from curation.config import CurationConfig
from curation.report import render
from curation.sources import Source, expand
from pipeline import engine, store, tables
from pipeline.config import PipelineConfig
from pipeline.ledger import Failure, Ledger, Result, Unit, code_version, unit_id
from pipeline.progress import Progress

TABLES = {"videos": VIDEOS, "clips": CLIPS}
VERDICTS = catalog.VERDICTS


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


class CurateWorker:
    """Analyses videos. Built once per process: the networks load once."""

    def __init__(self, cfg: CurationConfig) -> None:
        self._cfg = cfg
        self._backends = backends.load(cfg)

    def run(self, payload: dict[str, Any]) -> Result:
        """``payload``: ``uri`` and what a manifest says of it."""
        started = time.process_time()
        facts = {key: payload[key] for key in ("caption", "speaker", "licence", "source")}
        with store.local_copy(payload["uri"]) as path:  # one download instead of a range request per packet
            video, clips = analyse_video(str(path), self._cfg, backends=self._backends, spans=payload["spans"], **facts)
        for row in (video, *clips):
            row["source_uri"] = store.redact(payload["uri"])
        seconds = float(video.get("duration_s") or 0.0)
        return Result({"videos": [video], "clips": clips}, seconds, {"analyse": time.process_time() - started})


def curate(
    sources: list[str],
    out: str,
    config: Any,
    *,
    inline: bool = False,
    ray_address: str | None = None,
    limit: int | None = None,
    retry_failed: bool = False,
    quiet: bool = False,
) -> CurateSummary:
    """Bring the catalog at ``out`` up to date with ``sources``.

    Args:
        config: with ``curation`` and ``pipeline`` sections.
        inline: everything in this process.
        limit: only the first so many sources.
        retry_failed: try the files set aside again.

    Raises:
        EchoForgeError: no such source, or the run as a whole cannot go on.
        MissingWeights: a configured file is not here.
    """
    out = out.rstrip("/")
    cfg: CurationConfig = config.curation
    pipeline_cfg: PipelineConfig = config.pipeline
    backends.check_files(cfg)
    found = expand(sources, cfg)[:limit]
    ledger = Ledger(store.join(out, "ledger", "curate"), TABLES, backends.parameters(cfg))
    _tell_changes(out, ledger, quiet)
    units = plan(found, pipeline_cfg)
    watcher = None if quiet else Progress("curate", "videos", store.join(out, "status.json"))
    execution = pipeline_cfg.execution
    outcome = engine.run(
        units, functools.partial(CurateWorker, cfg), ledger, execution.curate, execution,
        inline=inline, ray_address=ray_address, retry_failed=retry_failed, watcher=watcher,
    )  # fmt: skip
    wanted, aside = current(ledger, units)
    timings = watcher.timings if watcher else {}
    facts = {"seconds": timings, "video_seconds": outcome.amount, "sources": len(found)}
    videos = _with_quarantine(_concat(ledger, "videos", wanted, VIDEOS), aside)

    def read_clips(columns: list[str]) -> Iterator[pa.Table]:
        return ledger.read("clips", wanted, columns)

    videos = videos.sort_by([("source_uri", "ascending")])
    videos, clips = tables.write(out, videos, read_clips, cfg, execution.rows_per_file)
    report = publish(out, videos, clips, config, facts)
    causes = [f"{store.redact(failure.key)}: {failure.cause}" for failure in aside]
    return summarise(out, videos, clips, outcome.done, outcome.seconds, causes, report)


def plan(sources: list[Source], cfg: PipelineConfig) -> list[Unit]:
    """One unit per video. Only name, size and time (or tag) are looked at; no body is read.

    Object stores are asked once per folder, not once per file.
    """
    listed: dict[str, dict[str, store.Entry]] = {}
    units: dict[str, Unit] = {}
    for source in sources:
        there = None
        if store.is_remote(source.uri):
            folder = source.uri.rpartition("/")[0]
            if folder not in listed:
                listed[folder] = {entry.name: entry for entry in store.listing(folder)}
            there = listed[folder].get(store.name_of(source.uri))
        unit = plan_unit(source, cfg, there)
        units[unit.id] = unit
    return list(units.values())


def plan_unit(source: Source, cfg: PipelineConfig, there: store.Entry | None = None) -> Unit:
    """One video as a unit; ``there`` is its entry in a listing, if one was made."""
    try:
        there = there or store.entry(source.uri)
        size, tag = there.size, there.tag
    except (OSError, EchoForgeError):
        size, tag = 0, "unreadable"  # the analysis will say why, in a row
    payload = {
        "uri": source.uri, "spans": source.spans, "caption": source.caption, "speaker": source.speaker,
        "licence": source.licence, "source": source.source,
    }  # fmt: skip
    execution = cfg.execution
    said = (*source.spans, source.caption, source.speaker, source.licence, source.source)
    return Unit(
        id=unit_id(source.uri, size, tag, repr(said)),
        payload=payload,
        key=source.uri,
        fingerprint=f"{size}:{tag}",
        cost=float(max(size, 1)),
        budget_s=execution.budget_s + execution.budget_per_mb * size / 1e6,
    )


def current(ledger: Ledger, units: list[Unit]) -> tuple[set[str], list[Failure]]:
    """The units that the catalog shows: those planned now, and for every other source its latest.

    So a catalog grows with every folder given to it, and shows a file that changed once, as it is now.

    Returns:
        ids of finished units, and the units in quarantine.
    """
    planned, keys = {unit.id for unit in units}, {unit.key for unit in units}
    records = ledger.records().select(["unit", "key", "finished"])
    latest: dict[str, tuple[float, str]] = {}
    wanted = set()
    for unit, key, when in zip(*(records[name].to_pylist() for name in records.schema.names), strict=True):
        if unit in planned:
            wanted.add(unit)
        elif key not in keys:
            latest[key] = max(latest.get(key, (0.0, "")), (when, unit))
    wanted |= {unit for _, unit in latest.values()}
    aside = [
        failure
        for unit, failure in ledger.quarantined().items()
        if unit not in wanted and (unit in planned or (failure.key not in keys and failure.key not in latest))
    ]
    return wanted, aside


def publish(out: str, videos: pa.Table, clips: pa.Table, config: Any, facts: dict[str, Any]) -> str:
    """Write ``run.json`` and the report of decided tables; returns where the report is."""
    snapshot = {name: strict.to_dict(getattr(config, name)) for name in ("curation", "pipeline")}
    run = {
        **facts,
        "version": code_version(),
        "config_digest": strict.digest(snapshot["curation"]),
        "preset": config.preset,
        "config": _redacted(snapshot),
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
    reasons: Counter[str] = Counter()
    for table in (clips, broken):
        codes = pc.list_element(pc.split_pattern(pc.list_flatten(table["reasons"]), ":", max_splits=1), 0)
        reasons.update({code["values"]: code["counts"] for code in pc.value_counts(codes).to_pylist()})
    return CurateSummary(
        out, count(videos["verdict"]), count(clips["verdict"]),
        dict(zip(hours["verdict"].to_pylist(), hours["h_sum"].to_pylist(), strict=True)),
        now, seconds, set_aside, reasons.most_common(8), report,
    )  # fmt: skip


def count(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs."""
    return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}


def _concat(ledger: Ledger, name: str, wanted: set[str], schema: pa.Schema) -> pa.Table:
    parts = [part.select(schema.names).cast(schema) for part in ledger.read(name, wanted=wanted)]
    return pa.concat_tables(parts).combine_chunks() if parts else schema.empty_table()


def _with_quarantine(videos: pa.Table, aside: list[Failure]) -> pa.Table:
    """A row for every file that was given up: nothing disappears."""
    rows = [
        {
            "source_uri": store.redact(failure.key),
            "verdict": "error",
            "error_stage": "quarantine",
            "error": failure.cause,
            "reasons": [f"quarantine: {failure.cause}"],
        }
        for failure in aside
    ]
    return pa.concat_tables([videos, catalog.table(rows, VIDEOS)]) if rows else videos


def _tell_changes(out: str, ledger: Ledger, quiet: bool) -> None:
    """Say before starting what a changed parameter costs."""
    url = store.join(out, "ledger", "curate", "latest.json")
    before = json.loads(store.read_bytes(url)) if store.exists(url) else None
    if before is not None and (changed := ledger.changed_parameters(before)) and not quiet:
        from pipeline.progress import plain_console

        plain_console().print(
            f"changed since the last run: {', '.join(changed)}; the videos are analysed again with the new parameters."
        )
    store.write_bytes(url, json.dumps(dict(ledger.parameters)).encode())


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
