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
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from configs import strict
from configs.errors import EchoForgeError
from curation import backends, catalog
from curation.analyse import analyse_video
from curation.catalog import CLIPS, VIDEOS
from curation.config import CurationConfig
from curation.decide import decide_clips, decide_videos
from curation.dedup import mark_duplicates
from curation.report import write_report
from curation.sources import Source, expand
from pipeline import engine, store
from pipeline.config import PipelineConfig
from pipeline.ledger import Ledger, Result, Unit, code_version, unit_id
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
        video, clips = analyse_video(
            payload["uri"], self._cfg, backends=self._backends, spans=payload["spans"], **facts
        )
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
    units = [plan_unit(source, pipeline_cfg) for source in found]
    units = list({unit.id: unit for unit in units}.values())
    watcher = None if quiet else Progress("curate", "videos", store.join(out, "status.json"))
    execution = pipeline_cfg.execution
    outcome = engine.run(
        units, functools.partial(CurateWorker, cfg), ledger, execution.curate, execution,
        inline=inline, ray_address=ray_address, retry_failed=retry_failed, watcher=watcher,
    )  # fmt: skip
    videos, clips = collect(ledger, {unit.id for unit in units}, cfg)
    aside = {u: f for u, f in ledger.quarantined().items() if u in {unit.id for unit in units}}
    videos = _with_quarantine(videos, aside, {unit.id: unit for unit in units})
    timings = {"analyse": outcome.amount} if watcher is None else watcher.timings
    facts = {"seconds": timings, "video_seconds": outcome.amount, "sources": len(found)}
    report = publish(out, videos, clips, config, facts)
    causes = [f"{failure.key}: {failure.cause}" for failure in aside.values()]
    return summarise(out, videos, clips, outcome.done, outcome.seconds, causes, report)


def plan_unit(source: Source, cfg: PipelineConfig) -> Unit:
    """One video as a unit. Only its name, size and time (or tag) are looked at; the body is not read."""
    try:
        there = store.entry(source.uri)
        size, tag = there.size, there.tag
    except (OSError, EchoForgeError):
        size, tag = 0, "unreadable"  # the analysis will say why, in a row
    payload = {
        "uri": source.uri, "spans": source.spans, "caption": source.caption, "speaker": source.speaker,
        "licence": source.licence, "source": source.source,
    }  # fmt: skip
    execution = cfg.execution
    return Unit(
        id=unit_id(source.uri, size, tag, strict.digest([list(source.spans), source.caption, source.speaker])),
        payload=payload,
        key=source.uri,
        fingerprint=f"{size}:{tag}",
        cost=float(max(size, 1)),
        budget_s=execution.budget_s + execution.budget_per_mb * size / 1e6,
    )


def collect(ledger: Ledger, wanted: set[str], cfg: CurationConfig) -> tuple[pa.Table, pa.Table]:
    """The decided tables of all finished units: exact order, duplicates marked, verdicts given."""
    videos = _concat(ledger, "videos", wanted, VIDEOS).sort_by([("source_uri", "ascending")])
    clips = _concat(ledger, "clips", wanted, CLIPS).sort_by([("source_uri", "ascending"), ("start_frame", "ascending")])
    return decide(videos, clips, cfg)


def decide(videos: pa.Table, clips: pa.Table, cfg: CurationConfig) -> tuple[pa.Table, pa.Table]:
    """Verdicts of both tables. Decided once before duplicates are marked, so that the copy that stays is a kept one."""
    if clips.num_rows:
        clips = mark_duplicates(decide_clips(clips, cfg), cfg.dedup)
    clips = decide_clips(clips, cfg)
    return decide_videos(videos, clips, cfg), clips


def publish(out: str, videos: pa.Table, clips: pa.Table, config: Any, facts: dict[str, Any]) -> str | None:
    """Write tables, ``run.json`` and the report; returns where the report is (None for a remote catalog)."""
    rows = config.pipeline.execution.rows_per_file
    for name, table in (("videos", videos), ("clips", clips)):
        folder = store.join(out, name)
        written = []
        for number, start in enumerate(range(0, max(table.num_rows, 1), rows)):
            file = f"part-{number:05d}.parquet"
            store.write_table(store.join(folder, file), table.slice(start, rows))
            written.append(file)
        for old in store.listing(folder, ".parquet"):
            if old.name not in written:
                store.remove(old.url)
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
    if store.is_remote(out):
        return None
    return str(write_report(out, Path(store.local(out)) / "report.html", config.curation))


def summarise(
    out: str, videos: pa.Table, clips: pa.Table, now: int, seconds: float, set_aside: list[str], report: str | None
) -> CurateSummary:
    """Counts for people."""
    verdicts = clips["verdict"].to_pylist()
    hours: Counter[str] = Counter()
    for verdict, start, end in zip(verdicts, clips["start_s"].to_pylist(), clips["end_s"].to_pylist(), strict=True):
        hours[verdict] += (end - start) / 3600  # type: ignore[assignment]
    reasons = Counter(
        str(reason).split(":", maxsplit=1)[0]
        for table in (clips, videos.filter(pc.equal(videos["verdict"], "error")))
        for row in table["reasons"].to_pylist()
        for reason in row or []
    )
    return CurateSummary(
        out, dict(Counter(videos["verdict"].to_pylist())), dict(Counter(verdicts)), dict(hours), now, seconds,
        set_aside, reasons.most_common(8), report,
    )  # fmt: skip


def _concat(ledger: Ledger, name: str, wanted: set[str], schema: pa.Schema) -> pa.Table:
    parts = [part.select(schema.names).cast(schema) for part in ledger.read(name, wanted=wanted)]
    return pa.concat_tables(parts).combine_chunks() if parts else schema.empty_table()


def _with_quarantine(videos: pa.Table, aside: dict[str, Any], units: dict[str, Unit]) -> pa.Table:
    """A row for every file that was given up: nothing disappears."""
    rows = [
        {
            "source_uri": units[unit].key,
            "verdict": "error",
            "error_stage": "quarantine",
            "error": failure.cause,
            "reasons": [f"quarantine: {failure.cause}"],
        }
        for unit, failure in aside.items()
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
