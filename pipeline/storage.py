"""Where files live: local paths and anything fsspec knows (``s3://`` …), read and written the same way.

Whatever is written appears whole or not at all: on a disk by temporary file, fsync and rename; in an object store by
spooling to a local file and one upload, which the store shows only when its last part has arrived. What may be
repeated is retried with growing pauses. Credentials come from the environment (``AWS_*``, ``FSSPEC_*``) and never
from a configuration; `configs.runtime.redaction` takes them out of whatever is logged or saved.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import EchoForgeError
from configs.paths import absolute, is_remote
from configs.runtime import disk, retries, scratch, temporaries
from configs.runtime.redaction import redact
from configs.runtime.retries import ATTEMPTS

T = TypeVar("T")


GUARDS: dict[str, Callable[[], None]] = {}
"""Folder → what raises when this process may not change it any more (:mod:`pipeline.engine.lease`)."""


class StoreError(EchoForgeError):
    """A place that cannot be read or written: wrong address, no permission, no space left."""


class WriteRefused(StoreError, disk.Refused):
    """The disk takes nothing more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a listing. ``tag`` changes when the file changes: an etag, or modification time."""

    url: str
    name: str
    size: int
    tag: str


def local(url: str | os.PathLike[str]) -> Path:
    """The path of a local ``url``; every character of a plain path is part of the name."""
    text = os.fspath(url)
    return Path(text.split("://", 1)[1] if text.startswith(("file://", "local://")) else text)


def place_of(url: str) -> str:
    """``url`` as all names of one place are: a local path from the root on, an address as listings of its store give it."""
    if not is_remote(url):
        return absolute(local(url))
    fs, path = filesystem(url)
    return str(fs.unstrip_protocol(path)).rstrip("/")


def join(url: str | os.PathLike[str], *parts: str) -> str:
    """``url/part/part``."""
    text = os.fspath(url)
    return "/".join([text.rstrip("/") or "/", *parts]) if is_remote(text) else str(local(text).joinpath(*parts))


def name_of(url: str) -> str:
    """The last component of ``url``."""
    return PurePosixPath(urlsplit(url).path).name if is_remote(url) else local(url).name


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a remote ``url`` and the path in it.

    Raises:
        StoreError: the protocol is unknown or its package is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise StoreError(f"'{redact(url)}' cannot be opened: {error}.") from error
    return fs, path


def retrying(operation: Callable[[], T], what: str) -> T:
    """Run ``operation`` until it succeeds, at most :data:`ATTEMPTS` times.

    Raises:
        StoreError: no space left, no permission or credentials, or the last try failed; ``what`` is named.
        FileNotFoundError: nothing is there (never retried).
    """
    try:
        return retries.retrying(operation)
    except FileNotFoundError:
        raise
    except retries.HOPELESS as error:
        raise StoreError(f"{redact(what)} failed: {redact(str(error))}.") from error
    except Exception as error:
        if isinstance(error, OSError) and (why := disk.refusal(error)):
            raise WriteRefused(f"{redact(what)} failed: {why}.") from error
        if retries.passes(error):
            raise StoreError(f"{redact(what)} failed {ATTEMPTS} times: {redact(str(error))}.") from error
        if not retries.of_a_driver(error):
            raise
        remedy = "check the address, and the credentials in the environment (AWS_…)"
        raise StoreError(f"{redact(what)} failed: {redact(str(error)).rstrip('.')}; {remedy}.") from error


def check_guards(url: str | None = None) -> None:
    """Ask whether this process may still change what is at ``url``, or (None) everything that it has locked.

    Raises:
        LockLost: another process may be changing it.
    """
    where = None if url is None else place_of(url)
    for place, check in list(GUARDS.items()):
        if where is None or where == place or where.startswith(f"{place}/"):
            check()


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    if not is_remote(url):
        return local(url).exists()
    fs, path = filesystem(url)
    fs.invalidate_cache()
    return bool(retrying(lambda: fs.exists(path), f"looking for '{url}'"))


def listing(url: str, suffix: str = "") -> list[Entry]:
    """The files directly in a folder whose names end in ``suffix``, by name; temporary files are left out.

    A folder that does not exist is empty. Names are taken as they are: nothing in them is a pattern.
    """
    entries = _list_remote(url) if is_remote(url) else _list_local(url)
    wanted = (e for e in entries if e.name.endswith(suffix) and not temporaries.is_name(e.name))
    return sorted(wanted, key=lambda e: e.name)


def _list_local(url: str) -> Iterator[Entry]:
    folder = local(url)
    if not folder.is_dir():
        return
    with os.scandir(folder) as items:
        for item in items:
            try:
                if item.is_file():
                    stat = item.stat()
                    yield Entry(str(folder / item.name), item.name, stat.st_size, str(stat.st_mtime_ns))
            except FileNotFoundError:
                continue  # renamed or removed meanwhile


def _list_remote(url: str) -> Iterator[Entry]:
    fs, path = filesystem(url)
    fs.invalidate_cache()
    try:
        items = retrying(lambda: fs.ls(path, detail=True), f"listing '{url}'")
    except FileNotFoundError:
        return
    for item in items:
        if item["type"] == "file" and item["name"].rstrip("/") != path.rstrip("/"):
            name = PurePosixPath(item["name"]).name
            yield Entry(fs.unstrip_protocol(item["name"]), name, int(item["size"] or 0), _tag(item))


def folders(url: str) -> list[str]:
    """The folders directly in a folder, by name; one that does not exist has none."""
    if not is_remote(url):
        return sorted(str(p) for p in local(url).iterdir() if p.is_dir()) if local(url).is_dir() else []
    fs, path = filesystem(url)
    fs.invalidate_cache()
    try:
        items = retrying(lambda: fs.ls(path, detail=True), f"listing '{url}'")
    except FileNotFoundError:
        return []
    found = (PurePosixPath(i["name"].rstrip("/")).name for i in items if i["type"] == "directory")
    return [join(url, name) for name in sorted(found)]


def names_below(url: str, skip: tuple[str, ...] = ()) -> list[str]:
    """Paths (``a/b``) of everything below a folder that is no folder, sorted; links are named and not followed.

    Args:
        skip: folders directly in it that are left out.
    """
    if is_remote(url):
        fs, path = filesystem(url)
        found = retrying(lambda: fs.find(path), f"listing '{url}'")
        names = [name[len(path.rstrip("/")) + 1 :] for name in found]
    else:
        names = []
        for folder, below, here in os.walk(local(url)):
            links = [name for name in below if (Path(folder) / name).is_symlink()]
            names += [(Path(folder) / name).relative_to(local(url)).as_posix() for name in [*here, *links]]
    return sorted(name for name in names if name.partition("/")[0] not in skip)


def entry(url: str) -> Entry:
    """Size and tag of one file as they are now, without reading it.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if not is_remote(url):
        path = url.split("://", 1)[1] if "://" in url else url
        stat = os.stat(path)  # noqa: PTH116 - a million of these: no Path is made
        return Entry(url, path.rpartition("/")[2], stat.st_size, str(stat.st_mtime_ns))
    fs, path = filesystem(url)
    fs.invalidate_cache()
    info = retrying(lambda: fs.info(path), f"looking at '{url}'")
    return Entry(url, name_of(url), int(info.get("size") or 0), _tag(info))


