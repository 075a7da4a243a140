"""Sources → a catalog: plan units by listing, analyse them through the engine, then decide over the whole corpus.

Layout of ``out``: ``ledger/curate`` (the record of work, one part file per commit), ``videos/*.parquet``,
``clips/*.parquet`` and ``tables.json``, which names them, ``run.json``, ``report.html``, ``status.json``. Everything but
the ledger is made anew from it at the end of every run, so a new threshold costs no decoding.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from configs import folders
from configs.errors import MissingWeights
from configs.paths import absolute_files
from configs.runtime.console import Terminal
from configs.runtime.redaction import redact, redact_address
from curation import schema as catalog
from curation.analysis import registry
from curation.analysis.incremental import analyse_changed
from curation.analysis.stages import outdated, parameters
from curation.analysis.video import Analysis, analyse_video, error_video
from curation.caption_files import Beside
from curation.clip import Clip, Video
from curation.config import CurationConfig
from curation.schema import CLIPS, VIDEOS
from curation.sources.listing import expand
from curation.sources.source import Source
from pipeline import storage
from pipeline.catalog import generation, reuse, tables, writer
from pipeline.catalog.adopt import adopt
from pipeline.catalog.redecide import carried
from pipeline.catalog.run_record import RunRecord
from pipeline.catalog.summary import CurateSummary, describing, summarise
from pipeline.catalog.timing import Stopwatch, timed
from pipeline.catalog.units import CurateJob, ids_at, no_collection, plan
from pipeline.config import PipelineConfig
from pipeline.engine import lease, runner
from pipeline.engine.damage import mend
from pipeline.engine.ledger import Ledger
from pipeline.engine.progress import Progress, say
from pipeline.engine.rows import tables as as_tables
from pipeline.engine.unit import Failure, Result, Unit

TABLES = {"videos": VIDEOS, "clips": CLIPS}
SCORES = ("sync_c", "sync_fit_conf")
"""Columns of the clips table that hold a confidence of sync, by backend."""


class CurateWorker:
    """Analyses videos. Built once per process: the networks load once."""

    def __init__(self, cfg: CurationConfig) -> None:
        self._cfg = cfg
        self._watch = Stopwatch()
        self._backends = timed(registry.load(cfg), self._watch)

    def run(self, payload: CurateJob) -> Result:
        """The rows of one video."""
        self._watch.reset()
        uri = payload.source.uri
        if payload.source.fault:
            video = Video(redact_address(uri), source=payload.source.source)
            video = error_video(video, "manifest", redact(payload.source.fault))
            return Result(as_tables({"videos": [video.to_row()]}, TABLES))
        with storage.local_copy(uri) as path:  # one download instead of a range request per packet
            video, clips = self._analyse(replace(payload.source, uri=str(path)), payload)
        video = replace(video, source_uri=redact_address(uri), source_tag=payload.tag)
        rows = [replace(clip, source_uri=video.source_uri).to_row() for clip in clips]
        made = as_tables({"videos": [video.to_row()], "clips": rows}, TABLES)
        return Result(made, video.duration_s or 0.0, self._watch.read())

    def _analyse(self, source: Source, payload: CurateJob) -> Analysis:
        if payload.earlier:
            unit, where = payload.earlier
            found = reuse.tables(unit, where.part, TABLES)
            if found is not None and found["videos"].num_rows == 1:
                (video,) = map(Video.from_row, found["videos"].to_pylist())
                before = video, tuple(map(Clip.from_row, found["clips"].to_pylist()))
                return analyse_changed(source, self._cfg, backends=self._backends, run=where.run, before=before)
        return analyse_video(source, self._cfg, backends=self._backends)


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
    named: Collection[str] = (),
) -> CurateSummary:
    """Bring the catalog at ``out`` up to date with ``sources``.

    Args:
        config: with ``curation`` and ``pipeline`` sections.
        inline: everything in this process.
        limit: only the first so many sources.
        retry_failed: try the files set aside again.
        named: dotted names of the keys that the caller set by name; they win over what `catalog redecide` set.

    Raises:
        EchoForgeError: no such source, another process changes the catalog, or the run as a whole cannot go on.
        MissingWeights: a configured file is not here.
    """
    out = out.rstrip("/")
    folders.check_out(out, "catalog", inputs=sources)
    with lease.locked(out, "catalog", "curate"):
        return _curate(sources, out, config, inline, ray_address, limit, retry_failed, quiet, named)


def _curate(
    sources: list[str],
    out: str,
    config: Any,
    inline: bool,
    ray_address: str | None,
    limit: int | None,
    retry_failed: bool,
    quiet: bool,
    named: Collection[str],
) -> CurateSummary:
    """:func:`curate` with the catalog locked."""
    given = config
    config = carried(out, given, named, _nothing if quiet else say)
    cfg: CurationConfig = config.curation
    pipeline_cfg: PipelineConfig = config.pipeline
    usable, unscored = registry.without_missing_sync(cfg)
    registry.check_files(usable)
    root = storage.join(out, "ledger", "curate")
    mend(root, TABLES, _nothing if quiet else say)
    with no_collection():
        found = storage.retrying(lambda: expand(sources, cfg), "listing the sources")[:limit]
    beside = Beside(cfg.captions, cfg.sources.follow_links)
    units = plan(found, pipeline_cfg, beside)
    units = adopt(out, units, functools.partial(ids_at, beside))
    ledger = Ledger(root, TABLES, parameters(cfg))
    if unscored and not _scored_before(out, ledger, units, retry_failed, unscored):
        cfg = usable
        ledger = Ledger(root, TABLES, parameters(cfg))
        Terminal(stderr=True, quiet=quiet).say(_unscored(cfg, unscored))
    else:
        unscored = None
    units = _with_earlier(ledger, units, quiet)
    watcher = Progress("curate", "videos", storage.join(out, "status.json"), Terminal(stderr=True, quiet=quiet))
    execution = pipeline_cfg.execution
    outcome = runner.run(
        units, functools.partial(CurateWorker, absolute_files(cfg)), ledger, execution.curate, execution,
        inline=inline, ray_address=ray_address, retry_failed=retry_failed, watcher=watcher,
    )  # fmt: skip
    wanted, aside = current(ledger, units)
    notes = [f"sync was not scored: {unscored}"] if unscored else []
    record = RunRecord.of_curate(watcher.timings, outcome.amount, len(found), given, notes)
    videos = _with_quarantine(_concat(ledger, "videos", wanted, VIDEOS), aside)

    def read_clips(columns: list[str]) -> Iterator[pa.Table]:
        return ledger.read("clips", wanted, columns)

    videos = videos.sort_by([("source_uri", "ascending")])
    describe = describing(config, record)
    videos, clips = writer.write(out, videos, read_clips, cfg, execution.rows_per_file, describe)
    report = storage.join(out, generation.REPORT_FILE)
    causes = [f"{redact_address(failure.key)}: {failure.cause}" for failure in aside]
    summary = summarise(out, videos, clips, outcome.done, outcome.seconds, causes, report, config.preset)
    return replace(summary, notes=notes)


def _nothing(line: str) -> None:
    """For quiet runs."""


def _unscored(cfg: CurationConfig, why: MissingWeights) -> str:
    """What a run without SyncNet's file does, said before it starts."""
    if not cfg.sync.required:
        return f"sync is not scored: {why} Clips are kept without a score, as sync.required is false."
    return (
        f"sync is not scored: {why} Good clips are held meanwhile. With the file there, the same command scores them "
        "and repeats no other score; --set sync.required=false keeps them unscored."
    )


