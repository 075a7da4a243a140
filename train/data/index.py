"""The shard index: which samples a run trains on (a keep-list is a query) and where each of their tensors lies.

What a run learns from is never decided by rewriting shards: verdict, tier and scores are columns of the index, so
a new threshold selects other rows of the same files.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from configs import dataset_files, members
from configs.dataset_description import Description
from configs.dataset_schema import DATASET_FILE, SPLITS, SUPERSEDED, scores
from configs.errors import EchoForgeError
from train.config import KeepConfig
from train.data.remote import file_size, read_file

DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The safetensors dtype names that a shard may hold."""


class BadSample(EchoForgeError):
    """One sample cannot be used: missing or short file, wrong digest, wrong shape, not finite."""

    def __init__(self, sample: str, what: str):
        super().__init__(f"sample {sample}{what}")
        self.sample = sample


@dataclass(frozen=True)
class TensorRef:
    """Where one tensor lies: ``length`` raw little-endian bytes at ``offset`` of the tar, C order."""

    name: str
    tar: str
    offset: int
    length: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    sha256: str
    xxh3: str  # '' in datasets that have none


@dataclass(frozen=True)
class AudioGrid:
    """How audio rows lie on the video's clock; rows outside [valid_from, valid_to) are padding."""

    tokens_per_frame: float
    frame0: int
    valid_from: int
    valid_to: int


@dataclass(frozen=True)
class SampleRecord:
    """One row of the index, checked."""

    sample_id: str
    bucket: str
    frames: int
    height: int
    width: int
    n_captions: int
    audio: dict[str, AudioGrid]
    tensors: dict[str, TensorRef]


