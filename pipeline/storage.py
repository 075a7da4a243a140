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
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

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
    return Entry(url, name_of(url), int(info.get("size") or 0), tag_of(info.get))


def tag_of(known: Callable[[str], object]) -> str:
    """What changes when an object changes; ``known`` gives what its store says under a name, or None."""
    values = map(known, ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created"))
    return next((str(value).strip('"') for value in values if value is not None), "")


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
