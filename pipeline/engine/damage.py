"""Damaged files of a ledger: found by reading all of it, and set aside so that their units are computed again."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from configs import strict
from configs.runtime import stopping
from configs.runtime.shown import one_line
from pipeline import damaged, listing, storage
from pipeline.engine import seal
from pipeline.engine.ledger import MOVED_FILE, RECORD, read_failure, read_parameters

_SAID = 20  # files that are named one by one when they are set aside
_WHY = 200  # characters of a library's message
_MANY = 5000  # parts: about ten seconds, at the 2 ms that one takes on a disk


def mend(root: str, tables: Mapping[str, pa.Schema], say: Callable[[str], None]) -> None:
    """Set aside everything below ``root`` that is damaged: units whose part is gone are missing, and computed again.

    Reads every part once, from the first byte to the last (at the speed of the disk).

    Args:
        say: is told each file.
    """
    parts = sum(len(listing.files(storage.join(home, "parts"), ".parquet")) for home in listing.folders(root))
    if parts > _MANY:
        say(f"looking through {parts} parts of the ledger in '{root}' for damage; this may take minutes …")
    for number, (url, why) in enumerate(_damaged(root, tables, [0])):
        there = damaged.set_aside(url)
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
    for home in listing.folders(root):
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
            if damaged.is_file(folder) is not None and not damaged.is_folder(folder):
                yield folder, "it is no folder"
            else:
                yield from _faults(damaged.everything(folder, suffix), check, looked)


def _faults(urls: list[str], check: Callable[[str], str | None], looked: list[int]) -> Iterator[tuple[str, str]]:
    """What ``check`` finds; files that are gone meanwhile are passed over."""

    def one(url: str) -> str | None:
        there = damaged.is_file(url)
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


def _failure_fault(url: str) -> str | None:
    return None if read_failure(url).unit == storage.name_of(url)[:-5] else "it is of another unit than its name says"
