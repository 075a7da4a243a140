"""Finds every member and every single tensor of a shard, so that training reads tensors without opening a tar.

The scan never extracts, links or unpickles: it reads tar headers and safetensors headers, and refuses what a shard
may not hold.
"""

from __future__ import annotations

import hashlib
import json
import math
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import xxhash

from configs.dataset_schema import INDEX
from configs.errors import EchoForgeError
from pipeline.dataset.tar import EXTENSIONS

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I32": 4, "I64": 8, "U8": 1, "BOOL": 1}
MAX_HEADER = 1 << 20
"""Bytes of a safetensors header; ours are a few kB."""


class BadShard(EchoForgeError):
    """A tar holds something that a shard may not hold."""


@dataclass(frozen=True)
class Member:
    """One file of a shard: ``length`` bytes at ``offset`` of the tar."""

    sample_id: str
    ext: str
    offset: int
    length: int


def members(stream: IO[bytes], where: str) -> Iterator[Member]:
    """The members of the tar in ``stream`` (seekable), in order.

    Raises:
        BadShard: not a tar, cut short, a member that is no regular file, or a name that is not ``<id>.<known>``.
    """
    size = stream.seek(0, 2)
    stream.seek(0)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for info in tar:
                sample, _, ext = info.name.partition(".")
                if not info.isreg() or info.sparse is not None:
                    raise BadShard(f"{where}: '{_printable(info.name)}' is not a regular file (type {info.type!r}).")
                if not sample.isalnum() or not sample.isascii() or ext not in EXTENSIONS:
                    raise BadShard(f"{where}: '{_printable(info.name)}' is not a name that a shard holds.")
                if info.offset_data + info.size > size:
                    raise BadShard(f"{where}: '{info.name}' reaches beyond the end of the tar: it is cut short.")
                yield Member(sample, ext, info.offset_data, info.size)
    except tarfile.TarError as error:
        raise BadShard(f"{where}: not a readable tar ({error}).") from error


def tensors(stream: IO[bytes], member: Member, tar: str, *, sha256: bool = True) -> list[dict[str, Any]]:
    """The ``tensors`` entries (INDEX) of one safetensors member; offsets are counted in the tar.

    Args:
        sha256: False leaves that digest empty: it takes ten times as long as XXH3.

    Raises:
        BadShard: the header is not one, or its sizes contradict each other or the member.
    """
    where = f"{tar}: {member.sample_id}.{member.ext}"
    stream.seek(member.offset)
    head = int.from_bytes(stream.read(8), "little")
    if not 0 < head <= min(MAX_HEADER, member.length - 8):
        raise BadShard(f"{where}: not a safetensors file.")
    try:
        header = json.loads(stream.read(head))
        items = [(name, item) for name, item in header.items() if name != "__metadata__"]
        rows = [_entry(name, item, member, head, tar, where) for name, item in items]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadShard(f"{where}: its safetensors header cannot be read ({error}).") from error
    for row in rows:
        stream.seek(row["offset"])
        data = stream.read(row["length"])
        row["sha256"], row["xxh3"] = _sha256(data) if sha256 else "", xxhash.xxh3_64_hexdigest(data)
    return sorted(rows, key=lambda row: row["name"])


def scan(stream: IO[bytes], tar: str, *, sha256: bool = True) -> dict[str, dict[str, Any]]:
    """For every sample of the tar: its ``members`` and ``tensors`` columns. ``tar`` is relative to the dataset.

    Args:
        sha256: as in :func:`tensors`; of members likewise.

    Raises:
        BadShard: see :func:`members` and :func:`tensors`; also a member that comes twice.
    """
    samples: dict[str, dict[str, Any]] = {}
    for member in list(members(stream, tar)):
        sample = samples.setdefault(member.sample_id, {"members": [], "tensors": []})
        if any(member.ext == other["ext"] for other in sample["members"]):
            raise BadShard(f"{tar}: '{member.sample_id}.{member.ext}' comes twice.")
        stream.seek(member.offset)
        digest = _sha256(stream.read(member.length)) if sha256 else None
        entry = {"ext": member.ext, "tar": tar, "offset": member.offset, "length": member.length, "sha256": digest}
        sample["members"].append(entry)
        if member.ext == "safetensors":
            sample["tensors"] = tensors(stream, member, tar, sha256=sha256)
    return samples


def _entry(name: str, item: dict[str, Any], member: Member, head: int, tar: str, where: str) -> dict[str, Any]:
    begin, end = (int(v) for v in item["data_offsets"])
    shape = [int(v) for v in item["shape"]]
    if item["dtype"] not in ITEM_BYTES:
        raise BadShard(f"{where}: tensor '{name}' has dtype {item['dtype']!r}, which a shard may not hold.")
    if not 0 <= begin <= end <= member.length - 8 - head or min(shape, default=0) < 0:
        raise BadShard(f"{where}: tensor '{name}' lies outside its file.")
    if math.prod(shape) * ITEM_BYTES[item["dtype"]] != end - begin:
        raise BadShard(f"{where}: tensor '{name}' says {shape} {item['dtype']} but has {end - begin} bytes.")
    return {
        "name": name,
        "tar": tar,
        "offset": member.offset + 8 + head + begin,
        "length": end - begin,
        "dtype": item["dtype"],
        "shape": shape,
        "sha256": "",
        "xxh3": "",
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _printable(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()[:80]


def index_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows → the index (schema ``configs.dataset_schema.INDEX``), sorted by sample id; missing columns are null.

    Raises:
        KeyError: a column that the index does not have.
    """
    names = set(INDEX.names)
    for row in rows:
        if unknown := set(row) - names:
            raise KeyError(f"columns unknown to the index: {', '.join(sorted(unknown))}")
    complete = [{name: row.get(name) for name in INDEX.names} for row in rows]
    return pa.Table.from_pylist(complete, schema=INDEX).sort_by("sample_id")
