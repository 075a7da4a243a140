"""The state of checkpoints made before `train.checkpoints.state_storage`: by DCP's own writer, whose metadata is a pickle.

The pickle is read without running anything in it. An unpickler makes objects only of what it is given names for; this
one knows the few names that DCP's metadata holds, and for each of them gives a stand-in that stores and does nothing.
The tensors are files of ``torch.save``, read with ``weights_only=True``.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.runtime.shown import one_line
from train.checkpoints import files
from train.checkpoints.files import Damaged
from train.checkpoints.state_storage import Chunk, Fetch, StateReader, Stored, check

METADATA = ".metadata"
_DCP = "torch.distributed.checkpoint"


StandIn = type | torch.dtype | Callable[[object], None]
"""What a name of the pickle becomes."""


class _Stored:
    """An object of the pickle: what was stored in it, and no behaviour."""

    def __init__(self, *_: object) -> None: ...


def _names() -> dict[tuple[str, str], StandIn]:
    """What an old ``.metadata`` may name. Of classes new stand-ins each time: a pickle can change their attributes."""

    def index() -> type[_Stored]:
        def key(self: Any) -> Any:
            return getattr(self, "fqn", None), getattr(self, "offset", None)

        return type("Index", (_Stored,), {"__hash__": lambda s: hash(key(s)), "__eq__": lambda a, b: key(a) == key(b)})

    classes = ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "StorageMeta")
    known: dict[tuple[str, str], StandIn] = {
        (f"{_DCP}.metadata", "MetadataIndex"): index(),
        (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"): int,
        (f"{_DCP}.filesystem", "_StorageInfo"): type("Info", (_Stored,), {"__setstate__": _keep}),
        ("torch.serialization", "_get_layout"): lambda _: None,
        ("torch", "Size"): tuple,
    }
    for name in classes:
        known[f"{_DCP}.metadata", name] = type(name, (_Stored,), {"__setstate__": _keep})
    for name in ("PosixPath", "WindowsPath"):
        known["pathlib", name] = type("Place", (_Stored,), {})
    for name in dir(torch):
        if isinstance(dtype := getattr(torch, name), torch.dtype):
            known["torch", name] = dtype
    return known


def _keep(self: Any, state: Any) -> None:
    """Fields by name; of tensors' properties, which are pickled as a tuple, the type."""
    self.__dict__.update(state if isinstance(state, dict) else {"dtype": state[0]})


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._known = _names()

    def find_class(self, module: str, name: str) -> Any:
        """Only the stand-ins."""
        if (module, name) not in self._known:
            raise Damaged(
                f"{METADATA} asks for '{one_line(f'{module}.{name}')[:200]}', which has no place in a checkpoint"
            )
        return self._known[module, name]


def read(folder: Path) -> StateReader:
    """The reader of an old checkpoint's state.

    Raises:
        Damaged: its metadata is, or names something that does not belong there.
    """
    data = files.read_bytes(folder / METADATA, files.MAX_JSON)
    try:
        return StateReader(_tensors(_Unpickler(io.BytesIO(data)).load()), lambda name: _open(folder / name))
    except Damaged:
        raise
    except Exception as error:  # broken pickles fail in many ways
        raise Damaged(f"{METADATA} is not the metadata of a checkpoint ({type(error).__name__})") from error


def _tensors(metadata: Any) -> dict[str, Stored]:
    places = {(i.fqn, i.offset): info for i, info in metadata.storage_data.items()}
    found = {}
    for name, tensor in metadata.state_dict_metadata.items():
        if len(tensor.chunks) > len(places):
            raise Damaged(f"{METADATA} names more chunks than it has places for")
        chunks = tuple(_chunk(c, places[name, c.offsets]) for c in tensor.chunks)
        found[name] = check(name, Stored(tensor.properties.dtype, tensor.size, chunks))
    return found


def _chunk(chunk: Any, info: Any) -> Chunk:
    if getattr(info, "transform_descriptors", None):
        raise Damaged(f"{METADATA} says that the tensors were transformed, which no version of ours did")
    return Chunk(chunk.offsets, chunk.sizes, info.relative_path, info.offset, info.length)


@contextmanager
def _open(path: Path) -> Iterator[Fetch]:
    """Raises Damaged, also inside the context."""
    try:
        with files.open_binary(path) as file:
            yield _fetcher(path.name, file)
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read: {files.reason(error)}") from error


def _fetcher(file_name: str, file: Any) -> Callable[[str, Chunk, tuple[slice, ...]], Tensor]:
    def fetch(name: str, chunk: Chunk, part: tuple[slice, ...]) -> Tensor:
        if chunk.start + chunk.length > os.fstat(file.fileno()).st_size:
            raise Damaged(f"{file_name} ends before '{one_line(name)}' does")
        file.seek(chunk.start)
        try:
            tensor = torch.load(io.BytesIO(file.read(chunk.length)), map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # pickles fail in many ways
            raise Damaged(f"{file_name} holds no tensor where '{one_line(name)}' should lie") from error
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != chunk.shape:
            raise Damaged(f"{file_name} holds '{one_line(name)}' in another shape than the metadata says")
        return tensor[part] if part else tensor

    return fetch
