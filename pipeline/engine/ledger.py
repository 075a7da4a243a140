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

Parts carry a digest of themselves (`pipeline/engine/seal.py`). What is damaged is set aside by :func:`mend` (``….damaged``, no
name that anything here reads), so that its units are missing and are computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from configs import strict
from configs.paths import absolute
from configs.runtime import stopping
from configs.runtime.shown import one_line
from pipeline import storage
from pipeline.engine import seal

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
"""Beside the ledgers of a catalog: what `catalog relocate` keeps (`pipeline/catalog/relocate.py`)."""
Rows = Mapping[str, list[dict[str, Any]]]
MERGED_GROUP = 1024
"""Units of a row group in a merged part: what is read to find the rows of one of them."""
_SAID = 20  # files that are named one by one when they are set aside
_WHY = 200  # characters of a library's message
_MANY = 5000  # parts: about ten seconds, at the 2 ms that one takes on a disk


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work.

    ``id`` must be a pure function of the input (source, span, fingerprint) and be usable as a file name; ``payload``
    is small and travels to the worker; ``cost`` orders units, dearest first, in any consistent measure.
    """

    id: str
    payload: Any
    key: str = ""
    fingerprint: str = ""
    cost: float = 1.0
    budget_s: float = 600.0


@dataclass(frozen=True)
class Result:
    """What a worker made of a unit: rows per table, seconds of video seen, seconds per operator."""

    tables: Rows
    amount: float = 0.0
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A unit with its result, ready to be committed."""

    unit: Unit
    result: Result
    seconds: float


@dataclass(frozen=True)
class Failure:
    """A unit given up."""

    unit: str
    key: str
    fingerprint: str
    cause: str  # one sentence
    detail: str  # traceback or last words of the process
    attempts: int
    time: float  # Unix time, for people
    run: int = 0  # as in `RECORD`; 0: of an older version

    def __post_init__(self) -> None:
        """Raises TypeError: a value of the wrong type, as a damaged file has."""
        for name in ("unit", "key", "fingerprint", "cause", "detail"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"'{name}' is no text")
        if not all(isinstance(getattr(self, name), (int, float)) for name in ("attempts", "time", "run")):
            raise TypeError("a number is none")


