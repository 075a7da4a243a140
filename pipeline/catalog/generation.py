"""Which files are the tables of a catalog: ``tables.json`` says it, and replacing that one small file is the switch.

``clips/`` and ``videos/`` hold Parquet files whose names end in a digest of what is in them. A command that changes the
tables writes new files beside the old ones, then replaces ``tables.json``, then removes what it does not name. Killed at
any moment it leaves the old tables or the new ones, whole; what it leaves over is removed by the next one that writes.
``tables.json`` also holds the facts of the run that decided the rows; ``run.json`` is a copy of these for people, and
``report.html`` the same rows drawn. No rename is needed, so object stores work alike. On a local disk new files have
hidden names until the moment of the switch, so that somebody's ``clips/*.parquet`` sees two generations only between the
renames and the removal; in an object store it does so from the first upload on.

Catalogs of versions that knew no ``tables.json`` consist of all the ``*.parquet`` there are.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import EchoForgeError
from configs.paths import is_remote
from configs.runtime import disk, stopping
from configs.runtime.shown import one_line
from pipeline import damaged, listing, parquet, storage
from pipeline.catalog.run_record import RunRecord
from pipeline.engine import seal
from pipeline.engine.seal import Damaged, digest

T = TypeVar("T")
FILE, RUN_FILE, REPORT_FILE = "tables.json", "run.json", "report.html"
MARK = "incomplete.json"
"""Versions without ``tables.json`` wrote this while they replaced tables one by one."""
NAMES = ("clips", "videos")
AGAIN = "run `curate` again to write the tables (nothing is analysed twice)"
_OURS = re.compile(r"^part-\d{5,}-[0-9a-f]{16}\.parquet$")
_FOOTER = 8  # bytes at a Parquet file's end: length of the metadata before them (4, little endian), and `PAR1`


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a table."""

    name: str
    rows: int
    bytes: int
    xxh3: str  # of the whole file
    footer_bytes: int
    footer_xxh3: str  # of its last bytes, which say where everything is; pages have checksums of their own


@dataclass(frozen=True, slots=True)
class File:
    """A file of a table and where it is. ``part``: what it was when it was written; None: of an older version."""

    url: str
    part: Part | None = None


@dataclass(frozen=True)
class Generation:
    """What ``tables.json`` says.

    Attributes:
        number: one more than that of the tables before; 0 where a catalog of an older version was read.
        parts: by table, in the order of the rows.
        run: the record of the run that decided the rows; ``run.json`` is their copy.
        report: digest of the report; None where none was drawn.
    """

    number: int
    parts: dict[str, tuple[Part, ...]]
    run: RunRecord
    report: str | None = None


def current(out: str) -> Generation | None:
    """The tables that the catalog at ``out`` shows now; None: an older version wrote it, or there is none.

    Raises:
        Damaged: ``tables.json`` is.
    """
    url = storage.join(out, FILE)
    remedy = f"delete it, then {AGAIN}; the thresholds are then those of {RUN_FILE}"
    found = seal.read_json(url, remedy, sealed=True)
    if found is None:
        return None
    try:
        parts = {name: tuple(Part(**part) for part in found["parts"][name]) for name in NAMES}
        if wrong := [part.name for some in parts.values() for part in some if not _OURS.match(part.name)]:
            raise ValueError(f"a name like '{one_line(wrong[0])}'")
        return Generation(int(found["generation"]), parts, RunRecord(dict(found["run"])), found["report"])
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"'{url}' is damaged ({type(error).__name__}: {error}); {remedy}.") from error


def files(out: str, generation: Generation | None) -> dict[str, list[File]]:
    """The files of each table, in the order of the rows.

    Args:
        generation: as :func:`current` gives it.

    Raises:
        EchoForgeError: there are files of a generation, and nothing says which of them belong together.
    """
    if generation is not None:
        return {
            name: [File(storage.join(out, name, part.name), part) for part in generation.parts[name]] for name in NAMES
        }
    found = {}
    for name in NAMES:
        there = listing.files(storage.join(out, name), ".parquet")
        older = [File(entry.url) for entry in there if not _OURS.match(entry.name)]
        if there and not older:
            raise EchoForgeError(
                f"'{storage.join(out, FILE)}', which says which tables belong together, is gone; {AGAIN}."
            )
        found[name] = older  # others are of a writer that was killed before its switch
    return found


@contextlib.contextmanager
def opened(file: File) -> Iterator[pq.ParquetFile]:
    """An open file of a table that has the size and the footer that it was written with.

    Raises:
        Gone: it is not there.
        Damaged: it is not as it was written, or cannot be read.
    """
    try:
        check_end(file)
        with parquet.opened(file.url) as found:
            yield found
    except FileNotFoundError as error:
        raise Gone(file.url) from error
    except (pa.ArrowException, OSError) as error:
        raise Damaged(f"the table '{file.url}' cannot be read ({error}); {AGAIN}.") from error


def check_end(file: File) -> None:
    """Compare size and footer of a file with what they were, without reading the rest.

    Raises:
        FileNotFoundError: it is not there.
        Damaged: as :func:`opened`.
    """
    entry, part = storage.entry(file.url), file.part
    if part is None:
        return
    if entry.size != part.bytes:
        raise Damaged(f"the table '{file.url}' is damaged ({entry.size} bytes instead of {part.bytes}); {AGAIN}.")
    footer = storage.read_range(file.url, part.bytes - part.footer_bytes, part.footer_bytes)
    if digest(footer) != part.footer_xxh3:
        raise Damaged(f"the table '{file.url}' is damaged (its end is not as it was written); {AGAIN}.")