@dataclass(frozen=True)
class SampleIndex:
    """The rows of one split that pass the keep-list, sorted by ``sample_id``.

    ``digest`` depends on the sample ids and their buckets alone: adding a field, merging or moving tars leaves it.
    ``members`` maps a bucket's name to the row numbers of its samples, ascending.
    """

    root: str
    split: str
    digest: str
    table: pa.Table
    members: dict[str, np.ndarray]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def record(self, row: int) -> SampleRecord:
        """The checked record of row ``row``.

        Raises:
            BadSample: the row points outside the dataset, or its sizes contradict each other.
        """
        return _record(self.table.slice(row, 1))

    def layout(self, bucket: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape that most samples of ``bucket`` have, per tensor name (of up to 101 rows evenly spread).

        A sample that differs is a bad sample; the majority decides so that one odd row cannot condemn the rest.
        """
        rows = self.members[bucket]
        votes: dict[str, Counter[tuple[torch.dtype, tuple[int, ...]]]] = {}
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, 101).round().astype(int))]
        good = 0
        for row in chosen:
            try:
                tensors = self.record(int(row)).tensors
            except BadSample:
                continue
            good += 1
            for ref in tensors.values():
                votes.setdefault(ref.name, Counter())[ref.dtype, ref.shape] += 1
        return {name: vote.most_common(1)[0][0] for name, vote in votes.items() if 2 * vote.total() > good}

    def sample_ids(self, rows: Iterable[int]) -> list[str]:
        """The ids of the given rows."""
        column = self.table.column("sample_id")
        return [column[int(row)].as_py() for row in rows]


def open_index(dataset: str | Path, *, split: str, keep: KeepConfig) -> SampleIndex:
    """Read ``DATASET/index.parquet`` and keep the rows of ``split`` that satisfy ``keep``.

    Raises:
        EchoForgeError: no index there, it is damaged, a column is missing, an unknown split or score, or nothing is left.
    """
    root = str(dataset).rstrip("/")
    if split not in SPLITS:
        raise EchoForgeError(f"split '{split}' is unknown; a dataset has {', '.join(SPLITS)}.")
    table = _rows(root)
    table = table.filter(pc.equal(table.column("split"), split))
    present = table.num_rows
    table = table.filter(keep_mask(table, keep)) if present else table
    if not table.num_rows:
        raise EchoForgeError(
            f"dataset '{root}' has no sample left to read in split '{split}' ({present} before the keep-list): "
            "relax loader.keep, or shard more videos."
        )
    table = _unique(table, root).sort_by("sample_id").combine_chunks()
    ids, buckets = table.column("sample_id").to_pylist(), table.column("bucket").to_pylist()
    digest = hashlib.sha256("\n".join(f"{i} {b}" for i, b in zip(ids, buckets, strict=True)).encode())
    names = np.asarray(buckets)
    members = {name: np.flatnonzero(names == name) for name in sorted(set(buckets))}
    return SampleIndex(root, split, digest.hexdigest()[:16], table, members)


def read_samples(dataset: str | Path, ids: Iterable[str], *, keep: KeepConfig) -> pa.Table:
    """The rows of the samples ``ids``, of whatever split, that satisfy ``keep``.

    Raises:
        EchoForgeError: as :func:`open_index`; that none is left is no error.
    """
    root = str(dataset).rstrip("/")
    table = _rows(root)
    table = table.filter(pc.is_in(table.column("sample_id"), pa.array(sorted(set(ids)), pa.string())))
    return _unique(table.filter(keep_mask(table, keep)) if table.num_rows else table, root)


def _rows(root: str) -> pa.Table:
    """All rows. What else is wrong with one makes it a bad sample when it is used; without these it is none at all."""
    table = dataset_files.read_index(fetcher(root), root)
    return dataset_files.check_present(table, root, ("sample_id", "bucket", "split"))


def _unique(table: pa.Table, root: str) -> pa.Table:
    if pc.count_distinct(table.column("sample_id")).as_py() != table.num_rows:
        raise EchoForgeError(f"the index of '{root}' names a sample twice; run `shards verify {root}`.")
    return table


def keep_mask(table: pa.Table, keep: KeepConfig) -> pa.ChunkedArray:
    """Boolean column: which rows satisfy verdicts, tiers and score bounds. An unmeasured score fails its bound.

    A superseded sample never passes, whatever verdicts are asked for: its clip is in the dataset in a newer version.

    Raises:
        EchoForgeError: a bound names a column that the index lacks.
    """
    mask = pc.is_in(table.column("verdict"), pa.array(keep.verdicts, pa.string()))
    mask = pc.and_(mask, pc.invert(pc.fill_null(pc.equal(table.column("reason"), SUPERSEDED), False)))
    if keep.tiers:
        mask = pc.and_(mask, pc.is_in(table.column("tier"), pa.array(keep.tiers, pa.string())))
    for bounds, compare in ((keep.at_least, pc.greater_equal), (keep.at_most, pc.less_equal)):
        for name, value in bounds.items():
            if name not in (known := scores(table.schema)):
                shown = ", ".join(known)
                raise EchoForgeError(f"loader.keep names the score '{name}', which is not in the index ({shown}).")
            mask = pc.and_(mask, pc.fill_null(compare(table.column(name), value), False))
    if keep.skip:
        mask = pc.and_(mask, pc.invert(pc.is_in(table.column("sample_id"), pa.array(keep.skip, pa.string()))))
    return pc.fill_null(mask, False)


def made_with(root: str) -> str | None:
    """Name of the preset that a dataset was made with; None where `dataset.json` is missing or does not say.

    Raises:
        EchoForgeError: it is damaged.
    """
    try:
        data = dataset_files.read_checked(fetcher(root), root, DATASET_FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise dataset_files.Damaged(root, DATASET_FILE, str(error)) from error
    made = Description.parse(data, root).made_with
    return made.preset if made else None


def fetcher(root: str) -> dataset_files.Fetch:
    """Reads small files of a dataset whole, from a local folder or a URL."""
    return functools.partial(_fetch_remote if "://" in root else _fetch_local, root)


def _fetch_local(root: str, name: str, most: int) -> bytes:
    return members.read(root, name, most=most)


def _fetch_remote(root: str, name: str, most: int) -> bytes:
    url = f"{root}/{members.relative(name)}"
    if (size := file_size(url)) > most:
        raise members.BadMember(f"'{name}' has {size} bytes; such a file has at most {most}.")
    return read_file(url)


def _record(one: pa.Table) -> SampleRecord:
    (row,) = one.to_pylist()
    sample = str(row["sample_id"])
    tensors: dict[str, TensorRef] = {}
    try:
        for item in row["tensors"] or []:
            ref = _tensor_ref(sample, **item)
            tensors[ref.name] = ref
        grids = {
            item["variant"]: AudioGrid(
                float(item["tokens_per_frame"]), int(item["frame0"]), int(item["valid_from"]), int(item["valid_to"])
            )
            for item in row["audio"] or []
        }
        frames, height, width = int(row["F"]), int(row["H"]), int(row["W"])
    except (TypeError, ValueError) as error:  # null where a number or a text must be; NaN
        raise BadSample(sample, f": its row in the index is incomplete ({error}).") from error
    latents = tensors.get("latents")
    if latents and latents.shape[1:] != (1 + (frames - 1) // 4, height // 8, width // 8):
        raise BadSample(sample, f": its latents are {list(latents.shape)}, its video {width}x{height}x{frames}.")
    return SampleRecord(sample, row["bucket"], frames, height, width, row["n_captions"] or 0, grids, tensors)


def _tensor_ref(
    sample: str,
    *,
    name: str,
    tar: str,
    offset: int,
    length: int,
    dtype: str,
    shape: list[int] | None,
    sha256: str | None,
    xxh3: str | None,
) -> TensorRef:
    """Check what the index says of one tensor of ``sample``."""
    where = f", tensor '{name}'"
    try:
        tar = dataset_files.check_tar(tar)
    except members.BadMember as error:
        raise BadSample(sample, f"{where}: {error}") from error
    kind = DTYPES.get(dtype)
    if kind is None:
        raise BadSample(sample, f"{where}: dtype {dtype!r} is not one a shard may hold.")
    sizes, offset, length = tuple(shape or ()), int(offset), int(length)
    if min(sizes, default=0) < 0 or offset < 0 or math.prod(sizes) * kind.itemsize != length:
        raise BadSample(sample, f"{where}: {length} bytes at {offset} cannot hold {list(sizes)} {dtype}.")
    return TensorRef(str(name), tar, offset, length, kind, sizes, sha256 or "", xxh3 or "")
