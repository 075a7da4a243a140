"""Catalogs whose media moved: other names for the same files, so that nothing is analysed again.

A source's name stands in the tables (``source_uri``), in the rows and records of the ledger (``key``) and, hashed with
the file's size and time, in the id of its unit of work. Names are rewritten; ids stay. ``ledger/curate/moved.parquet``
keeps what each id was made from, and :func:`adopt` gives a planned unit its old id when name, size and time are those
that `relocate` saw, and everything else that the id depends on (sidecars, the manifest's columns) is the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from configs.errors import EchoForgeError
from configs.paths import absolute, is_remote
from pipeline import listing, parquet, storage
from pipeline.catalog import tables
from pipeline.engine import lease
from pipeline.engine.damage import mend
from pipeline.engine.ledger import MOVED_FILE, Ledger, ledgers
from pipeline.engine.parts import MERGED_GROUP, write_part
from pipeline.engine.unit import Unit

MOVED = pa.schema(
    [
        ("unit", pa.string()),
        ("uri", pa.string()),  # what the id was made from: the name when it was analysed …
        ("fingerprint", pa.string()),  # … and size:time then
        ("key", pa.string()),  # its name now
        ("seen", pa.string()),  # size:time of the file of that name when it was relocated
    ]
)
_SHOWN = 3  # examples in a message


@dataclass(frozen=True)
class Relocation:
    """What `relocate` did: sources renamed, and those left as they were, each with the reason."""

    catalog: str
    old: str
    new: str
    sources: int
    clips: int
    left: list[str] = field(default_factory=list)
    note: str = ""  # what else is to be said

    def __str__(self) -> str:
        lines = [f"{self.catalog}: {self.sources} sources ({self.clips} clips) moved from {self.old} to {self.new}"]
        if self.left:
            lines.append(f"{len(self.left)} sources keep their old name:")
            lines += [f"  {reason}" for reason in self.left[:20]]
            if len(self.left) > 20:
                lines.append(f"  … and {len(self.left) - 20} more")
        if self.note:
            lines.append(self.note)
        return "\n".join(lines)


def relocate(catalog_dir: str, old: str, new: str) -> Relocation:
    """Name the sources below ``old`` as they are called below ``new``; an interrupted run is continued by the same one.

    A source whose new file is missing or has another size keeps its old name and is listed.

    Raises:
        EchoForgeError: no catalog, none of its sources lies below ``old``, or no new file fits.
    """
    with lease.locked(catalog_dir, "catalog", "catalog relocate", make=False):
        return _relocate(catalog_dir, old, new)


def _relocate(catalog_dir: str, old: str, new: str) -> Relocation:
    """:func:`relocate` with the catalog locked."""
    command = f"relocate {catalog_dir} {old} {new}"
    tables.check(catalog_dir, restart=command)
    notes: list[str] = []
    mend(storage.join(catalog_dir, "ledger", "curate"), {}, notes.append)
    tables.saved(catalog_dir)  # the new tables keep these facts: damage is said before anything is renamed
    sizes = _sources(catalog_dir)
    if not sizes:
        raise EchoForgeError(f"'{catalog_dir}' holds no catalog (videos/*.parquet); make one with `curate`.")
    target = absolute(new).rstrip("/") or "/"
    moves = {uri: _below(target, rest) for uri in sizes if (rest := _rest(uri, old)) is not None}
    moves = {uri: there for uri, there in moves.items() if there != uri}
    if not moves:
        examples = ", ".join(f"'{uri}'" for uri in sorted(sizes)[:_SHOWN])
        raise EchoForgeError(
            f"no source of '{catalog_dir}' lies below '{old}'; its {len(sizes)} sources are, for example, {examples}."
        )
    seen: dict[str, str] = {}
    left: list[str] = []
    for uri, there in sorted(moves.items()):
        try:
            entry = storage.entry(there)
        except OSError:
            left.append(f"{uri}: there is no {there}")
            continue
        if sizes[uri] and entry.size != sizes[uri]:
            left.append(f"{uri}: {there} has {entry.size} bytes, not {sizes[uri]}")
            continue
        seen[there] = f"{entry.size}:{entry.tag}"
    if not seen:
        raise EchoForgeError(
            f"none of the {len(moves)} sources of '{catalog_dir}' below '{old}' is below '{new}'; the first: {left[0]}."
        )
    moves = {uri: there for uri, there in sorted(moves.items()) if there in seen}
    _rename_ledger(catalog_dir, moves, seen)
    clips = _rename_tables(catalog_dir, moves, command)
    return Relocation(catalog_dir, old, target, len(moves), clips, sorted(left), "\n".join(notes))


def adopt(out: str, units: list[Unit], ids: Callable[[Unit, str, str], Iterable[str]]) -> list[Unit]:
    """``units`` with the ids under which their work was done before their files were renamed.

    Relative names and names with ``..``, which earlier versions stored, are first replaced in the ledger by those of
    the planned files (`_adopt_relative`).

    Args:
        out: the catalog.
        ids: (planned unit, earlier name, earlier ``size:time``) → the ids that it could have had there.
    """
    _adopt_relative(out, units)
    moved = _moved(out)
    if not moved.num_rows:
        return units
    known: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for unit, uri, fingerprint, key, seen in zip(*(moved[name].to_pylist() for name in MOVED.names), strict=True):
        known.setdefault((key, seen), []).append((unit, uri, fingerprint))
    done = {unit for ledger in _ledgers(out) for unit in ledger.done()}

    def adopted(unit: Unit) -> Unit:
        if unit.id in done:
            return unit
        for before, uri, fingerprint in known.get((unit.key, unit.fingerprint), ()):
            if before in ids(unit, uri, fingerprint):
                return replace(unit, id=before)
        return unit

    return [adopted(unit) for unit in units]


def found(uris: Iterable[str], catalog_dir: str) -> dict[str, str]:
    """Source → where it is. Relative names, which earlier versions stored, are tried below the working directory and
    below every folder above the catalog; one that is in none of these stays as it is, and reading it says so.
    """
    places = _places(catalog_dir)
    return {
        uri: uri if "://" in uri or Path(uri).is_absolute() else _find(uri, places) or uri
        for uri in dict.fromkeys(uris)
    }


def located(table: pa.Table, catalog_dir: str) -> pa.Table:
    """A table of the catalog with its ``source_uri`` as :func:`found` says."""
    at = table.schema.get_field_index("source_uri")
    uris = table["source_uri"].to_pylist()
    where = found(uris, catalog_dir)
    return table.set_column(at, table.schema.field(at), pa.array([where[uri] for uri in uris], pa.string()))


def _places(catalog_dir: str) -> list[Path]:
    """Where a relative name may start: the working directory and every folder above the catalog."""
    return [Path.cwd(), *([] if is_remote(catalog_dir) else Path(absolute(catalog_dir)).parents)]


def _find(uri: str, places: list[Path]) -> str | None:
    """A local name from the root on and without ``..``, a relative one at the first place that has it; None: nowhere."""
    if Path(uri).is_absolute():
        return absolute(uri)
    candidates = (absolute(place / uri) for place in places)
    return next((there for there in candidates if Path(there).exists()), None)


def _rest(uri: str, old: str) -> str | None:
    """What follows ``old``, as typed or from the root on, in ``uri``; None: it does not lie there."""
    if old in (".", "./") and "://" not in uri and not Path(uri).is_absolute():
        return uri
    names = (uri,) if "://" in uri else dict.fromkeys((uri, os.path.normpath(uri)))  # `lists/../videos/a.mp4`
    for prefix in dict.fromkeys((old.rstrip("/"), os.path.normpath(old), absolute(old).rstrip("/"))):
        for name in names:
            if name == prefix:
                return ""
            if name.startswith(prefix + "/"):
                return name[len(prefix) + 1 :]
    return None


def _below(target: str, rest: str) -> str:
    return absolute(f"{target.rstrip('/')}/{rest}") if rest else target


def _sources(catalog_dir: str) -> dict[str, int]:
    """Every source that the tables or the ledger name → its size in bytes; 0: not known.

    Tables that cannot be read are left out: the ledger names every source that `curate` looked at.
    """
    sizes: dict[str, int] = {}
    for record in _records(catalog_dir):  # oldest first: the last version stays
        sizes[record.key] = _size(record.fingerprint) or sizes.get(record.key, 0)
    try:
        named = _names(catalog_dir)
    except EchoForgeError:
        if not sizes:
            raise
        return sizes
    return sizes | {uri: size or sizes.get(uri, 0) for uri, size in named.items()}


def _names(catalog_dir: str) -> dict[str, int]:
    """Every source that the videos table names → its size in bytes; 0: not known. Half-written tables count, too.

    Raises:
        EchoForgeError: a file of the table cannot be read.
    """
    found: dict[str, int] = {}
    for table in tables.named(catalog_dir, "videos", ["source_uri", "bytes"]):
        sizes = (size or 0 for size in table["bytes"].to_pylist())
        found |= dict(zip(table["source_uri"].to_pylist(), sizes, strict=True))
    return found


def _size(fingerprint: str) -> int:
    text = (fingerprint or "").partition(":")[0]
    return int(text) if text.isdigit() else 0


def _ledgers(catalog_dir: str) -> list[Ledger]:
    """The ledgers of all parameters; only records, keys and quarantine are read through them."""
    return ledgers(storage.join(catalog_dir, "ledger", "curate"), {})


def _moved(catalog_dir: str) -> pa.Table:
    url = storage.join(catalog_dir, "ledger", "curate", MOVED_FILE)
    if not storage.exists(url):
        return MOVED.empty_table()
    with parquet.opened(url) as file:
        return file.read()


class _Record(NamedTuple):
    """What the ledger keeps of a unit, done or given up."""

    unit: str
    key: str
    fingerprint: str
    finished: float  # Unix time
    run: int  # number of the run; 0: of an older version


def _records(catalog_dir: str) -> list[_Record]:
    """Of every unit in the ledgers of all parameters, oldest first."""
    found: list[_Record] = []
    for ledger in _ledgers(catalog_dir):
        records = ledger.records()
        found += map(_Record, *(pc.fill_null(records[name], 0).to_pylist() if name == "run" else records[name].to_pylist()
                                for name in _Record._fields))  # fmt: skip
        found += [_Record(unit, f.key, f.fingerprint, f.time, f.run) for unit, f in ledger.quarantined().items()]
    return sorted(found, key=lambda record: (record.run, record.finished))


def _rename_ledger(catalog_dir: str, moves: Mapping[str, str], seen: Mapping[str, str]) -> None:
    """First what the ids were made from, then part by part the names: killed at any moment it can be run again.

    Args:
        moves: name → new name.
        seen: new name → ``size:time`` of the file there.
    """
    records = _records(catalog_dir)
    present = _present(records, moves, seen)
    before = {row["unit"]: row for row in _moved(catalog_dir).to_pylist()}
    rows = {unit: row for unit, row in before.items() if row["key"] not in moves}
    for record in records:
        there = moves.get(record.key)
        if there is not None and record.fingerprint == present.get(there):
            first = before.get(record.unit, {"uri": record.key, "fingerprint": record.fingerprint})
            rows[record.unit] = {**first, "unit": record.unit, "key": there, "seen": seen[there]}
    if rows or before:
        url = storage.join(catalog_dir, "ledger", "curate", MOVED_FILE)
        write_part(url, pa.Table.from_pylist(list(rows.values()), schema=MOVED))
    for ledger in _ledgers(catalog_dir):
        for part in listing.files(ledger.parts, ".parquet"):
            with parquet.opened(part.url) as file:
                if not moves.keys() & set(file.read(columns=["key"])["key"].to_pylist()):
                    continue
                table = file.read()
            group = MERGED_GROUP if part.name.startswith("m-") else None
            write_part(part.url, _renamed_part(table, moves), group)
        for failure in ledger.quarantined().values():
            if failure.key in moves:
                ledger.quarantine(replace(failure, key=moves[failure.key]))


def _present(records: list[_Record], moves: Mapping[str, str], seen: Mapping[str, str]) -> dict[str, str]:
    """New name → the fingerprint of the version that lies there.

    That is the one with the same size and time; where copying changed the time, the last one of the same size. A file
    of which only other sizes were analysed has none.
    """
    found: dict[str, str] = {}
    for record in records:  # oldest first
        there = moves.get(record.key, record.key)  # an interrupted run has renamed some already
        if there in seen and _size(record.fingerprint) == _size(seen[there]) and found.get(there) != seen[there]:
            found[there] = record.fingerprint
    return found


def _renamed_part(table: pa.Table, moves: Mapping[str, str]) -> pa.Table:
    """A part of the ledger with its keys, and the ``source_uri`` of the rows in its list columns, renamed."""
    for at, column in enumerate(table.schema):
        if column.name == "key":
            table = table.set_column(at, column, _renamed(table["key"], moves))
        elif pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):
            lists = pa.concat_arrays(table[column.name].chunks)
            rows = lists.values
            names = [f.name for f in rows.type]
            if "source_uri" in names:
                parts = [rows.field(n) if n != "source_uri" else _renamed(rows.field(n), moves) for n in names]
                rows = pa.StructArray.from_arrays(parts, fields=list(rows.type))
                table = table.set_column(at, column, pa.ListArray.from_arrays(lists.offsets, rows, type=column.type))
    return table


def _renamed(column: pa.Array | pa.ChunkedArray, moves: Mapping[str, str]) -> pa.Array:
    return pa.array([moves.get(uri, uri) for uri in column.to_pylist()], pa.string())


def _rename_tables(catalog_dir: str, moves: Mapping[str, str], command: str) -> int:
    """Rewrite ``source_uri`` in the tables; returns how many clips have another name.

    A source that was curated under its new name as well, or under several old ones, keeps one of these sets of rows:
    they are the same.

    Args:
        command: how this one is named where an older version was interrupted in it.

    Raises:
        EchoForgeError: a file of the tables cannot be read.
    """
    names = _names(catalog_dir)
    taken, double = names.keys() - moves.keys(), set()
    for uri, there in moves.items():
        if uri in names:
            if there in taken:
                double.add(uri)
            taken.add(there)
    count = 0

    def rename(name: str, table: pa.Table) -> pa.Table | None:
        nonlocal count
        uris = table["source_uri"].to_pylist()
        if not any(uri in moves for uri in uris):
            return None
        table = table.filter(pa.array([uri not in double for uri in uris]))
        at = table.schema.get_field_index("source_uri")
        count += sum(uri in moves for uri in table["source_uri"].to_pylist()) if name == "clips" else 0
        return table.set_column(at, table.schema.field(at), _renamed(table["source_uri"], moves))

    tables.renamed(catalog_dir, rename, command)
    return count


def _adopt_relative(out: str, units: list[Unit]) -> None:
    """Replace relative names and names with ``..`` in the ledger by the names of planned files.

    The planned file is the one with the same end of its name, size and time; else the one that `found` would take.
    That one may have changed since. Then it is analysed again, and its earlier rows are no longer shown.
    """
    unclear = {uri for uri in _sources_named(out) if "://" not in uri and not _plain(uri)}
    if not unclear:
        return
    planned = {unit.key: unit.fingerprint for unit in units}
    alike: dict[str, list[str]] = {}
    for uri, mark in planned.items():
        alike.setdefault(mark, []).append(uri)
    marks: dict[str, list[str]] = {}
    for record in _records(out):
        if record.key in unclear:
            marks.setdefault(record.key, []).append(record.fingerprint)
    places = _places(out)
    moves: dict[str, str] = {}
    seen: dict[str, str] = {}
    for key, known in marks.items():
        end = "/" + re.sub(r"^(\.\./)+", "", os.path.normpath(key))
        fits = {uri for mark in known for uri in alike.get(mark, ()) if uri.endswith(end)} if key[:1] != "/" else set()
        there = fits.pop() if len(fits) == 1 else _find(key, places)
        if there in planned:
            moves[key] = there
            if planned[there] in known:
                seen[there] = planned[there]
            else:  # changed since: no planned file has this mark, so that nothing of it is adopted
                seen.setdefault(there, known[-1])
    if moves:
        _rename_ledger(out, moves, seen)


def _plain(uri: str) -> bool:
    return uri[:1] == "/" and uri == os.path.normpath(uri)


def _sources_named(out: str) -> set[str]:
    """The names in the videos table; of a catalog without tables, or with damaged ones, those in the ledger."""
    try:
        named = set(_names(out))
    except EchoForgeError:
        named = set()
    return named or {record.key for record in _records(out)}
