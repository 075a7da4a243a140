"""Positioned reads of raw tensor bytes straight into the memory where the batch is built.

Nothing in a shard is ever interpreted: the index says where a tensor's bytes lie, they are read into a tensor of the
type and shape that the index declares, and their digest must be the one that the index holds: XXH3, which keeps up with
the disk, or sha256 where xxhash is not installed or the index has no XXH3. What else a tar contains (pickles, links,
device files, strange names) is never looked at.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from typing import Any, Protocol

import torch

from configs import members
from train.data.index import BadSample, TensorRef
from train.data.remote import asked

try:  # a training machine may have torch and little else
    from xxhash import xxh3_64_hexdigest as _xxh3
except ImportError:
    _xxh3 = None  # type: ignore[assignment]


class Source(Protocol):
    """Reads byte ranges of a dataset's members into memory; safe to call from many threads."""

    def read_into(self, member: str, offset: int, out: memoryview) -> None:
        """Fill ``out`` from ``member[offset:]``. Raises OSError (also when it ends early) or BadMember."""

    def size(self, member: str) -> int:
        """Bytes of the member. Raises OSError when there is none, BadMember when it is not a regular file."""

    def close(self) -> None:
        """Let go of open files."""


class LocalSource:
    """`preadv` on a bounded set of open members of ``root`` (`configs.members`: no links, no devices)."""

    def __init__(self, root: str, max_open: int = 128):
        self._root, self._max_open = root, max_open
        self._files: OrderedDict[str, _SharedFile] = OrderedDict()
        self._lock = threading.Lock()

    def read_into(self, member: str, offset: int, out: memoryview) -> None:
        file = self._acquire(member)
        try:
            done = 0
            while done < len(out):
                count = os.preadv(file.fd, [out[done:]], offset + done)
                if count == 0:
                    raise OSError(f"the file ends at byte {offset + done}, before the tensor does")
                done += count
        finally:
            self._release(file)

    def size(self, member: str) -> int:
        file = self._acquire(member)
        try:
            return os.fstat(file.fd).st_size
        finally:
            self._release(file)

    def _acquire(self, member: str) -> _SharedFile:
        with self._lock:
            file = self._files.get(member)
            if file is None:
                file = self._files[member] = _SharedFile(members.open_descriptor(self._root, member))
                if len(self._files) > self._max_open:
                    _, oldest = self._files.popitem(last=False)
                    oldest.retire()
            self._files.move_to_end(member)
            file.users += 1
            return file

    def _release(self, file: _SharedFile) -> None:
        with self._lock:
            file.users -= 1
            file.close_if_unused()

    def close(self) -> None:
        with self._lock:
            for file in self._files.values():
                file.retire()
            self._files.clear()


class _SharedFile:
    """A descriptor that is closed when nobody reads from it any more. Guarded by the source's lock."""

    def __init__(self, fd: int):
        self.fd, self.users, self.retired = fd, 0, False

    def retire(self) -> None:
        self.retired = True
        self.close_if_unused()

    def close_if_unused(self) -> None:
        if self.retired and not self.users and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class RemoteSource:
    """Range requests through fsspec, for datasets on an object store.

    A store that fails is asked again (`configs.runtime.retries`). When it goes on failing, that is no bad sample: the run stops,
    or other samples would be learnt from than without the failure.
    """

    def __init__(self, root: str):
        import fsspec

        self._fs: Any = fsspec.core.url_to_fs(root)[0]
        self._root = root

    def read_into(self, member: str, offset: int, out: memoryview) -> None:
        url = self._url(member)

        def read() -> bytes:
            data = bytes(self._fs.cat_file(url, start=offset, end=offset + len(out)))
            if len(data) != len(out):
                raise OSError(f"{len(data)} bytes came instead of {len(out)}")
            return data

        out[:] = asked(read, url)

    def size(self, member: str) -> int:
        url = self._url(member)
        return asked(lambda: int(self._fs.size(url)), url)

    def close(self) -> None:
        return None

    def _url(self, member: str) -> str:
        return f"{self._root}/{members.relative(member)}"


def open_source(root: str) -> Source:
    """The source that fits the dataset's root: a local folder, or a URL that fsspec knows."""
    return RemoteSource(root) if "://" in root else LocalSource(root)


def read_tensor(source: Source, ref: TensorRef, out: torch.Tensor, *, sample: str, digest: bool) -> None:
    """Read ``ref`` into ``out``, a contiguous CPU tensor of exactly its dtype and shape.

    Raises:
        BadSample: the file is missing, short or not a file, or the bytes are not those that were written.
    """
    where = f", tensor '{ref.name}' ({ref.tar} at byte {ref.offset})"
    if out.dtype != ref.dtype or tuple(out.shape) != ref.shape:
        raise BadSample(sample, f"{where}: {list(ref.shape)} {ref.dtype} do not fit {list(out.shape)} {out.dtype}.")
    view = raw_bytes(out)
    try:
        source.read_into(ref.tar, ref.offset, view)
    except FileNotFoundError as error:
        raise BadSample(sample, f"{where}: there is no such file.") from error
    except OSError as error:
        raise BadSample(sample, f"{where}: {error.strerror or error}.") from error
    except members.BadMember as error:
        raise BadSample(sample, f"{where}: {error}") from error
    if digest and (kind := _differs(view, ref)):
        raise BadSample(sample, f"{where}: the bytes are not those that were written ({kind} differs).")


def _differs(view: memoryview, ref: TensorRef) -> str:
    """The name of the digest that is not the index's; '' where the bytes are right. Releases the interpreter lock."""
    if ref.xxh3 and _xxh3 is not None:
        return "" if _xxh3(view) == ref.xxh3 else "xxh3"
    return "" if hashlib.sha256(view).hexdigest()[:16] == ref.sha256 else "sha256"


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor as a writable view, without copying."""
    if not tensor.is_contiguous():
        raise ValueError("only a contiguous tensor can be read into")
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