def _tag(info: dict[str, Any]) -> str:
    known = (info.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created"))
    return next((str(value).strip('"') for value in known if value is not None), "")


def read_bytes(url: str) -> bytes:
    """The whole content.

    Raises:
        FileNotFoundError: nothing is there.
        StoreError: reading failed again and again.
    """
    if not is_remote(url):
        return retrying(local(url).read_bytes, f"reading '{url}'")
    fs, path = filesystem(url)
    return bytes(retrying(lambda: fs.cat_file(path), f"reading '{url}'"))


def read_range(url: str, offset: int, length: int) -> bytes:
    """``length`` bytes from ``offset`` on; of an object, a range request.

    Raises:
        FileNotFoundError, StoreError: as :func:`read_bytes`.
    """
    if not is_remote(url):
        with local(url).open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)
    files, path = filesystem(url)

    def read() -> bytes:
        data = bytes(files.cat_file(path, start=offset, end=offset + length))
        if len(data) != length:
            raise OSError(errno.EIO, f"{len(data)} bytes came, not {length}")
        return data

    return retrying(read, f"reading '{url}'")


def write_bytes(url: str, data: bytes) -> None:
    """Put ``data`` at ``url``, replacing what was there in one step."""
    with writing(url) as path:
        path.write_bytes(data)


@contextlib.contextmanager
def writing(url: str) -> Iterator[Path]:
    """A local file to write; when the block ends well it appears at ``url`` whole, otherwise nothing does.

    Raises:
        StoreError: no space, no permission, or the store failed again and again.
    """
    if is_remote(url):
        with scratch.folder() as folder:
            path = folder / "object"
            yield path
            fs, target = filesystem(url)
            check_guards(url)
            retrying(functools.partial(_put, fs, path, target), f"writing '{url}'")
        return
    target_path, path = local(url), temporary(url)
    try:
        yield path
        disk.sync(path)
        check_guards(url)
        retrying(lambda: path.replace(target_path), f"writing '{url}'")
        disk.sync(target_path.parent)
    except OSError as error:
        if why := disk.refusal(error):
            raise WriteRefused(f"writing '{url}' failed: {why}.") from error
        raise
    finally:
        path.unlink(missing_ok=True)


