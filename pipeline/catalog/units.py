"""The units of `curate`: one for each video, known by its name, size and time and by what is said of it."""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from configs.errors import EchoForgeError
from configs.runtime import stopping
from configs.runtime.redaction import redact_address
from curation.caption_files import Beside
from curation.sources.source import Source
from pipeline import listing, storage
from pipeline.catalog.reuse import Earlier
from pipeline.config import PipelineConfig
from pipeline.engine.unit import Unit, unit_id

SAID = ("caption", "speaker", "licence", "source", "region")
"""What a manifest may say of a video."""


@dataclass(frozen=True, slots=True)
class CurateJob:
    """The payload of a unit."""

    source: Source
    tag: str | None = None  # modification time or object tag, as listed before the file is read
    earlier: tuple[str, Earlier] | None = None  # the unit's id, and where its rows of other parameters are


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Disable garbage collection while planning: it doubles the time at a million sources."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def plan(sources: list[Source], cfg: PipelineConfig, beside: Beside | None = None) -> list[Unit[CurateJob]]:
    """One unit per video. Only name, size and time (or tag) are looked at, of its sidecars too; no body is read.

    Object stores are asked once per folder, not once per file. A source that cannot be planned is a unit with a fault.

    Raises:
        StoreError: no source can be looked at, as a store does not answer: that is no source's fault.
    """
    listed = Listed()
    units: dict[str, Unit[CurateJob]] = {}
    with no_collection():
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


def plan_unit(
    source: Source, cfg: PipelineConfig, there: storage.Entry | None = None, sidecars: str = ""
) -> Unit[CurateJob]:
    """One video as a unit; ``there`` is its entry in a listing, if one was made, ``sidecars`` what lies beside it."""
    if source.fault:
        return Unit(unit_id(source.uri, source.fault), CurateJob(source), _key(source.uri), cost=1.0)
    try:
        there = there or storage.entry(source.uri)
        size, tag, seen = there.size, there.tag, there.tag or None
    except (OSError, EchoForgeError):
        size, tag, seen = 0, "unreadable", None  # the analysis will say why, in a row
    execution = cfg.execution
    return Unit(
        id=_unit_id(source, f"{size}:{tag}", sidecars),
        payload=CurateJob(source, seen),
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


def ids_at(beside: Beside, unit: Unit[CurateJob], uri: str, fingerprint: str) -> Iterator[str]:
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
