"""Names of sources in the ledger of a catalog, and what the ids of units were made from before they were renamed.

A source's name stands in the tables (``source_uri``), in the rows and records of the ledger (``key``) and, hashed with
the file's size and time, in the id of its unit of work. Names are rewritten; ids stay. ``ledger/curate/moved.parquet``
keeps what each id was made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import listing, parquet, storage
from pipeline.catalog import tables
from pipeline.engine.ledger import MOVED_FILE, Ledger, ledgers
from pipeline.engine.parts import MERGED_GROUP, write_part

MOVED = pa.schema(
    [
        ("unit", pa.string()),
        ("uri", pa.string()),  # what the id was made from: the name when it was analysed …
        ("fingerprint", pa.string()),  # … and size:time then
        ("key", pa.string()),  # its name now
        ("seen", pa.string()),  # size:time of the file of that name when it was relocated
    ]
)


def names_of(catalog_dir: str) -> dict[str, int]:
    """Every source that the videos table names → its size in bytes; 0: not known. Half-written tables count, too.

    Raises:
        EchoForgeError: a file of the table cannot be read.
    """
    found: dict[str, int] = {}
    for table in tables.named(catalog_dir, "videos", ["source_uri", "bytes"]):
        sizes = (size or 0 for size in table["bytes"].to_pylist())
        found |= dict(zip(table["source_uri"].to_pylist(), sizes, strict=True))
    return found


def size_of(fingerprint: str) -> int:
    text = (fingerprint or "").partition(":")[0]
    return int(text) if text.isdigit() else 0


def ledgers_of(catalog_dir: str) -> list[Ledger]:
    """The ledgers of all parameters; only records, keys and quarantine are read through them."""
    return ledgers(storage.join(catalog_dir, "ledger", "curate"), {})


def moved_of(catalog_dir: str) -> pa.Table:
    url = storage.join(catalog_dir, "ledger", "curate", MOVED_FILE)
    if not storage.exists(url):
        return MOVED.empty_table()
    with parquet.opened(url) as file:
        return file.read()


class Record(NamedTuple):
    """What the ledger keeps of a unit, done or given up."""

    unit: str
    key: str
    fingerprint: str
    finished: float  # Unix time
    run: int  # number of the run; 0: of an older version


def records_of(catalog_dir: str) -> list[Record]:
    """Of every unit in the ledgers of all parameters, oldest first."""
    found: list[Record] = []
    for ledger in ledgers_of(catalog_dir):
        records = ledger.records()
        found += map(Record, *(pc.fill_null(records[name], 0).to_pylist() if name == "run" else records[name].to_pylist()
                                for name in Record._fields))  # fmt: skip
        found += [Record(unit, f.key, f.fingerprint, f.time, f.run) for unit, f in ledger.quarantined().items()]
    return sorted(found, key=lambda record: (record.run, record.finished))


def rename_ledger(catalog_dir: str, moves: Mapping[str, str], seen: Mapping[str, str]) -> None:
    """First what the ids were made from, then part by part the names: killed at any moment it can be run again.

    Args:
        moves: name → new name.
        seen: new name → ``size:time`` of the file there.
    """
    records = records_of(catalog_dir)
    present = _present(records, moves, seen)
    before = {row["unit"]: row for row in moved_of(catalog_dir).to_pylist()}
    rows = {unit: row for unit, row in before.items() if row["key"] not in moves}
    for record in records:
        there = moves.get(record.key)
        if there is not None and record.fingerprint == present.get(there):
            first = before.get(record.unit, {"uri": record.key, "fingerprint": record.fingerprint})
            rows[record.unit] = {**first, "unit": record.unit, "key": there, "seen": seen[there]}
    if rows or before:
        url = storage.join(catalog_dir, "ledger", "curate", MOVED_FILE)
        write_part(url, pa.Table.from_pylist(list(rows.values()), schema=MOVED))
    for ledger in ledgers_of(catalog_dir):
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


def _present(records: list[Record], moves: Mapping[str, str], seen: Mapping[str, str]) -> dict[str, str]:
    """New name → the fingerprint of the version that lies there.

    That is the one with the same size and time; where copying changed the time, the last one of the same size. A file
    of which only other sizes were analysed has none.
    """
    found: dict[str, str] = {}
    for record in records:  # oldest first
        there = moves.get(record.key, record.key)  # an interrupted run has renamed some already
        if there in seen and size_of(record.fingerprint) == size_of(seen[there]) and found.get(there) != seen[there]:
            found[there] = record.fingerprint
    return found


def _renamed_part(table: pa.Table, moves: Mapping[str, str]) -> pa.Table:
    """A part of the ledger with its keys, and the ``source_uri`` of the rows in its list columns, renamed."""
    for at, column in enumerate(table.schema):
        if column.name == "key":
            table = table.set_column(at, column, renamed(table["key"], moves))
        elif pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):
            lists = pa.concat_arrays(table[column.name].chunks)
            rows = lists.values
            names = [f.name for f in rows.type]
            if "source_uri" in names:
                parts = [rows.field(n) if n != "source_uri" else renamed(rows.field(n), moves) for n in names]
                rows = pa.StructArray.from_arrays(parts, fields=list(rows.type))
                table = table.set_column(at, column, pa.ListArray.from_arrays(lists.offsets, rows, type=column.type))
    return table


def renamed(column: pa.Array | pa.ChunkedArray, moves: Mapping[str, str]) -> pa.Array:
    return pa.array([moves.get(uri, uri) for uri in column.to_pylist()], pa.string())