def _put(fs: Any, path: Path, target: str) -> None:
    try:
        fs.put_file(str(path), target)
    except FileNotFoundError as error:
        if not path.exists():
            raise
        # The bucket is gone; or the answer to the end of an upload in parts was lost, and the upload is over: begin again.
        raise OSError(errno.EIO, str(error)) from error


def temporary(url: str) -> Path:
    """A hidden name beside a local ``url``, whose folder is made; :func:`sweep` removes it when this process has died."""
    target = local(url)
    retrying(lambda: target.parent.mkdir(parents=True, exist_ok=True), f"making the folder of '{url}'")
    return temporaries.beside(target)


def fill(path: Path, data: bytes) -> None:
    """Write a temporary file to the disk itself, so that only its rename is left to do.

    Raises:
        WriteRefused: no space, or no permission.
    """
    try:
        path.write_bytes(data)
        disk.sync(path)
    except OSError as error:
        if why := disk.refusal(error):
            raise WriteRefused(f"writing below '{path.parent}' failed: {why}.") from error
        raise


def remove(url: str) -> None:
    """Remove one file; it may be gone already."""
    check_guards(url)
    if not is_remote(url):
        local(url).unlink(missing_ok=True)
    else:
        remove_object(url)


def remove_object(url: str) -> None:
    """Remove one object, whoever has locked its folder; it may be gone already."""
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        retrying(lambda: fs.rm_file(path), f"removing '{url}'")


def is_file(url: str) -> bool | None:
    """Whether a regular file (or a link to one) is there; None: nothing is. Of an object store only files are asked for."""
    if is_remote(url):
        return True if exists(url) else None
    path = local(url)
    if path.is_file():
        return True
    return False if os.path.lexists(path) else None


def is_folder(url: str) -> bool:
    """Whether a folder is there; in an object store every name is one when something lies below it."""
    return is_remote(url) or local(url).is_dir()


def everything(url: str, suffix: str) -> list[str]:
    """What lies directly in a folder under names that end in ``suffix``: of a local one also what is no file."""
    if is_remote(url):
        return [entry.url for entry in listing(url, suffix)]
    folder = local(url)
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [str(folder / name) for name in there if name.endswith(suffix) and not temporaries.is_name(name)]


def set_aside(url: str) -> str:
    """Give what is there (a file, or locally anything) a name that ends in ``.damaged``; returns where it is.

    Raises:
        StoreError: no permission, or the store failed again and again.
    """
    number = next(n for n in itertools.count() if is_file(_aside(url, n)) is None)
    there = _aside(url, number)
    if is_remote(url):
        write_bytes(there, read_bytes(url))
        remove(url)
    else:
        retrying(lambda: local(url).rename(local(there)), f"renaming '{url}'")
    return there


def _aside(url: str, number: int) -> str:
    return f"{url}.damaged{number or ''}"


def sweep(url: str) -> int:
    """`configs.runtime.temporaries.sweep` of a local folder; of an object store, whose uploads leave nothing, it does nothing."""
    return 0 if is_remote(url) or not local(url).is_dir() else temporaries.sweep(local(url))


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """A local file with the content of ``url``: itself when local, otherwise a copy that is removed afterwards.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if not is_remote(url):
        yield local(url)
        return
    fs, path = filesystem(url)
    with scratch.folder() as folder:
        target = folder / (name_of(url)[-100:] or "file")
        retrying(lambda: fs.get_file(path, str(target)), f"reading '{url}'")
        yield target


def remove_tree(url: str) -> None:
    """Remove a folder and what is in it; it may be gone already."""
    check_guards(url)
    if not is_remote(url):
        shutil.rmtree(local(url), ignore_errors=True)
        return
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        retrying(lambda: fs.rm(path, recursive=True), f"removing '{url}'")


def write_table(url: str, table: pa.Table, row_group: int | None = None) -> None:
    """Write a Parquet file atomically (zstd), with ``row_group`` rows in a row group (None: the library's choice)."""
    with writing(url) as path:
        pq.write_table(table, path, compression="zstd", row_group_size=row_group, write_page_checksum=True)


@contextlib.contextmanager
def parquet(url: str) -> Iterator[pq.ParquetFile]:
    """An open Parquet file, local or remote; checksums of its pages, where it has some, are compared when they are read.

    Reads from a store are tried again (:func:`retrying`).

    Raises:
        FileNotFoundError: nothing is there.
        StoreError: the store failed again and again; from reading the file as well.
        OSError, pa.ArrowException: it is damaged, or no Parquet file.
    """
    if not is_remote(url):
        if not local(url).is_file() and local(url).exists():  # a pipe would be waited for
            raise OSError(f"'{url}' is no file")
        with pq.ParquetFile(local(url), page_checksum_verification=True) as file:
            yield file
        return
    fs, path = filesystem(url)
    opened = retrying(lambda: fs.open(path, "rb"), f"reading '{url}'")
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
        return bytes(retrying(lambda: self._raw.read(size), f"reading '{self._url}'"))