def _scored_before(
    out: str, ledger: Ledger, units: list[Unit[CurateJob]], retry_failed: bool, why: MissingWeights
) -> bool:
    """Has an earlier run with SyncNet's file scored everything that is planned? ``ledger``: of a scored run.

    Raises:
        MissingWeights: it has scored other videos of the catalog, or all of them with other settings: those must not
            lose their scores.
    """
    done = ledger.done()
    if not done:
        if not tables.any_value(out, "clips", SCORES):
            return False
        raise MissingWeights(
            f"the catalog has sync scores, and these settings need them measured again: {str(why)[:-1]}; "
            "--set sync.backend=none does without the scores of all."
        )
    aside = set() if retry_failed else ledger.quarantined().keys()
    left = sum(unit.id not in done and unit.id not in aside for unit in units)
    if left:
        raise MissingWeights(
            f"the catalog has sync scores, and {left} of {len(units)} videos are not scored yet: {str(why)[:-1]}; "
            "--set sync.backend=none does without the scores of all."
        )
    return True


def current(ledger: Ledger, units: list[Unit[CurateJob]]) -> tuple[set[str], list[Failure]]:
    """The units that the catalog shows: those planned now, and for every other source its latest.

    So a catalog grows with every folder given to it, and shows a file that changed once, as it is now.

    Returns:
        ids of finished units, and the units in quarantine.
    """
    planned, keys = {unit.id for unit in units}, {unit.key for unit in units}
    records = ledger.records().select(["unit", "key", "run", "finished"])
    latest: dict[str, tuple[int, float, str]] = {}
    wanted = set()
    for unit, key, run, when in zip(*(records[name].to_pylist() for name in records.schema.names), strict=True):
        if unit in planned:
            wanted.add(unit)
        elif key not in keys:  # clocks go wrong: they count only for what older versions wrote, which have no runs
            latest[key] = max(latest.get(key, (-1, 0.0, "")), (run or 0, when, unit))
    wanted |= {unit for *_, unit in latest.values()}
    aside = [
        failure
        for unit, failure in ledger.quarantined().items()
        if unit not in wanted and (unit in planned or (failure.key not in keys and failure.key not in latest))
    ]
    return wanted, aside


