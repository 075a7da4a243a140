"""Where the tensors of a checkpoint lie: JSON and safetensors for `torch.distributed.checkpoint`, and nothing pickled.

``metadata.json`` says of every tensor its type, its shape and the chunks it was cut into; the files
``<rank>-<kind>-<number>.safetensors`` hold the chunks. Planning (who writes what, who reads which part at another world
size) is DCP's own. Checkpoints made before, by DCP's own writer, are read through :mod:`train.checkpoints.old_state`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint import StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from configs.runtime import regular
from configs.runtime.shown import one_line
from train.checkpoints import files
from train.checkpoints.files import Damaged

STATE = "state"
METADATA = "metadata.json"
FORMAT = "echoforge-state-1"
_FILE_BYTES = 2**30
"""A file holds about so much, because its tensors are copied from the GPU before it is written."""
_MOST_AXES = 5
"""Along which chunks may be cut: those of the patch embedding's weights, the tensor of ours with the most."""
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16,
                  torch.int8, torch.uint8, torch.bool)
}  # fmt: skip


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor: where it begins, its shape, and the file that holds it (at ``start``, in old checkpoints)."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int = 0
    length: int = 0


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


Fetch = Callable[[str, Chunk, tuple[slice, ...]], Tensor]
"""(name of a tensor, one of its chunks, a part of that chunk) → the part, on the CPU."""


class StateWriter(StorageWriter):
    """Writes each rank's chunks into files of its own; rank 0 writes the metadata.

    Attributes:
        digests: of the files with chunks, by name; filled on rank 0 when all is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digests: dict[str, str] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between two checkpoints."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As DCP planned it."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Tell each rank its number."""
        return [replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's chunks; the results say in which file each lies, and that file's digest."""
        results = []
        for name, items in _files(plan):
            tensors = {_key(item.index): _on_cpu(planner.resolve_data(item)) for item in items}
            save_file(tensors, self.folder / name)
            _sync(self.folder / name)
            where = (name, files.digest(self.folder / name))
            results += [WriteResult(i.index, tensors[_key(i.index)].nbytes, where) for i in items]
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the metadata, once all ranks have written."""
        places = {result.index: result.storage_data for part in results for result in part}
        self.digests = dict(places.values())
        tensors = {}
        for name, stored in metadata.state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata), f"{name} is no tensor"
            chunks = [
                {"offset": list(c.offsets), "shape": list(c.sizes), "file": places[MetadataIndex(name, c.offsets)][0]}
                for c in stored.chunks
            ]
            dtype = str(stored.properties.dtype).removeprefix("torch.")
            tensors[name] = {"dtype": dtype, "shape": list(stored.size), "chunks": chunks}
        text = json.dumps({"format": FORMAT, "tensors": tensors}, separators=(",", ":"), sort_keys=True)
        files.write_new(self.folder / METADATA, text + "\n")

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Only local folders."""
        return "://" not in str(checkpoint_id)


class StateReader(StorageReader):
    """Reads what :class:`StateWriter` wrote, or another source of :class:`Stored` tensors.

    Args:
        opened: file name → a context in which chunks of that file are fetched.
    """

    def __init__(self, tensors: dict[str, Stored], opened: Callable[[str], AbstractContextManager[Fetch]]) -> None:
        self.tensors, self._opened = tensors, opened
        self._chunks = {MetadataIndex(n, c.offset): c for n, t in tensors.items() for c in t.chunks}

    def files_of(self, names: Iterable[str]) -> set[str]:
        """Those that hold chunks of the tensors ``names``."""
        return {chunk.file for name in names if name in self.tensors for chunk in self.tensors[name].chunks}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A reader is for one checkpoint."""

    def read_metadata(self) -> Metadata:  # type: ignore[override]  # with **kwargs, DCP would try files of each rank
        """What was read when the reader was made."""
        return Metadata({name: _as_dcp(tensor) for name, tensor in self.tensors.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing is left to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As DCP planned it."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As DCP planned it."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy the parts that this rank needs into its tensors.

        Raises:
            Damaged: a file does not hold what the metadata says.
        """
        by_file: dict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            if item.type != LoadItemType.TENSOR:
                raise Damaged(f"'{one_line(item.storage_index.fqn)}' is no tensor")
            by_file[self._chunks[item.storage_index].file].append(item)
        for file, items in sorted(by_file.items()):
            with self._opened(file) as fetch:
                for item in items:
                    self._copy(item, fetch, planner)
        return _done(None)

    def _copy(self, item: ReadItem, fetch: Fetch, planner: LoadPlanner) -> None:
        name, chunk = item.storage_index.fqn, self._chunks[item.storage_index]
        wanted = tuple(slice(o, o + n) for o, n in zip(item.storage_offsets, item.lengths, strict=True))
        part, target = fetch(name, chunk, wanted), planner.resolve_tensor(item).detach()
        if part.shape != target.shape:
            raise Damaged(f"{one_line(chunk.file)} holds '{one_line(name)}' in another shape than the metadata says")
        target.copy_(part)
        planner.commit_tensor(item, target)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Only local folders."""
        return "://" not in str(checkpoint_id)


def read(folder: Path) -> StateReader:
    """The reader of a folder that :class:`StateWriter` wrote.

    Raises:
        Damaged: its metadata is.
    """
    return StateReader(_metadata(folder / METADATA), lambda name: _open(folder / name))


def check(name: str, tensor: Stored) -> Stored:
    """``tensor``, which somebody else described.

    Raises:
        Damaged: its chunks do not lie inside it, overlap, leave a part of it out, or lie in files elsewhere.
    """
    numbers = [n for c in tensor.chunks for n in (*c.offset, *c.shape, c.start, c.length)] + list(tensor.shape)
    sound = all(type(n) is int and 0 <= n < 2**63 for n in numbers) and isinstance(tensor.dtype, torch.dtype)
    for c in tensor.chunks if sound else ():
        inside = len(c.offset) == len(c.shape) == len(tensor.shape) and all(
            o + n <= size for o, n, size in zip(c.offset, c.shape, tensor.shape, strict=True)
        )
        sound = sound and inside and bool(re.fullmatch(r"[\w-]+\.\w+", c.file, re.ASCII))
    if not sound or not _fill(tensor.shape, [c for c in tensor.chunks if 0 not in c.shape]):
        raise Damaged(f"the metadata does not say where '{one_line(name)[:200]}' lies")
    return tensor


def _fill(shape: tuple[int, ...], chunks: list[Chunk]) -> bool:
    """Whether each element of a tensor lies in one of ``chunks``, which lie inside it and are not empty.

    How often an element is held, as a function of its place, is known from its mixed difference: each box adds its
    corners, with a sign. So boxes fill a larger one exactly where, of all their corners, its own are left.
    """
    if sum(math.prod(c.shape) for c in chunks) != math.prod(shape):
        return False
    cut = [axis for axis, size in enumerate(shape) if any(c.shape[axis] != size for c in chunks)]
    if len(cut) > _MOST_AXES:
        return False
    corners: dict[tuple[int, ...], int] = defaultdict(int)
    boxes = [([c.offset[a] for a in cut], [c.shape[a] for a in cut], 1) for c in chunks]
    for offset, size, sign in [*boxes, ([0] * len(cut), [shape[a] for a in cut], -1)]:
        for corner in product(*(((o, 1), (o + n, -1)) for o, n in zip(offset, size, strict=True))):
            corners[tuple(place for place, _ in corner)] += sign * math.prod(s for _, s in corner)
    return 0 in shape or not any(corners.values())


def writer_of(file: str) -> int:
    """The rank that wrote ``<rank>-…``; 0 of other files."""
    number = file.partition("-")[0]
    return int(number) if re.fullmatch("[0-9]{1,9}", number) else 0


def _metadata(path: Path) -> dict[str, Stored]:
    data = files.read_json(path, files.MAX_JSON)
    if data.get("format") != FORMAT:
        raise Damaged(f"{path.name} is of a format that this version does not know; use the version that wrote it")
    try:
        found = {}
        for name, one in data["tensors"].items():
            chunks = tuple(Chunk(tuple(c["offset"]), tuple(c["shape"]), c["file"]) for c in one["chunks"])
            found[name] = check(name, Stored(_DTYPES[one["dtype"]], tuple(one["shape"]), chunks))
        return found
    except (KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path.name} describes no tensors") from error


def _as_dcp(tensor: Stored) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(c.offset), torch.Size(c.shape)) for c in tensor.chunks]
    return TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), torch.Size(tensor.shape), chunks)


