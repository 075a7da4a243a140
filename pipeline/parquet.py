"""Parquet files, local or in an object store: written atomically, opened with their checksums compared."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from configs.paths import is_remote
from pipeline import storage


def write(url: str, table: pa.Table, row_group: int | None = None) -> None:
    """Write a Parquet file atomically (zstd), with ``row_group`` rows in a row group (None: the library's choice)."""
    with storage.writing(url) as path:
        pq.write_table(table, path, compression="zstd", row_group_size=row_group, write_page_checksum=True)


@contextlib.contextmanager
def opened(url: str) -> Iterator[pq.ParquetFile]:
    """An open Parquet file, local or remote; checksums of its pages, where it has some, are compared when they are read.

    Reads from a store are tried again (`storage.retrying`).

    Raises:
        FileNotFoundError: nothing is there.
        StoreError: the store failed again and again; from reading the file as well.
        OSError, pa.ArrowException: it is damaged, or no Parquet file.
    """
    if not is_remote(url):
        if not storage.local(url).is_file() and storage.local(url).exists():  # a pipe would be waited for
            raise OSError(f"'{url}' is no file")
        with pq.ParquetFile(storage.local(url), page_checksum_verification=True) as file:
            yield file
        return
    fs, path = storage.filesystem(url)
    opened = storage.retrying(lambda: fs.open(path, "rb"), f"reading '{url}'")
    with opened as raw, pq.ParquetFile(_Patient(raw, url), page_checksum_verification=True) as file:
        yield file


class _Patient(io.RawIOBase):
    """An open object whose reads are tried again: one that failed leaves the position where it was."""

    def __init__(self, raw: Any, url: str) -> None:
        self._raw, self._url = raw, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._raw.seek(offset, whence))

    def tell(self) -> int:
        return int(self._raw.tell())

    def read(self, size: int = -1) -> bytes:
        return bytes(storage.retrying(lambda: self._raw.read(size), f"reading '{self._url}'"))