def _concat(ledger: Ledger, name: str, wanted: set[str], schema: pa.Schema) -> pa.Table:
    parts = [part.select(schema.names).cast(schema) for part in ledger.read(name, wanted=wanted)]
    return pa.concat_tables(parts).combine_chunks() if parts else schema.empty_table()


def _with_quarantine(videos: pa.Table, aside: list[Failure]) -> pa.Table:
    """A row for every file that was given up: nothing disappears."""
    rows = [
        {
            "source_uri": redact_address(failure.key),
            "verdict": "error",
            "error_stage": "quarantine",
            "error": failure.cause,
            "reasons": [f"quarantine: {failure.cause}"],
        }
        for failure in aside
    ]
    return pa.concat_tables([videos, catalog.table(rows, VIDEOS)]) if rows else videos


def _with_earlier(ledger: Ledger, units: list[Unit[CurateJob]], quiet: bool) -> list[Unit[CurateJob]]:
    """Units that another set of parameters has rows for get them to start from; says what will be computed again."""
    done = ledger.done()
    missing = [unit for unit in units if unit.id not in done]
    earlier = reuse.find(ledger, missing, outdated) if missing else {}
    changed = reuse.changes(ledger)
    terminal = Terminal(stderr=True, quiet=quiet)
    if missing:  # here and not in the workers: once per run
        for note in registry.notes():
            terminal.say(note)
    if missing and (changed or earlier) and not quiet:
        if changed:
            say(f"changed since the last run: {', '.join(changed)}.")
        for line in reuse.sentences(missing, earlier, ledger.parameters, "videos"):
            say(line)
    return [
        replace(unit, payload=replace(unit.payload, earlier=(unit.id, earlier[unit.id])))
        if unit.id in earlier
        else unit
        for unit in units
    ]
