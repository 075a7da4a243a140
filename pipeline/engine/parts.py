"""The files of a ledger: Parquet parts with one row per unit, sealed, merged when there are many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline import parquet, storage
from pipeline.engine import seal

MERGED_GROUP = 1024
"""Units of a row group in a merged part: what is read to find the rows of one of them."""
_MERGED_MEMORY = 256 << 20  # bytes: long captions that repeat are small on disk only, and a column ends at 2 GB


def groups(
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


def read_part(url: str, columns: list[str] | None = None) -> pa.Table:
    """Raises Damaged: the part cannot be read (it was damaged after :func:`mend` looked)."""
    try:
        with parquet.opened(url) as file:
            return file.read(columns=columns, use_threads=False).replace_schema_metadata(None)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise seal.Damaged(f"'{url}' cannot be read ({error}); the next run sets it aside: run again.") from error


def with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` with these columns; those that it lacks, because an older version wrote it, are null."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.schema.names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def units_of(url: str) -> list[str]:
    units: list[str] = read_part(url, ["unit"])["unit"].to_pylist()
    return units


def first_rows(units: pa.ChunkedArray) -> list[int]:
    seen: dict[str, int] = {}
    for index, unit in enumerate(units.to_pylist()):
        seen.setdefault(unit, index)
    return list(seen.values())
