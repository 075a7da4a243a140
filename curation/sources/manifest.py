"""Tables (CSV, TSV, Parquet) and lists that name videos."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import EchoForgeError
from configs.paths import absolute
from configs.runtime.shown import one_line
from curation import spreadsheet
from curation.caption_files import CAPTION_BYTES
from curation.sidecars import FACT_BYTES, checked
from curation.sources.source import Source, span_of

URI_BYTES = 4096
"""Of a name in a manifest: Linux' PATH_MAX; object stores take 1024."""
SPANS = 10_000
"""Of one video: a new clip every second for three hours."""
_TABLE_BYTES = 4 << 30  # of a Parquet manifest, unpacked: ten million rows of 400 bytes
_NAMES = ("uri", "source_uri", "path", "url", "file", "video")


class _Row(NamedTuple):
    """The cells of a manifest's row that are used; of a Parquet file they may be anything."""

    uri: object = None
    start: object = None  # seconds
    end: object = None
    source: object = None
    licence: object = None
    speaker: object = None
    caption: object = None

    @classmethod
    def of(cls, columns: _Columns, cell: Callable[[str], object]) -> _Row:
        """Of columns that mean the same, the first that holds something; ``cell``: of a column, None where there is none."""
        return cls(*[_first(names, cell) for names in columns])


def _first(names: tuple[str, ...], cell: Callable[[str], object]) -> object:
    for name in names:
        if not _empty(found := cell(name)):
            return found
    return None


_Columns = tuple[tuple[str, ...], ...]
"""Names of columns for each field of :class:`_Row`."""


def _columns(caption: str) -> _Columns:
    return _NAMES, ("start", "start_s"), ("end", "end_s"), ("source",), ("licence", "license"), ("speaker",), (caption,)


def read_table(name: str, caption: str) -> Iterator[Source]:
    """CSV, TSV or Parquet: a column uri (or path, url, file, video), and if present start, end (seconds), licence,
    source, speaker, and the column of captions. Rows of one uri become its spans.

    A row that cannot be used is a source with a fault, so that it becomes a row of the catalog.

    Args:
        caption: name of the column of captions.

    Raises:
        EchoForgeError: it cannot be read as what its name says, or has no column of names.
    """
    found: dict[str, Source] = {}
    spans: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(_rows(name, _columns(caption)), 1):
        item = _source(row, name, number, caption)
        first = found.setdefault(item.uri, item)
        if item.fault and not first.fault:
            found[item.uri] = replace(first, fault=item.fault)
        if len(seen := spans.setdefault(item.uri, [])) <= SPANS:
            seen.extend(item.spans)
    for uri, item in found.items():
        if len(spans[uri]) > SPANS:
            item = replace(item, fault=f"{name} gives it more than {SPANS} spans; give the whole video instead.")
        yield replace(item, spans=() if item.fault else tuple(sorted(spans[uri])))


def read_list(name: str) -> Iterator[Source]:
    """EMTD and the like: one video a line, optionally followed by start and end in seconds."""
    with fsspec.open(name, "rb") as file:
        for number, line in enumerate(spreadsheet.lines(file, name), 1):
            uri, *times = line.strip().split("\t") if "\t" in line else [line.strip()]
            if uri and not uri.startswith("#"):
                yield _source(_Row(uri, *(t or None for t in times[:2] if len(times) >= 2)), name, number)


def _source(row: _Row, name: str, number: int, caption: str = "") -> Source:
    """The source of a row. Where it names no file that could be looked for, the row's number stands for it."""
    uri = f"{name}#row {number}"
    try:
        uri = _beside(name, _checked_uri(row.uri))
        if (row.start is None) != (row.end is None):
            raise EchoForgeError("has one end of a span only; give start and end, or neither.")
        return Source(
            uri,
            source=_fact(row.source, "source") or PurePosixPath(name).stem,
            licence=_fact(row.licence, "licence"),
            spans=() if row.start is None else (span_of(row.start, row.end, "it"),),
            caption=_fact(row.caption, caption, CAPTION_BYTES),
            speaker=_fact(row.speaker, "speaker"),
        )
    except (EchoForgeError, ValueError) as error:  # ValueError: an address that cannot be taken apart
        return Source(uri, source=PurePosixPath(name).stem, fault=f"row {number} of {name}: {error}")


