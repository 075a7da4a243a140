"""Finds every member and every single tensor of a shard, so that training reads tensors without opening a tar.

The scan never extracts, links or unpickles: it reads tar headers and safetensors headers, and refuses what a shard
may not hold.
"""

from __future__ import annotations

import hashlib
import json
import math
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import IO

import pyarrow as pa
import xxhash

from configs.dataset_schema import INDEX
from configs.errors import EchoForgeError
from curation import schema
from pipeline.dataset.sample import PlannedSample
from pipeline.dataset.tar import EXTENSIONS

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I32": 4, "I64": 8, "U8": 1, "BOOL": 1}
MAX_HEADER = 1 << 20
"""Bytes of a safetensors header; ours are a few kB."""


def index_schema() -> pa.Schema:
    """Columns of an index that is written: those of `INDEX`, and scores of the catalog that it does not name."""
    return pa.schema([*INDEX, *(schema.CLIPS.field(name) for name in schema.INDEXED if name not in INDEX.names)])


def carried() -> list[str]:
    """Columns of the catalog that the index carries, so that a selection is a query."""
    return ["speaker", "tier", "verdict", *schema.INDEXED]


class BadShard(EchoForgeError):
    """A tar holds something that a shard may not hold."""


@dataclass(frozen=True)
class MemberEntry:
    """One file of a shard: ``length`` bytes at ``offset`` of the tar. sha256: first 16 hex digits, or None."""

    ext: str
    tar: str
    offset: int
    length: int
    sha256: str | None = None


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: ``length`` raw bytes at ``offset`` of the tar. Digests are '' or None where they are not known."""

    name: str
    tar: str
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]
    sha256: str | None = ""
    xxh3: str | None = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape or ()))  # a list or null in a table


@dataclass
class Found:
    """What a tar holds of one sample."""

    members: list[MemberEntry] = field(default_factory=list)
    tensors: list[TensorEntry] = field(default_factory=list)


@dataclass(frozen=True)
class AudioGrid:
    """How audio rows lie on the video's clock (column ``audio``)."""

    variant: str
    tokens_per_frame: float
    frame0: int
    valid_from: int
    valid_to: int


@dataclass(frozen=True)
class IndexRow:
    """A sample of a finished tar."""

    sample: PlannedSample
    generation: str
    audio: AudioGrid
    found: Found


