"""Sources → a catalog: plan units by listing, analyse them through the engine, then decide over the whole corpus.

Layout of ``out``: ``ledger/curate`` (the record of work, one part file per commit), ``videos/*.parquet``,
``clips/*.parquet`` and ``tables.json``, which names them, ``run.json``, ``report.html``, ``status.json``. Everything but
the ledger is made anew from it at the end of every run, so a new threshold costs no decoding.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from configs import folders
from configs.errors import EchoForgeError, MissingWeights
from configs.paths import absolute_files
from configs.runtime import stopping
from configs.runtime.console import Terminal
from configs.runtime.redaction import redact, redact_address
from curation import schema as catalog
from curation.analysis import registry
from curation.analysis.incremental import Rows, analyse_again, outdated
from curation.analysis.video import analyse_video, error_row
from curation.config import CurationConfig
from curation.operators.captions import Beside
from curation.schema import CLIPS, VIDEOS
from curation.sources.listing import expand
from curation.sources.source import Source
from pipeline import listing, storage
from pipeline.catalog import generation, relocate, reuse, tables
from pipeline.catalog.redecide import carried
from pipeline.catalog.summary import CurateSummary, describing, summarise
from pipeline.catalog.timing import Stopwatch, timed
from pipeline.config import PipelineConfig
from pipeline.engine import lease, runner
from pipeline.engine.damage import mend
from pipeline.engine.ledger import Ledger
from pipeline.engine.progress import Progress, say
from pipeline.engine.rows import tables as as_tables
from pipeline.engine.unit import Failure, Result, Unit, unit_id

TABLES = {"videos": VIDEOS, "clips": CLIPS}
SAID = ("caption", "speaker", "licence", "source", "region")
"""What a manifest may say of a video."""
SCORES = ("sync_c", "sync_fit_conf")
"""Columns of the clips table that hold a confidence of sync, by backend."""


@dataclass(frozen=True, slots=True)
class Video:
    """The payload of a unit."""

    source: Source
    tag: str | None = None  # modification time or object tag, as listed before the file is read
    earlier: tuple[str, reuse.Earlier] | None = None  # the unit's id, and where its rows of other parameters are


class CurateWorker:
    """Analyses videos. Built once per process: the networks load once."""

    def __init__(self, cfg: CurationConfig) -> None:
        self._cfg = cfg
        self._watch = Stopwatch()
        self._backends = timed(registry.load(cfg), self._watch)

    def run(self, payload: Video) -> Result:
        """The rows of one video."""
        self._watch.reset()
        uri = payload.source.uri
        if payload.source.fault:
            row = error_row(redact_address(uri), "manifest", redact(payload.source.fault))
            return Result(as_tables({"videos": [row | {"source": payload.source.source}]}, TABLES))
        with storage.local_copy(uri) as path:  # one download instead of a range request per packet
            video, clips = self._analyse(str(path), payload)
        for row in (video, *clips):
            row["source_uri"] = redact_address(uri)
        video["source_tag"] = payload.tag
        made = as_tables({"videos": [video], "clips": clips}, TABLES)
        return Result(made, float(video.get("duration_s") or 0.0), self._watch.read())

    def _analyse(self, path: str, payload: Video) -> Rows:
        source = payload.source
        facts: dict[str, Any] = {key: getattr(source, key) for key in (*SAID, "spans", "root")}
        if payload.earlier:
            unit, where = payload.earlier
            rows = reuse.rows(unit, where.part, TABLES)
            if rows is not None and len(rows["videos"]) == 1:
                before = rows["videos"][0], rows["clips"]
                return analyse_again(path, self._cfg, backends=self._backends, run=where.run, before=before, **facts)
        return analyse_video(path, self._cfg, backends=self._backends, **facts)


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
    config, thresholds = carried(out, config, named, _nothing if quiet else say)
    cfg: CurationConfig = config.curation
    pipeline_cfg: PipelineConfig = config.pipeline
    usable, unscored = registry.without_missing_sync(cfg)
    registry.check_files(usable)
    root = storage.join(out, "ledger", "curate")
    mend(root, TABLES, _nothing if quiet else say)
    with _no_collection():
        found = storage.retrying(lambda: expand(sources, cfg), "listing the sources")[:limit]
    beside = Beside(cfg.captions, cfg.sources.follow_links)
    units = plan(found, pipeline_cfg, beside)
    units = relocate.adopt(out, units, functools.partial(_ids_at, beside))
    ledger = Ledger(root, TABLES, registry.parameters(cfg))
    if unscored and not _scored_before(out, ledger, units, retry_failed, unscored):
        cfg = usable
        ledger = Ledger(root, TABLES, registry.parameters(cfg))
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
    facts = {"seconds": watcher.timings, "video_seconds": outcome.amount, "sources": len(found), **thresholds}
    notes = [f"sync was not scored: {unscored}"] if unscored else []
    videos = _with_quarantine(_concat(ledger, "videos", wanted, VIDEOS), aside)

    def read_clips(columns: list[str]) -> Iterator[pa.Table]:
        return ledger.read("clips", wanted, columns)

    videos = videos.sort_by([("source_uri", "ascending")])
    describe = describing(config, facts | {"notes": notes})
    videos, clips = tables.write(out, videos, read_clips, cfg, execution.rows_per_file, describe)
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


def _scored_before(out: str, ledger: Ledger, units: list[Unit], retry_failed: bool, why: MissingWeights) -> bool:
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


def plan(sources: list[Source], cfg: PipelineConfig, beside: Beside | None = None) -> list[Unit]:
    """One unit per video. Only name, size and time (or tag) are looked at, of its sidecars too; no body is read.

    Object stores are asked once per folder, not once per file. A source that cannot be planned is a unit with a fault.

    Raises:
        StoreError: no source can be looked at, as a store does not answer: that is no source's fault.
    """
    listed = Listed()
    units: dict[str, Unit] = {}
    with _no_collection():
        for source in sources:
            stopping.check()
            try:
                there = None if source.fault else listed.entry(source.uri)
                local = beside is not None and not source.fault and not storage.is_remote(source.uri)
                unit = plan_unit(source, cfg, there, beside.tag(source.uri, source.root) if beside and local else "")
            except Exception as error:  # of one name among a million; its row says so
                fault = source.fault or f"it cannot be looked at ({type(error).__name__}: {error})."
                unit = plan_unit(replace(source, fault=fault), cfg)
            units[unit.id] = unit
    if all(unit.payload.source.fault for unit in units.values()):
        listed.check()
    return list(units.values())


class Listed:
    """What lies in folders of object stores; each is listed once, and a server that fails is not asked again."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, storage.Entry]] = {}
        self._failed: dict[str, EchoForgeError] = {}

    def entry(self, uri: str) -> storage.Entry | None:
        """The file as its folder's listing has it; None of a local one, or where the listing has none.

        Raises:
            EchoForgeError: the folder cannot be listed.
        """
        if not storage.is_remote(uri):
            return None
        folder = uri.rpartition("/")[0]
        server = "/".join(uri.split("/", 3)[:3])
        if server in self._failed:
            raise self._failed[server]
        if folder not in self._folders:
            try:
                self._folders[folder] = {entry.name: entry for entry in listing.files(folder)}
            except EchoForgeError as error:
                self._failed[server] = error
                raise
        return self._folders[folder].get(storage.name_of(uri))

    def check(self) -> None:
        """Raise the first failure that is not of an address which nothing knows (``evil://``)."""
        for error in self._failed.values():
            if not isinstance(error.__cause__, (ValueError, ImportError)):
                raise error


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A million small objects that all stay: looking for garbage among them again and again doubles the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def plan_unit(source: Source, cfg: PipelineConfig, there: storage.Entry | None = None, sidecars: str = "") -> Unit:
    """One video as a unit; ``there`` is its entry in a listing, if one was made, ``sidecars`` what lies beside it."""
    if source.fault:
        return Unit(unit_id(source.uri, source.fault), Video(source), _key(source.uri), cost=1.0)
    try:
        there = there or storage.entry(source.uri)
        size, tag, seen = there.size, there.tag, there.tag or None
    except (OSError, EchoForgeError):
        size, tag, seen = 0, "unreadable", None  # the analysis will say why, in a row
    execution = cfg.execution
    return Unit(
        id=_unit_id(source, f"{size}:{tag}", sidecars),
        payload=Video(source, seen),
        key=_key(source.uri) if storage.is_remote(source.uri) else source.uri,
        fingerprint=f"{size}:{tag}",
        cost=float(max(size, 1)),
        budget_s=execution.budget_s + execution.budget_per_mb * size / 1e6,
    )


