"""Catalogs whose media moved: other names for the same files, so that nothing is analysed again.

A source's name stands in the tables (``source_uri``), in the rows and records of the ledger (``key``) and, hashed with
the file's size and time, in the id of its unit of work. Names are rewritten; ids stay. ``ledger/curate/moved.parquet``
keeps what each id was made from, and :func:`adopt` gives a planned unit its old id when name, size and time are those
that `relocate` saw, and everything else that the id depends on (sidecars, the manifest's columns) is the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import pyarrow as pa

from configs.errors import EchoForgeError
from configs.paths import absolute, is_remote
from pipeline import store, tables
from pipeline.ledger import MERGED_GROUP, Ledger, Unit

MOVED_FILE = "moved.parquet"
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

    def __str__(self) -> str:
        lines = [f"{self.catalog}: {self.sources} sources ({self.clips} clips) moved from {self.old} to {self.new}"]
        if self.left:
            lines.append(f"{len(self.left)} sources keep their old name:")
            lines += [f"  {reason}" for reason in self.left[:20]]
            if len(self.left) > 20:
                lines.append(f"  … and {len(self.left) - 20} more")
        return "\n".join(lines)

    def __rich__(self) -> str:
        return str(self).replace("[", r"\[")


def relocate(catalog_dir: str, old: str, new: str) -> Relocation:
    """Name the sources below ``old`` as they are called below ``new``; an interrupted run is continued by the same one.

    A source whose new file is missing or has another size keeps its old name and is listed.

    Raises:
        EchoForgeError: no catalog, none of its sources lies below ``old``, or no new file fits.
    """
    command = f"relocate {catalog_dir} {old} {new}"
    tables.check(catalog_dir, restart=command)
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
            entry = store.entry(there)
        except OSError:
            left.append(f"{uri}: there is no {there}")
            continue
        if sizes[uri] and entry.size != sizes[uri]:
            left.append(f"{uri}: {there} has {entry.size} bytes, not {sizes[uri]}")
            continue
        seen[uri] = f"{entry.size}:{entry.tag}"
    if not seen:
        raise EchoForgeError(
            f"none of the {len(moves)} sources of '{catalog_dir}' below '{old}' is below '{new}'; the first: {left[0]}."
        )
    moves = {uri: moves[uri] for uri in seen}
    _rename_ledger(catalog_dir, moves, seen)
    with tables.changing(catalog_dir, command):
        clips = _rename_tables(catalog_dir, moves)
    return Relocation(catalog_dir, old, target, len(moves), clips, sorted(left))


def adopt(out: str, units: list[Unit], ids: Callable[[Unit, str, str], Iterable[str]]) -> list[Unit]:
    """``units`` with the ids under which their work was done before their files were renamed.

    Relative names, which earlier versions stored, are replaced in the ledger when a planned file has the same end of
    its name, size and time.

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
    below every folder above the catalog.

    Raises:
        EchoForgeError: a relative one is in none of these.
    """
    names = dict.fromkeys(uris)
    places = [Path.cwd(), *([] if is_remote(catalog_dir) else Path(absolute(catalog_dir)).parents)]
    where, lost = {}, []
    for uri in names:
        if is_remote(uri) or "://" in uri or Path(uri).is_absolute():
            where[uri] = uri
        elif place := next((place for place in places if (place / uri).exists()), None):
            where[uri] = absolute(place / uri)
        else:
            lost.append(uri)
    if lost:
        examples = ", ".join(f"'{uri}'" for uri in lost[:_SHOWN])
        top = PurePosixPath(lost[0]).parts[0]
        raise EchoForgeError(
            f"catalog '{catalog_dir}' names {len(lost)} sources relative to a folder that is not known ({examples}); "
            f"say where they are: `catalog relocate {catalog_dir} {top} /path/to/{top}`."
        )
    return where


def located(table: pa.Table, catalog_dir: str) -> pa.Table:
    """A table of the catalog with its ``source_uri`` as :func:`found` says."""
    at = table.schema.get_field_index("source_uri")
    uris = table["source_uri"].to_pylist()
    where = found(uris, catalog_dir)
    return table.set_column(at, table.schema.field(at), pa.array([where[uri] for uri in uris], pa.string()))


def _rest(uri: str, old: str) -> str | None:
    """What follows ``old``, as typed or from the root on, in ``uri``; None: it does not lie there."""
    if old in (".", "./") and not is_remote(uri) and not Path(uri).is_absolute():
        return uri
    for prefix in dict.fromkeys((old.rstrip("/"), os.path.normpath(old), absolute(old).rstrip("/"))):
        if uri == prefix:
            return ""
        if uri.startswith(prefix + "/"):
            return uri[len(prefix) + 1 :]
    return None


def _below(target: str, rest: str) -> str:
    return f"{target.rstrip('/')}/{rest}" if rest else target


def _sources(catalog_dir: str) -> dict[str, int]:
    """Every source that the tables or the ledger name → its size in bytes; 0: not known."""
    sizes: dict[str, int] = {}
    for ledger in _ledgers(catalog_dir):
        records = ledger.records()
        marks = list(zip(records["key"].to_pylist(), records["fingerprint"].to_pylist(), strict=True))
        marks += [(failure.key, failure.fingerprint) for failure in ledger.quarantined().values()]
        for key, fingerprint in marks:
            sizes[key] = _size(fingerprint) or sizes.get(key, 0)
    for part in store.listing(store.join(catalog_dir, "videos"), ".parquet"):
        with store.parquet(part.url) as file:
            table = file.read(columns=["source_uri", "bytes"])
        for uri, size in zip(table["source_uri"].to_pylist(), table["bytes"].to_pylist(), strict=True):
            sizes[uri] = size or sizes.get(uri, 0)
    return sizes


def _size(fingerprint: str) -> int:
    text = (fingerprint or "").partition(":")[0]
    return int(text) if text.isdigit() else 0


def _ledgers(catalog_dir: str) -> Iterator[Ledger]:
    """The ledgers of all parameters; only records, keys and quarantine are read through them."""
    root = store.join(catalog_dir, "ledger", "curate")
    for home in store.folders(root):
        url = store.join(home, "parameters.json")
        if store.exists(url):
            yield Ledger(root, {}, json.loads(store.read_bytes(url)))


def _moved(catalog_dir: str) -> pa.Table:
    url = store.join(catalog_dir, "ledger", "curate", MOVED_FILE)
    if not store.exists(url):
        return MOVED.empty_table()
    with store.parquet(url) as file:
        return file.read()


def _rename_ledger(catalog_dir: str, moves: Mapping[str, str], seen: Mapping[str, str]) -> None:
    """First what the ids were made from, then part by part the names: killed at any moment it can be run again."""
    ledgers = list(_ledgers(catalog_dir))
    rows = {row["unit"]: row for row in _moved(catalog_dir).to_pylist()}
    for ledger in ledgers:
        records = ledger.records().select(["unit", "key", "fingerprint"]).to_pylist()
        records += [
            {"unit": unit, "key": failure.key, "fingerprint": failure.fingerprint}
            for unit, failure in ledger.quarantined().items()
        ]
        for record in records:
            if (key := record["key"]) in moves:
                first = rows.get(record["unit"], {"uri": key, "fingerprint": record["fingerprint"]})
                rows[record["unit"]] = {**first, "unit": record["unit"], "key": moves[key], "seen": seen[key]}
    if not rows:
        return
    url = store.join(catalog_dir, "ledger", "curate", MOVED_FILE)
    store.write_table(url, pa.Table.from_pylist(list(rows.values()), schema=MOVED))
    for ledger in ledgers:
        for part in store.listing(ledger.parts, ".parquet"):
            with store.parquet(part.url) as file:
                if not moves.keys() & set(file.read(columns=["key"])["key"].to_pylist()):
                    continue
                table = file.read()
            group = MERGED_GROUP if part.name.startswith("m-") else None
            store.write_table(part.url, _renamed_part(table, moves), row_group=group)
        for failure in ledger.quarantined().values():
            if failure.key in moves:
                ledger.quarantine(replace(failure, key=moves[failure.key]))


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


def _rename_tables(catalog_dir: str, moves: Mapping[str, str]) -> int:
    """Rewrite ``source_uri`` in the tables, file by file; returns how many clips have another name.

    A source that was curated under its new name as well keeps those rows; the renamed ones would be the same again.
    """
    there: set[str] = set()
    for part in store.listing(store.join(catalog_dir, "videos"), ".parquet"):
        with store.parquet(part.url) as file:
            there.update(file.read(columns=["source_uri"])["source_uri"].to_pylist())
    double = {uri for uri, name in moves.items() if name in there and uri in there}
    count = 0
    for name in ("clips", "videos"):
        for part in store.listing(store.join(catalog_dir, name), ".parquet"):
            with store.parquet(part.url) as file:
                table = file.read()
            uris = table["source_uri"].to_pylist()
            if not any(uri in moves for uri in uris):
                continue
            table = table.filter(pa.array([uri not in double for uri in uris]))
            at = table.schema.get_field_index("source_uri")
            count += sum(uri in moves for uri in table["source_uri"].to_pylist()) if name == "clips" else 0
            table = table.set_column(at, table.schema.field(at), _renamed(table["source_uri"], moves))
            store.write_table(part.url, table)
    return count


def _adopt_relative(out: str, units: list[Unit]) -> None:
    relative = {uri for uri in _sources_named(out) if not is_remote(uri) and "://" not in uri and uri[:1] != "/"}
    if not relative:
        return
    by_mark: dict[str, list[str]] = {}
    for unit in units:
        by_mark.setdefault(unit.fingerprint, []).append(unit.key)
    moves: dict[str, str] = {}
    seen: dict[str, str] = {}
    for ledger in _ledgers(out):
        records = ledger.records()
        for key, mark in zip(records["key"].to_pylist(), records["fingerprint"].to_pylist(), strict=True):
            end = "/" + "/".join(part for part in PurePosixPath(key).parts if part not in (".", ".."))
            fits = [uri for uri in by_mark.get(mark, ()) if uri.endswith(end)] if key in relative else []
            if len(fits) == 1:
                moves[key], seen[key] = fits[0], mark
    if moves:
        _rename_ledger(out, moves, seen)


def _sources_named(out: str) -> set[str]:
    """The names in the videos table; of a catalog without tables, those in the ledger."""
    names: set[str] = set()
    parts = store.listing(store.join(out, "videos"), ".parquet")
    for part in parts:
        with store.parquet(part.url) as file:
            names.update(file.read(columns=["source_uri"])["source_uri"].to_pylist())
    if not parts:
        for ledger in _ledgers(out):
            names.update(ledger.records()["key"].to_pylist())
    return names