def unit_id(*parts: object) -> str:
    """Deterministic id of a unit from what it depends on: 20 hex digits."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:20]


@cache
def code_version() -> str:
    """Version of this package and, in a checkout, the git revision (with ``+`` when files differ from it).

    The version of a checkout is that of its pyproject.toml: the metadata may be those of another installation.
    """
    root = Path(__file__).resolve().parents[2]
    version = _version_of_checkout(root)
    if version is None:
        try:
            return metadata.version("echoforge")
        except metadata.PackageNotFoundError:
            return "unknown"
    if not (root / ".git").exists():
        return version
    try:
        revision = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version} {revision}{'+' if changed else ''}"


def _version_of_checkout(root: Path) -> str | None:
    project = root / "pyproject.toml"
    if not project.is_file():
        return None
    facts = tomllib.loads(project.read_text("utf-8")).get("project", {})
    return str(facts["version"]) if facts.get("name") == "echoforge" else None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]  # a look leaves no lock in the checkout
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


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
            found = list(pool.map(lambda part: _with_schema(_read(part.url, ["run"]), _RUN)["run"], self._parts()))
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
            KeyError: a row has a column, or a result a table, that the stage did not declare.
            pa.ArrowInvalid: a value of the wrong type.
            StoreError: it could not be written.
        """
        columns: dict[str, list[Any]] = {name: [] for name in self.schema.names}
        for item in finished:
            result = item.result
            if unknown := set(result.tables) - set(self.tables):
                raise KeyError(f"tables unknown to this stage: {', '.join(sorted(unknown))}")
            for name, schema in self.tables.items():
                rows = result.tables.get(name, [])
                for row in rows:
                    if unknown := set(row) - set(schema.names):
                        raise KeyError(f"columns unknown to '{name}': {', '.join(sorted(unknown))}")
                columns[name].append(rows)
            record = {
                "unit": item.unit.id,
                "key": item.unit.key,
                "fingerprint": item.unit.fingerprint,
                "code": code,
                "rows": sum(len(rows) for rows in result.tables.values()),
                "seconds": item.seconds,
                "amount": result.amount,
                "timings": json.dumps({k: round(v, 4) for k, v in result.timings.items()}),
                "finished": time.time(),
                "run": self.run,
            }
            for name, value in record.items():
                columns[name].append(value)
        arrays = [pa.array(columns[f.name], type=f.type) for f in self.schema]
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        write_part(self.part(item.unit.id for item in finished), table)

    def committed(self, units: Iterable[str]) -> bool:
        """Whether a part with exactly these units is in place (asked when its writer died before it could answer)."""
        return storage.exists(self.part(units))

    # ------------------------------------------------------------------------------------------------ read

    def _parts(self) -> list[storage.Entry]:
        return storage.listing(self.parts, ".parquet")

    def done(self) -> set[str]:
        """Ids of all units that are done: a listing, plus one small column of the parts that hold several."""
        parts = self._parts()
        ids = {p.name[2:-8] for p in parts if p.name.startswith("u-")}
        grouped = [p.url for p in parts if not p.name.startswith("u-")]
        with ThreadPoolExecutor(8) as pool:
            for units in pool.map(_units, grouped):
                ids.update(units)
        return ids

    def where(self) -> dict[str, str]:
        """The part file that holds each unit that is done, by unit."""
        parts = self._parts()
        found = {p.name[2:-8]: p.url for p in parts if p.name.startswith("u-")}
        grouped = [p.url for p in parts if not p.name.startswith("u-")]
        with ThreadPoolExecutor(8) as pool:
            for url, units in zip(grouped, pool.map(_units, grouped), strict=True):
                found |= dict.fromkeys(units, url)
        return found

    def records(self) -> pa.Table:
        """The :data:`RECORD` columns of every unit, each unit once."""
        urls = [p.url for p in self._parts()]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda url: _with_schema(_read(url, RECORD.names), RECORD), urls))
        table = pa.concat_tables(found) if found else RECORD.empty_table()
        return table.take(pa.array(_first(table["unit"]), pa.int64()))

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
            table = _read(part.url, ["unit", *(f"{name}.list.element.{column}" for column in keep)])
            if name not in table.schema.names:  # an older version wrote it, which knew none of these columns
                table = _read(part.url, ["unit", name])
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
            table = _read(part.url, ["unit", f"{name}.list.element.{column}"])
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
        files = storage.listing(storage.join(self.home, "quarantine"), ".json")
        found = (_failure(file.url) for file in files)
        return {failure.unit: failure for failure in found}

    def forget(self, units: set[str]) -> None:
        """Take units out of the ledger, so that they are computed again."""
        for part in self._parts():
            ids = _units(part.url)
            if not units.intersection(ids):
                continue
            rest = _read(part.url).filter(pa.array([unit not in units for unit in ids]))
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
        read = ((part, _with_schema(_read(part.url), self.schema)) for part in parts)
        for group, tables in _groups(read, target_mb * 2**20):
            table = pa.concat_tables(tables)
            table = table.take(pa.array(_first(table["unit"]), pa.int64()))
            name = f"m-{unit_id(*sorted(table['unit'].to_pylist()))}.parquet"
            write_part(storage.join(self.parts, name), table, MERGED_GROUP)
            for part in group:
                if part.name != name:
                    storage.remove(part.url)
                    gone += 1
        return gone


_MERGED_MEMORY = 256 << 20  # bytes: long captions that repeat are small on disk only, and a column ends at 2 GB


