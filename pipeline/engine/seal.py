"""Files that carry a digest of themselves, so that damage is noticed without a second file that must agree with them.

The digest (XXH3-128, 32 hex digits) stands in the file under :data:`KEY` and was taken while zeros stood in its place:
in Parquet as key-value metadata of the footer, in JSON as the last entry. It finds damage, not forgery: whoever can
write the file can seal it. Chosen over Parquet's page checksums, which leave page headers and the footer (names of
columns, places of pages) uncovered, and over SHA-256, which takes ten times as long on a CPU without instructions for it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from configs.errors import EchoForgeError
from configs.paths import is_remote
from pipeline import storage

KEY = "echoforge-xxh3"
_ZEROS = b"0" * 32
_BETWEEN = (b"\x18\x20", b'": "')  # of key and value: Thrift's compact protocol (a binary of 32 bytes), JSON


class Damaged(EchoForgeError):
    """A file of ours that is not as it was written."""


def digest(data: bytes) -> str:
    """XXH3-128 of ``data``, 32 hex digits."""
    return str(xxhash.xxh3_128_hexdigest(data))


def digest_of(url: str) -> str | None:
    """:func:`digest` of a file, read piece by piece where it is local; None: no file is there."""
    if is_remote(url):
        try:
            return digest(storage.read_bytes(url))
        except FileNotFoundError:
            return None
    path = storage.local(url)
    if not path.is_file():
        return None
    whole = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while piece := stream.read(2**22):
            whole.update(piece)
    return whole.hexdigest()


def parquet(table: pa.Table, row_group: int | None = None) -> bytes:
    """``table`` as a sealed Parquet file (zstd), with ``row_group`` rows in a row group (None: the library's choice)."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        writer.write_table(table, row_group_size=row_group)
        writer.add_key_value_metadata({KEY: _ZEROS.decode()})
    return _sealed(sink.getvalue())


def json_text(value: Mapping[str, Any]) -> bytes:
    """``value`` as sealed JSON."""
    return _sealed(json.dumps({**value, KEY: _ZEROS.decode()}, indent=1, ensure_ascii=False).encode())


def intact(data: bytes) -> bool | None:
    """Whether a sealed file is as it was written; None: it has no seal (an older version wrote it)."""
    place = _place(data)
    if place is None:
        return None
    return digest(data[:place] + _ZEROS + data[place + 32 :]).encode() == data[place : place + 32]


def _sealed(data: bytes) -> bytes:
    place = _place(data)
    if place is None:
        raise AssertionError("no place for the seal")
    return data[:place] + digest(data).encode() + data[place + 32 :]


def _place(data: bytes) -> int | None:
    """Where the digest begins. The last key is the one: what comes after it in both formats is ours."""
    at = data.rfind(KEY.encode())
    for between in _BETWEEN:
        begin = at + len(KEY) + len(between)
        if at >= 0 and data[begin - len(between) : begin] == between and begin + 32 <= len(data):
            return begin
    return None


def read_json(url: str, remedy: str, *, sealed: bool = False) -> dict[str, Any] | None:
    """A JSON object that this program wrote; None: nothing is there.

    Args:
        remedy: what the error tells to do, without a full stop.
        sealed: one without a seal is damaged.

    Raises:
        Damaged: something else is there; names the file.
    """
    try:
        data = storage.read_bytes(url) if is_remote(url) else _read_regular(url)
        if not intact(data) and (sealed or intact(data) is False):
            raise ValueError("it is not as it was written")
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError, OSError) as error:
        raise Damaged(f"'{url}' is damaged ({str(error).rstrip('.')}); {remedy}.") from error
    found.pop(KEY, None)
    return found


def _read_regular(url: str) -> bytes:
    """The bytes of a local file; a folder, a device or a pipe (which would be waited for) is refused.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no file, or one that is larger than any of ours.
    """
    path = storage.local(url)
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is no file")
    if size > MOST:
        raise ValueError(f"it has {size} bytes")
    return path.read_bytes()


MOST = 2**30
"""Bytes: a ``tables.json`` of five million parts. More is no file of ours."""