@contextmanager
def _open(path: Path) -> Iterator[Fetch]:
    """Raises Damaged, also inside the context."""
    try:
        os.close(regular.open_descriptor(path))
        with safe_open(path, "pt") as file:

            def fetch(name: str, chunk: Chunk, part: tuple[slice, ...]) -> Tensor:
                key = _key(MetadataIndex(name, chunk.offset))
                found = file.get_slice(key)
                if tuple(found.get_shape()) != chunk.shape:
                    raise Damaged(f"{path.name} holds '{one_line(name)}' in another shape than the metadata says")
                whole = all(s.stop - s.start == n for s, n in zip(part, chunk.shape, strict=True))
                return file.get_tensor(key) if whole else found[part]  # type: ignore[no-any-return]

            yield fetch
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read: {files.reason(error)}") from error
    except SafetensorError as error:
        raise Damaged(f"{path.name} cannot be read as safetensors: {one_line(error)[:200]}") from error


def _files(plan: SavePlan) -> Iterator[tuple[str, list[WriteItem]]]:
    """Names and contents of a rank's files. Kinds lie apart, so that who wants only the weights reads nothing else."""
    by_kind: dict[str, list[WriteItem]] = defaultdict(list)
    for item in plan.items:
        by_kind[item.index.fqn.partition(".")[0]].append(item)
    for kind, items in sorted(by_kind.items()):
        parts: list[list[WriteItem]] = [[]]
        size = 0
        for item in items:
            if size > _FILE_BYTES:
                parts.append([])
                size = 0
            parts[-1].append(item)
            size += _bytes(item)
        for number, part in enumerate(parts):
            yield f"{plan.storage_data:05d}-{kind}-{number}.safetensors", part


def _bytes(item: WriteItem) -> int:
    assert item.tensor_data is not None, f"{item.index.fqn} is no tensor"
    return math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize


def _key(index: MetadataIndex) -> str:
    """The name of a chunk inside its file: the tensor's, and where the chunk begins in it."""
    return f"{index.fqn}@{','.join(map(str, index.offset or ()))}"


def _on_cpu(tensor: Any) -> Tensor:
    return tensor.detach().cpu().contiguous()  # type: ignore[no-any-return]


def _sync(path: Path) -> None:
    with files.open_binary(path) as file:
        os.fsync(file.fileno())


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