def check_whole(file: File) -> None:
    """Read a file to its end: compare its digest, or, of an older version that kept none, decode it.

    Raises:
        Gone, Damaged: as :func:`opened`.
    """
    with opened(file) as found:
        if file.part is None:
            for group in range(found.num_row_groups):
                found.read_row_group(group)
    if file.part is not None and seal.digest_of(file.url) != file.part.xxh3:
        raise Damaged(f"the table '{file.url}' is damaged (it is not as it was written); {AGAIN}.")


@dataclass
class _Staged:
    """A new part that nobody sees yet; ``hidden`` is where it is until the switch, None: under its name already."""

    url: str
    hidden: Path | None


class Change:
    """New tables for the catalog at ``out``, in the making: nothing changes for readers before :meth:`commit`.

    Use as a context; left without a commit, what was written is taken away again.
    """

    def __init__(self, out: str, before: Generation | None) -> None:
        self._out, self._before = out, before
        self._parts: dict[str, list[Part]] = {name: [] for name in NAMES}
        self._staged: list[_Staged] = []
        self._known = {part.name for parts in before.parts.values() for part in parts} if before else set()

    def __enter__(self) -> Change:
        storage.sweep(self._out)
        if self._before is not None:
            _sweep(self._out, self._before)
        return self

    def __exit__(self, *_: object) -> None:
        for item in self._staged:
            if item.hidden is not None:
                item.hidden.unlink(missing_ok=True)
            elif storage.name_of(item.url) not in self._known:
                storage.remove(item.url)

    def add(self, name: str, table: pa.Table) -> None:
        """The next part of a table.

        Raises:
            StoreError: it cannot be written.
        """
        stopping.check()  # before the switch nothing has changed
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        data = sink.getvalue()
        end = int.from_bytes(data[-_FOOTER:-4], "little") + _FOOTER
        whole = digest(data)
        part = Part(
            name=f"part-{len(self._parts[name]):05d}-{whole[:16]}.parquet",
            rows=table.num_rows,
            bytes=len(data),
            xxh3=whole,
            footer_bytes=end,
            footer_xxh3=digest(data[-end:]),
        )
        url = storage.join(self._out, name, part.name)
        if is_remote(url):
            self._staged.append(_Staged(url, None))
            storage.write_bytes(url, data)
        else:
            hidden = storage.temporary(url)
            self._staged.append(_Staged(url, hidden))
            storage.fill(hidden, data)
        self._parts[name].append(part)

    def keep(self, name: str, part: Part) -> None:
        """A part of the tables before is the next part of a table."""
        self._parts[name].append(part)

    def commit(self, run: RunRecord, page: str | None) -> None:
        """Switch, then remove the old files and copy the facts for people.

        Args:
            run: the record of the run that decided the rows.
            page: the report; None: the one that is there stays (its rows are named otherwise now).

        Raises:
            StoreError: something cannot be written; before the switch nothing has changed then.
        """
        data = page.encode() if page is not None else None
        number = self._before.number + 1 if self._before else 1
        report = digest(data) if data is not None else None
        after = Generation(number, {name: tuple(parts) for name, parts in self._parts.items()}, run, report)
        for item in self._staged:
            if item.hidden is not None:
                _free(item.url)
                item.hidden.replace(storage.local(item.url))
                item.hidden = None
        for name in NAMES:
            if not is_remote(self._out) and self._parts[name]:
                disk.sync(storage.local(storage.join(self._out, name)))
        self._staged = []  # from here on they may be the tables, also where the next line raises
        save(self._out, after)
        _sweep(self._out, after)
        _free(storage.join(self._out, MARK))
        storage.remove(storage.join(self._out, MARK))
        copy(self._out, after, data)


def save(out: str, generation: Generation) -> None:
    """Replace ``tables.json``."""
    parts = {name: [asdict(part) for part in generation.parts[name]] for name in NAMES}
    facts = {"generation": generation.number, "parts": parts, "run": generation.run.saved, "report": generation.report}
    storage.write_bytes(storage.join(out, FILE), seal.json_text(facts))


def copy(out: str, generation: Generation, page: bytes | None) -> None:
    """Write ``run.json``, and the report where there is a new one."""
    storage.write_bytes(storage.join(out, RUN_FILE), generation.run.text())
    if page is not None:
        storage.write_bytes(storage.join(out, REPORT_FILE), page)


def with_report(out: str, generation: Generation, page: str) -> None:
    """A new report of the same tables, and ``run.json`` once more."""
    data = page.encode()
    copy(out, generation, data)
    save(out, replace(generation, report=digest(data)))


def _free(url: str) -> None:
    """Set aside what is no file: a folder in the place of one can neither be replaced nor removed."""
    if damaged.is_file(url) is False:
        damaged.set_aside(url)


def _sweep(out: str, generation: Generation) -> None:
    """Remove every ``*.parquet`` that is not of this generation: of the one before, or of a command that was killed."""
    for name in NAMES:
        known = {part.name for part in generation.parts[name]}
        for entry in listing.files(storage.join(out, name), ".parquet"):
            if entry.name not in known:
                storage.remove(entry.url)


class Gone(EchoForgeError):
    """A file of the tables is not there."""

    def __init__(self, url: str) -> None:
        super().__init__(f"the table '{url}' is gone: if a command replaced it just now, run again; else {AGAIN}.")


def retrying(out: str, read: Callable[[], T]) -> T:
    """``read`` again as long as the tables are switched under it.

    Raises:
        Gone: they were not switched, or again and again.
    """
    for attempt in range(storage.ATTEMPTS):
        before = current(out)
        try:
            return read()
        except Gone:
            if attempt == storage.ATTEMPTS - 1 or current(out) == before:
                raise
    raise AssertionError("unreachable")