def _checked_uri(given: object) -> str:
    if given is None:
        raise EchoForgeError("it names no video.")
    if not isinstance(given, str):
        raise EchoForgeError(f"the name of its video is {type(given).__name__} ({given!r:.80}) and no text.")
    checked(given, URI_BYTES, "the name of its video")
    if "\0" in given:
        raise EchoForgeError(f"the name of its video holds a zero byte ('{one_line(given)[:80]}').")
    if "::" in given and "://" in given:
        raise EchoForgeError(f"'{one_line(given)[:80]}' chains addresses, which is not followed; copy the file first.")
    return given


def _fact(cell: object, key: str, most: int = FACT_BYTES) -> str | None:
    """The text in a cell; numbers (of speakers, say) as they are written; None where there is none."""
    if cell is None:
        return None
    if isinstance(cell, (int, float)) and not isinstance(cell, bool):
        return f"{cell:.15g}" if isinstance(cell, float) else str(cell)
    if not isinstance(cell, str):
        raise EchoForgeError(f"its '{key}' is {type(cell).__name__} and no text.")
    return checked(cell, most, f"its '{key}'")


def _empty(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _beside(name: str, uri: str) -> str:
    """``uri`` as it is when it is absolute or a URL, else relative to the file ``name``."""
    if uri.startswith("/") or "://" in uri or Path(uri).is_absolute():
        return uri
    beside = str(PurePosixPath(name).parent / uri)
    return absolute(beside) if ".." in uri else beside


def _rows(name: str, columns: _Columns) -> Iterator[_Row]:
    with fsspec.open(name, "rb") as file:
        if name.lower().endswith(".parquet"):
            yield from _parquet(file, name, columns)
            return
        for number, row in enumerate(spreadsheet.rows(file, name)):
            if not number:
                _check_named(row, name)
            yield _Row.of(columns, row.get)


def _check_named(columns: Iterable[str], name: str) -> None:
    if not set(_NAMES) & set(columns):
        raise EchoForgeError(f"{name} has no column that names the videos; call it 'uri' or 'path'.")


def _parquet(file: IO[bytes], name: str, columns: _Columns) -> Iterator[_Row]:
    try:
        with pq.ParquetFile(file) as table:
            names = [n for n in dict.fromkeys(chain(*columns)) if n in table.schema_arrow.names]
            groups = (table.metadata.row_group(i) for i in range(table.num_row_groups))
            if sum(group.total_byte_size for group in groups) > _TABLE_BYTES:
                raise EchoForgeError(f"'{name}' unpacks to more than {_TABLE_BYTES >> 30} GB; split it.")
            for batch in table.iter_batches(batch_size=1024, columns=names):
                if batch.num_rows:
                    _check_named(names, name)
                for cells in zip(*(_values(batch.column(n)) for n in names), strict=True):
                    yield _Row.of(columns, dict(zip(names, cells, strict=True)).get)
    except (pa.ArrowException, OSError, KeyError, ValueError, OverflowError) as error:
        raise EchoForgeError(f"'{name}' is not a readable Parquet file ({error}); write it again.") from error


def _values(column: pa.Array) -> list[Any]:
    """The cells of a column. Text that is not UTF-8 (nothing checks it in a file) has lone surrogates."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        raw = column.cast(pa.binary() if pa.types.is_string(column.type) else pa.large_binary()).to_pylist()
        return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in raw]
    cells: list[Any] = column.to_pylist()
    return cells
