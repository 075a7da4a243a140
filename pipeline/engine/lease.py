"""The lock of a catalog or dataset wherever it lies: on a disk `configs.runtime.locks`, in an object store a lease.

A note of a lease is an object that only one process can create: a conditional put (`If-None-Match: *` in S3,
`ifGenerationMatch=0` in Google's store, an access condition in Azure's), which fsspec calls ``mode="create"``. A store
without it, or one that ignores it, lets two commands in that begin within the same second; each finds out when it renews
its lease, at most `leases.RENEW_S` later, that the note is not its own, and stops.

While a lease is held `store` asks before everything that appears, changes or goes away below the folder whether it still
is; `engine` asks about once a second, so that a run that lost its lease stops. What its workers have in hand may still
be committed to the ledger: such a part has the name and the rows that the other run's would have.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from configs.paths import is_remote
from configs.runtime import leases, locks
from configs.runtime.redaction import redact
from pipeline import listing, storage

_NO_CONDITION = (errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def locked(url: str, what: str, command: str, *, make: bool = True) -> Iterator[locks.Lock]:
    """`configs.runtime.locks.locked` for a folder that may lie in an object store.

    Raises:
        Locked: another process holds it.
        EchoForgeError: the folder cannot be written.
    """
    if not is_remote(url):
        with locks.locked(storage.local(url), what, command, make=make) as lock, _asked(url, lock):
            yield lock
        return
    shown = redact(url)
    with (
        locks.holding(url, lambda: locks.leased(StoreBoard(url), what, shown, command)) as lock,
        _asked(url, lock),
    ):
        yield lock


@contextmanager
def _asked(url: str, lock: locks.Lock) -> Iterator[None]:
    """While the block runs, `store` asks ``lock`` before it changes anything below ``url``."""
    place = storage.place_of(url)
    outer = storage.GUARDS.setdefault(place, lock.check)
    try:
        yield
    finally:
        if outer == lock.check:
            storage.GUARDS.pop(place, None)


class StoreBoard:
    """Notes as objects below a folder of an object store."""

    def __init__(self, url: str) -> None:
        self._url = storage.join(url, leases.FOLDER)
        self._fs, self._path = storage.filesystem(self._url)

    def names(self) -> list[str]:
        return [entry.name for entry in listing.files(self._url)]

    def create(self, name: str, text: str) -> bool:
        def put() -> bool:
            try:
                self._put(name, text, mode="create")
            except FileExistsError:
                return False
            except (TypeError, NotImplementedError):  # a file system that knows no modes
                self._put(name, text)
            except OSError as error:
                if error.errno not in _NO_CONDITION:
                    raise
                self._put(name, text)
            return True

        return storage.retrying(put, f"locking '{self._url}'")

    def write(self, name: str, text: str) -> None:
        storage.retrying(lambda: self._put(name, text), f"writing '{self._url}'")

    def read(self, name: str) -> str:
        return storage.read_bytes(storage.join(self._url, name)).decode("utf-8", "replace")

    def remove(self, name: str) -> None:
        storage.remove_object(storage.join(self._url, name))

    def written(self, name: str) -> float:
        path = f"{self._path}/{name}"
        self._fs.invalidate_cache()
        when: float = storage.retrying(lambda: self._fs.modified(path), f"looking at '{self._url}'").timestamp()
        return when

    def _put(self, name: str, text: str, **mode: Any) -> None:
        self._fs.pipe_file(f"{self._path}/{name}", text.encode(), **mode)
        self._fs.invalidate_cache(self._path)