def _unit_id(source: Source, fingerprint: str, sidecars: str) -> str:
    """Of all that the analysis of a source depends on: its name, size and time, and what is said of it."""
    size, _, tag = fingerprint.partition(":")
    said = (*source.spans, *(getattr(source, key) for key in SAID))
    return unit_id(source.uri, size, tag, repr(said), *([sidecars] if sidecars else []))


def _ids_at(beside: Beside, unit: Unit, uri: str, fingerprint: str) -> Iterator[str]:
    """The ids that a planned unit would have had if its file had this name, size and time."""
    source: Source = unit.payload.source
    named = {source.source}
    if source.source == PurePosixPath(source.uri).parent.name:  # a collection is named by its folder (`sources`)
        named.add(PurePosixPath(uri).parent.name)
    tags = {"" if storage.is_remote(source.uri) else beside.tag(source.uri, source.root)}
    if not storage.is_remote(uri) and storage.exists(uri):  # copied: the sidecars have other times, too
        tags |= {tag for tag in [beside.tag(uri)] if Beside.same_but_time(tag, next(iter(tags)))}
    for name in named:
        for tag in tags:
            yield _unit_id(replace(source, uri=uri, source=name), fingerprint, tag)


def _key(uri: str) -> str:
    """A remote name without credentials."""
    folder, _, name = uri.rpartition("/")
    return redact_address(uri) if any(c in name for c in "@=&?;") else f"{_folder_key(folder)}/{name}"


@functools.lru_cache(maxsize=4096)
def _folder_key(folder: str) -> str:
    return redact_address(folder)


def current(ledger: Ledger, units: list[Unit]) -> tuple[set[str], list[Failure]]:
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


def _with_earlier(ledger: Ledger, units: list[Unit], quiet: bool) -> list[Unit]:
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
