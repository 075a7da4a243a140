"""What has been done: a unit is done when the part file that holds its rows has been renamed into place.

Layout below ``root`` (a folder of the output, local or remote)::

    <parameters>/parameters.json     parameter hash of every operator; the folder is named by their common digest
    <parameters>/parts/u-<unit>.parquet     the rows of one unit and its record, or
                       g-<digest>.parquet   of several short units committed together, or
                       m-<digest>.parquet   of many parts merged
    <parameters>/quarantine/<unit>.json     a unit given up, and why

A part file has one row per unit: the columns of :data:`RECORD` and one list column per table that the stage makes.
Nothing else is kept, so resuming is listing what is missing, and switching parameters back finds the old parts.
A unit may sit in two parts when a process died between two steps; readers take it once.

Parts carry a digest of themselves (`pipeline/engine/seal.py`). What is damaged is set aside by `damage.mend` (``….damaged``, no
name that anything here reads), so that its units are missing and are computed again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs import strict
from configs.paths import absolute
from pipeline import listing, storage
from pipeline.engine import seal
from pipeline.engine.parts import MERGED_GROUP, first_rows, groups, read_part, units_of, with_schema, write_part
from pipeline.engine.unit import Failure, Finished, unit_id

RECORD = pa.schema(
    [
        ("unit", pa.string()),
        ("key", pa.string()),  # what the unit is about: a source, a clip group
        ("fingerprint", pa.string()),  # of its input
        ("code", pa.string()),  # version that computed it
        ("rows", pa.int32()),
        ("seconds", pa.float64()),
        ("amount", pa.float64()),  # seconds of video
        ("timings", pa.string()),  # JSON: operator → seconds
        ("finished", pa.float64()),  # Unix time, for people: clocks go wrong, so order is taken from `run`
        ("run", pa.int64()),  # number of the run that computed it, 1 and up; null where an older version did
    ]
)
_RUN = pa.schema([RECORD.field("run")])
MOVED_FILE = "moved.parquet"
"""Beside the ledgers of a catalog: what `catalog relocate` keeps (`pipeline/catalog/moved.py`)."""


class Ledger:
    """The record of one stage of one output under one set of parameters.

    Args:
        root: folder of the stage's records, say ``OUT/ledger/curate``.
        tables: schema of every table that the stage makes.
        parameters: parameter hash of every operator; other parameters are another ledger beside this one.
    """

    def __init__(self, root: str, tables: Mapping[str, pa.Schema], parameters: Mapping[str, str]) -> None:
        self.root, self.tables, self.parameters = absolute(root), dict(tables), dict(parameters)
        self.home = storage.join(self.root, strict.digest(self.parameters))
        self.parts = storage.join(self.home, "parts")
        self.run = 0  # number of the present run, once it is prepared
        self.schema = pa.schema(
            [*RECORD, *(pa.field(name, pa.list_(pa.struct(list(schema)))) for name, schema in self.tables.items())]
        )

    def prepare(self) -> None:
        """Write ``parameters.json``, clear what dead processes left half-written, and take a number for this run."""
        storage.sweep(self.root)
        path = storage.join(self.home, "parameters.json")
        if not storage.exists(path):
            storage.write_bytes(path, json.dumps(self.parameters, indent=1, sort_keys=True).encode())
        runs = [run for ledger in ledgers(self.root, {}) for run in ledger.runs()]
        self.run = 1 + max(runs, default=0)

    def runs(self) -> set[int]:
        """The numbers of the runs that computed what is here, failures included."""
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda part: with_schema(read_part(part.url, ["run"]), _RUN)["run"], self._parts()))
        known = {run for column in found for run in pc.unique(column).drop_null().to_pylist()}
        return known | {failure.run for failure in self.quarantined().values()}

    def changed_parameters(self, previous: Mapping[str, str]) -> list[str]:
        """Operators whose parameter hash differs from ``previous``, added and removed ones included."""
        return sorted(k for k in {*previous, *self.parameters} if previous.get(k) != self.parameters.get(k))

    # ------------------------------------------------------------------------------------------------ commit

    def part(self, units: Iterable[str]) -> str:
        """Where the rows of exactly these units go."""
        ids = sorted(units)
        name = f"u-{ids[0]}" if len(ids) == 1 else f"g-{unit_id(*ids)}"
        return storage.join(self.parts, f"{name}.parquet")

    def commit(self, finished: list[Finished], code: str) -> None:
        """Write one part file with the rows and records of ``finished``: all of them are done, or none.

        Raises:
            KeyError: a result has a table, or a table a column, that the stage did not declare.
            pa.ArrowInvalid: a value of the wrong type.
            StoreError: it could not be written.
        """
        for item in finished:
            if unknown := set(item.result.tables) - set(self.tables):
                raise KeyError(f"tables unknown to this stage: {', '.join(sorted(unknown))}")
        records = {
            "unit": [item.unit.id for item in finished],
            "key": [item.unit.key for item in finished],
            "fingerprint": [item.unit.fingerprint for item in finished],
            "code": [code] * len(finished),
            "rows": [sum(table.num_rows for table in item.result.tables.values()) for item in finished],
            "seconds": [item.seconds for item in finished],
            "amount": [item.result.amount for item in finished],
            "timings": [json.dumps({k: round(v, 4) for k, v in item.result.timings.items()}) for item in finished],
            "finished": [time.time()] * len(finished),
            "run": [self.run] * len(finished),
        }
        columns = [pa.array(records[field.name], field.type) for field in RECORD]
        columns += [self._lists(name, [item.result.tables.get(name) for item in finished]) for name in self.tables]
        write_part(self.part(records["unit"]), pa.Table.from_arrays(columns, schema=self.schema))

    def _lists(self, name: str, tables: list[pa.Table | None]) -> pa.ListArray:
        """The column ``name`` of a part: the rows of each unit's table as one list; None: an empty one."""
        schema = self.tables[name]
        for table in tables:
            if table is not None and (unknown := set(table.schema.names) - set(schema.names)):
                raise KeyError(f"columns unknown to '{name}': {', '.join(sorted(unknown))}")
        given = [with_schema(table, schema) for table in tables if table is not None]
        rows = pa.concat_tables(given or [schema.empty_table()]).to_struct_array().combine_chunks()
        ends = np.cumsum([0, *(0 if table is None else table.num_rows for table in tables)], dtype=np.int32)
        return pa.ListArray.from_arrays(ends, rows, type=self.schema.field(name).type)

    def committed(self, units: Iterable[str]) -> bool:
        """Whether a part with exactly these units is in place (asked when its writer died before it could answer)."""
        return storage.exists(self.part(units))

    # ------------------------------------------------------------------------------------------------ read

    def _parts(self) -> list[storage.Entry]:
        return listing.files(self.parts, ".parquet")

    def done(self) -> set[str]:
        """Ids of all units that are done: a listing, plus one small column of the parts that hold several."""
        parts = self._parts()
        ids = {p.name[2:-8] for p in parts if p.name.startswith("u-")}
        grouped = [p.url for p in parts if not p.name.startswith("u-")]
        with ThreadPoolExecutor(8) as pool:
            for units in pool.map(units_of, grouped):
                ids.update(units)
        return ids

    def where(self) -> dict[str, str]:
        """The part file that holds each unit that is done, by unit."""
        parts = self._parts()
        found = {p.name[2:-8]: p.url for p in parts if p.name.startswith("u-")}
        grouped = [p.url for p in parts if not p.name.startswith("u-")]
        with ThreadPoolExecutor(8) as pool:
            for url, units in zip(grouped, pool.map(units_of, grouped), strict=True):
                found |= dict.fromkeys(units, url)
        return found

    def records(self) -> pa.Table:
        """The :data:`RECORD` columns of every unit, each unit once."""
        urls = [p.url for p in self._parts()]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda url: with_schema(read_part(url, RECORD.names), RECORD), urls))
        table = pa.concat_tables(found) if found else RECORD.empty_table()
        return table.take(pa.array(first_rows(table["unit"]), pa.int64()))

    def read(self, name: str, wanted: set[str] | None = None, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows of table ``name``, one arrow table per part file, each unit once.

        Args:
            wanted: only these units.
            columns: only these columns of the table (others are not read from the file).
        """
        schema = self.tables[name]
        keep = columns or schema.names
        kind = pa.list_(pa.struct([schema.field(column) for column in keep]))
        seen: set[str] = set()
        for part in self._parts():
            table = read_part(part.url, ["unit", *(f"{name}.list.element.{column}" for column in keep)])
            if name not in table.schema.names:  # an older version wrote it, which knew none of these columns
                table = read_part(part.url, ["unit", name])
            if name not in table.schema.names:  # nor the table
                continue
            ids = table["unit"].to_pylist()
            mask = []
            for unit in ids:
                mask.append(unit not in seen and (wanted is None or unit in wanted))
                seen.add(unit)
            if not all(mask):
                table = table.filter(pa.array(mask))
            rows = pc.list_flatten(table[name].cast(kind).combine_chunks())  # columns that a part lacks are null
            if len(rows):
                yield pa.Table.from_struct_array(rows).select(keep)

    def counts(self, name: str) -> dict[str, int]:
        """How many rows of table ``name`` every finished unit has."""
        column = self.tables[name].names[0]
        found: dict[str, int] = {}
        for part in self._parts():
            table = read_part(part.url, ["unit", f"{name}.list.element.{column}"])
            found |= dict(zip(table["unit"].to_pylist(), pc.list_value_length(table[name]).to_pylist(), strict=True))
        return found

    # ------------------------------------------------------------------------------------------------ quarantine

    def quarantine(self, failure: Failure) -> None:
        """Put a unit aside with its cause."""
        data = seal.json_text(asdict(failure if failure.run else replace(failure, run=self.run)))
        storage.write_bytes(storage.join(self.home, "quarantine", f"{failure.unit}.json"), data)

    def release(self, unit: str) -> None:
        """Take a unit out of quarantine."""
        storage.remove(storage.join(self.home, "quarantine", f"{unit}.json"))

    def quarantined(self) -> dict[str, Failure]:
        """Units given up, by id.

        Raises:
            Damaged: a file is.
        """
        files = listing.files(storage.join(self.home, "quarantine"), ".json")
        found = (read_failure(file.url) for file in files)
        return {failure.unit: failure for failure in found}

    def forget(self, units: set[str]) -> None:
        """Take units out of the ledger, so that they are computed again."""
        for part in self._parts():
            ids = units_of(part.url)
            if not units.intersection(ids):
                continue
            rest = read_part(part.url).filter(pa.array([unit not in units for unit in ids]))
            if rest.num_rows:
                write_part(self.part(rest["unit"].to_pylist()), rest, MERGED_GROUP)
            storage.remove(part.url)

    # ------------------------------------------------------------------------------------------------ merge

    def merge(self, target_mb: int = 64, fewer_than: int = 1000) -> int:
        """Join small part files into files of about ``target_mb`` when there are more than ``fewer_than``.

        Killed at any moment it leaves every unit in at least one part. Returns how many parts went away.
        """
        parts = [p for p in self._parts() if p.size < target_mb * 2**19]
        if len(parts) <= fewer_than:
            return 0
        gone = 0
        read = ((part, with_schema(read_part(part.url), self.schema)) for part in parts)
        for group, tables in groups(read, target_mb * 2**20):
            table = pa.concat_tables(tables)
            table = table.take(pa.array(first_rows(table["unit"]), pa.int64()))
            name = f"m-{unit_id(*sorted(table['unit'].to_pylist()))}.parquet"
            write_part(storage.join(self.parts, name), table, MERGED_GROUP)
            for part in group:
                if part.name != name:
                    storage.remove(part.url)
                    gone += 1
        return gone


def ledgers(root: str, tables: Mapping[str, pa.Schema]) -> list[Ledger]:
    """The ledgers of all parameters below ``root``.

    Raises:
        Damaged: it is not known for which parameters one of them is.
    """
    found = []
    for home in listing.folders(root):
        url = storage.join(home, "parameters.json")
        if (parameters := read_parameters(url, "the next `curate` sets it aside")) is None:
            continue
        if strict.digest(parameters) != storage.name_of(home):
            raise seal.Damaged(f"'{url}' is damaged (its folder has another name); the next `curate` sets it aside.")
        found.append(Ledger(root, tables, parameters))
    return found


def read_parameters(url: str, remedy: str) -> dict[str, str] | None:
    """Parameter hashes by operator, as ``parameters.json`` and ``latest.json`` hold them; None: no file is there.

    Raises:
        Damaged: something else is there.
    """
    found = seal.read_json(url, remedy)
    if found is not None and not all(isinstance(item, str) for item in found.values()):
        raise seal.Damaged(f"'{url}' is damaged (it holds something else than texts); {remedy}.")
    return found


def read_failure(url: str) -> Failure:
    """Raises Damaged: the file is no record of a failure."""
    remedy = "the next run sets it aside and tries the file again"
    try:
        return Failure(**(seal.read_json(url, remedy) or {}))
    except TypeError as error:
        raise seal.Damaged(f"'{url}' is damaged ({error}); {remedy}.") from error