def _groups(
    parts: Iterable[tuple[storage.Entry, pa.Table]], size: int
) -> Iterator[tuple[list[storage.Entry], list[pa.Table]]]:
    group: list[storage.Entry] = []
    tables: list[pa.Table] = []
    total = held = 0
    for part, table in parts:
        group.append(part)
        tables.append(table)
        total, held = total + part.size, held + table.nbytes
        if total >= size or held >= _MERGED_MEMORY or len(group) >= 4096:
            yield group, tables
            group, tables, total, held = [], [], 0, 0
    if len(group) > 1:
        yield group, tables


def write_part(url: str, table: pa.Table, row_group: int | None = None) -> None:
    """Put a part at ``url``, replacing what was there in one step.

    Raises:
        StoreError: it cannot be written.
    """
    storage.write_bytes(url, seal.parquet(table.replace_schema_metadata(None), row_group))


def _read(url: str, columns: list[str] | None = None) -> pa.Table:
    """Raises Damaged: the part cannot be read (it was damaged after :func:`mend` looked)."""
    try:
        with storage.parquet(url) as file:
            return file.read(columns=columns, use_threads=False).replace_schema_metadata(None)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise seal.Damaged(f"'{url}' cannot be read ({error}); the next run sets it aside: run again.") from error


def _with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` with these columns; those that it lacks, because an older version wrote it, are null."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.schema.names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _units(url: str) -> list[str]:
    units: list[str] = _read(url, ["unit"])["unit"].to_pylist()
    return units


def _first(units: pa.ChunkedArray) -> list[int]:
    seen: dict[str, int] = {}
    for index, unit in enumerate(units.to_pylist()):
        seen.setdefault(unit, index)
    return list(seen.values())


# ------------------------------------------------------------------------------------------------ damage


def ledgers(root: str, tables: Mapping[str, pa.Schema]) -> list[Ledger]:
    """The ledgers of all parameters below ``root``.

    Raises:
        Damaged: it is not known for which parameters one of them is.
    """
    found = []
    for home in storage.folders(root):
        url = storage.join(home, "parameters.json")
        if (parameters := read_parameters(url, "the next `curate` sets it aside")) is None:
            continue
        if strict.digest(parameters) != storage.name_of(home):
            raise seal.Damaged(f"'{url}' is damaged (its folder has another name); the next `curate` sets it aside.")
        found.append(Ledger(root, tables, parameters))
    return found


def mend(root: str, tables: Mapping[str, pa.Schema], say: Callable[[str], None]) -> None:
    """Set aside everything below ``root`` that is damaged: units whose part is gone are missing, and computed again.

    Reads every part once, from the first byte to the last (at the speed of the disk).

    Args:
        say: is told each file.
    """
    parts = sum(len(storage.listing(storage.join(home, "parts"), ".parquet")) for home in storage.folders(root))
    if parts > _MANY:
        say(f"looking through {parts} parts of the ledger in '{root}' for damage; this may take minutes …")
    for number, (url, why) in enumerate(_damaged(root, tables, [0])):
        there = storage.set_aside(url)
        if number < _SAID:
            say(f"'{url}' is damaged ({why}): it is now '{storage.name_of(there)}'; what is lost is computed again.")
        elif number == _SAID:
            say("more of them are set aside likewise.")


def damages(root: str, looked: list[int], tables: Mapping[str, pa.Schema] | None = None) -> Iterator[str]:
    """One clause for everything below ``root`` that is damaged; ``looked`` counts the files."""
    for url, why in _damaged(root, tables or {}, looked):
        yield f"'{url}' is damaged ({why})"


def _damaged(root: str, tables: Mapping[str, pa.Schema], looked: list[int]) -> Iterator[tuple[str, str]]:
    """Place and reason."""
    for name, check in (("latest.json", _json_fault), (MOVED_FILE, _parquet_fault)):
        yield from _faults([storage.join(root, name)], check, looked)
    for home in storage.folders(root):
        yield from _faults([storage.join(home, "parameters.json")], _parameters_fault, looked)
        if not storage.exists(storage.join(home, "parameters.json")) and not storage.exists(
            storage.join(home, "parts")
        ):
            continue
        for name, suffix, check in (
            ("parts", ".parquet", lambda url: _part_fault(url, tables)),
            ("quarantine", ".json", _failure_fault),
        ):
            folder = storage.join(home, name)
            if storage.is_file(folder) is not None and not storage.is_folder(folder):
                yield folder, "it is no folder"
            else:
                yield from _faults(storage.everything(folder, suffix), check, looked)


def _faults(urls: list[str], check: Callable[[str], str | None], looked: list[int]) -> Iterator[tuple[str, str]]:
    """What ``check`` finds; files that are gone meanwhile are passed over."""

    def one(url: str) -> str | None:
        there = storage.is_file(url)
        if there is None:
            return None
        try:
            return check(url) if there else "it is no file"
        except FileNotFoundError:
            return None
        except (seal.Damaged, pa.ArrowException, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            return one_line(error)[:_WHY].rstrip(".")

    with ThreadPoolExecutor(4) as pool:  # parts are in memory, whole: few at a time
        try:
            for url, why in zip(urls, pool.map(one, urls), strict=True):
                stopping.check()
                looked[0] += 1
                if why:
                    yield url, why
        finally:
            pool.shutdown(cancel_futures=True)  # else a stop would wait for all of them


def _parquet_fault(url: str) -> str | None:
    data = storage.read_bytes(url)
    whole = seal.intact(data)
    if whole is False:
        return "it is not as it was written"
    with pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True) as file:
        if whole is None:  # an older version wrote it: what can be decoded is believed
            for group in range(file.num_row_groups):
                file.read_row_group(group)
    return None


def _part_fault(url: str, tables: Mapping[str, pa.Schema]) -> str | None:
    data = storage.read_bytes(url)
    whole = seal.intact(data)
    if whole is False:
        return "it is not as it was written"
    with pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True) as file:
        schema = file.schema_arrow
        empty = schema.empty_table()
        for field in RECORD:
            if field.name in schema.names:
                empty[field.name].cast(field.type)
            elif field.name != "run":
                return f"it has no column '{field.name}'"
        for name in tables:
            if name in schema.names:
                empty[name].cast(pa.list_(pa.struct(list(tables[name]))))
        if whole is None and "run" in schema.names:
            return "it has lost its digest"
        if whole is None:
            for group in range(file.num_row_groups):
                file.read_row_group(group)
        units = file.read(columns=["unit"])["unit"].to_pylist()
    name = storage.name_of(url)
    if not all(units) or (name.startswith("u-") and units != [name[2:-8]]):
        return "it is of another unit than its name says"
    return None


def _json_fault(url: str) -> str | None:
    read_parameters(url, "")
    return None


def _parameters_fault(url: str) -> str | None:
    digest = strict.digest(read_parameters(url, ""))
    return None if digest == storage.name_of(url.rpartition("/")[0]) else "its folder has another name"


def read_parameters(url: str, remedy: str) -> dict[str, str] | None:
    """Parameter hashes by operator, as ``parameters.json`` and ``latest.json`` hold them; None: no file is there.

    Raises:
        Damaged: something else is there.
    """
    found = seal.read_json(url, remedy)
    if found is not None and not all(isinstance(item, str) for item in found.values()):
        raise seal.Damaged(f"'{url}' is damaged (it holds something else than texts); {remedy}.")
    return found


def _failure_fault(url: str) -> str | None:
    return None if _failure(url).unit == storage.name_of(url)[:-5] else "it is of another unit than its name says"


def _failure(url: str) -> Failure:
    """Raises Damaged: the file is no record of a failure."""
    remedy = "the next run sets it aside and tries the file again"
    try:
        return Failure(**(seal.read_json(url, remedy) or {}))
    except TypeError as error:
        raise seal.Damaged(f"'{url}' is damaged ({error}); {remedy}.") from error