def members(stream: IO[bytes], where: str) -> Iterator[tuple[str, MemberEntry]]:
    """Sample id and member of everything in the tar in ``stream`` (seekable), in order.

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
                yield sample, MemberEntry(ext, where, info.offset_data, info.size)
    except tarfile.TarError as error:
        raise BadShard(f"{where}: not a readable tar ({error}).") from error


def tensors(stream: IO[bytes], sample: str, member: MemberEntry, *, sha256: bool = True) -> list[TensorEntry]:
    """The tensors of one safetensors member, by name; offsets are counted in the tar.

    Args:
        sha256: False leaves that digest empty: it takes ten times as long as XXH3.

    Raises:
        BadShard: the header is not one, or its sizes contradict each other or the member.
    """
    where = f"{member.tar}: {sample}.{member.ext}"
    stream.seek(member.offset)
    head = int.from_bytes(stream.read(8), "little")
    if not 0 < head <= min(MAX_HEADER, member.length - 8):
        raise BadShard(f"{where}: not a safetensors file.")
    try:
        header = json.loads(stream.read(head))
        items = [(name, item) for name, item in header.items() if name != "__metadata__"]
        found = [
            _entry(name, item["dtype"], item["shape"], item["data_offsets"], member, head, where)
            for name, item in items
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadShard(f"{where}: its safetensors header cannot be read ({error}).") from error
    hashed = []
    for entry in found:
        stream.seek(entry.offset)
        data = stream.read(entry.length)
        hashed.append(replace(entry, sha256=_sha256(data) if sha256 else "", xxh3=xxhash.xxh3_64_hexdigest(data)))
    return sorted(hashed, key=lambda entry: entry.name)


def scan(stream: IO[bytes], tar: str, *, sha256: bool = True) -> dict[str, Found]:
    """What the tar holds of every sample. ``tar`` is relative to the dataset.

    Args:
        sha256: as in :func:`tensors`; of members likewise.

    Raises:
        BadShard: see :func:`members` and :func:`tensors`; also a member that comes twice.
    """
    samples: dict[str, Found] = {}
    for sample, member in list(members(stream, tar)):
        found = samples.setdefault(sample, Found())
        if any(member.ext == other.ext for other in found.members):
            raise BadShard(f"{tar}: '{sample}.{member.ext}' comes twice.")
        stream.seek(member.offset)
        digest = _sha256(stream.read(member.length)) if sha256 else None
        found.members.append(replace(member, sha256=digest))
        if member.ext == "safetensors":
            found.tensors = tensors(stream, sample, member, sha256=sha256)
    return samples


def _entry(
    name: str, dtype: str, sizes: Iterable[int], places: Iterable[int], member: MemberEntry, head: int, where: str
) -> TensorEntry:
    begin, end = (int(v) for v in places)
    shape = tuple(int(v) for v in sizes)
    if dtype not in ITEM_BYTES:
        raise BadShard(f"{where}: tensor '{name}' has dtype {dtype!r}, which a shard may not hold.")
    if not 0 <= begin <= end <= member.length - 8 - head or min(shape, default=0) < 0:
        raise BadShard(f"{where}: tensor '{name}' lies outside its file.")
    if math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
        raise BadShard(f"{where}: tensor '{name}' says {list(shape)} {dtype} but has {end - begin} bytes.")
    return TensorEntry(name, member.tar, member.offset + 8 + head + begin, end - begin, dtype, shape)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _printable(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()[:80]


def encoded_table(rows: Sequence[IndexRow]) -> pa.Table:
    """Rows with the columns of the index that are known when a sample is encoded."""
    samples = [row.sample for row in rows]
    same = ("sample_id", "clip_id", "bucket", "split", "speaker", "tier", "verdict")
    columns = {
        **{name: [getattr(sample, name) for sample in samples] for name in same},
        **{name: [sample.scores.get(name) for sample in samples] for name in schema.INDEXED},
        "video_id": [sample.source.video_id for sample in samples],
        "F": [sample.frames for sample in samples],
        "H": [sample.height for sample in samples],
        "W": [sample.width for sample in samples],
        "generation": [row.generation for row in rows],
        "audio": [[asdict(row.audio)] for row in rows],
        "tensors": [[asdict(entry) for entry in row.found.tensors] for row in rows],
        "members": [[asdict(entry) for entry in row.found.members] for row in rows],
    }
    empty = [None] * len(rows)
    wanted = encoded_schema()
    return pa.table([pa.array(columns.get(item.name, empty), item.type) for item in wanted], schema=wanted)


def encoded_schema() -> pa.Schema:
    """What the ledger holds of a sample; the reason is found when the index is written."""
    return pa.schema([item for item in index_schema() if item.name != "reason"])


def as_written(rows: pa.Table) -> pa.Table:
    """Rows with exactly the columns of an index, sorted by sample id; columns that they lack are null."""
    columns = [
        rows[item.name].cast(item.type) if item.name in rows.column_names else pa.nulls(rows.num_rows, item.type)
        for item in index_schema()
    ]
    return pa.table(columns, schema=index_schema()).sort_by("sample_id").combine_chunks()


def members_of(index: pa.Table) -> Iterator[tuple[str, list[MemberEntry]]]:
    """Sample id and members of every row."""
    for sample, items in zip(index["sample_id"].to_pylist(), index["members"].to_pylist(), strict=True):
        yield sample, [MemberEntry(**item) for item in items or ()]
