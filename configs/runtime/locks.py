"""One process at a time changes a run, catalog, dataset or folder of negatives or weights; a second is told at once.

    with locked(folder, "run", "train"):
        ...
        check(folder)  # before a commit

On a disk the kernel keeps the lock (`flock`) and takes it back when the process dies, however it dies, so that a file
that is left behind means nothing. Where a file system has no locks, and in object stores (:mod:`pipeline.engine.lease`), it is
a lease (:mod:`configs.runtime.leases`). Reading needs no lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from configs.errors import EchoForgeError
from configs.runtime import leases, processes, temporaries
from configs.runtime.shown import one_line

LOCK_FILE = ".echoforge.lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # what network file systems answer
_MOST_TEXT = 4096  # bytes read of a lock file: ours have some 300, and a stranger's may have any number
_NO_NOTE = (ValueError, TypeError, KeyError, OverflowError, RecursionError)  # what a text that is none raises
_TURNS = 100  # to open a file in a folder that others make and take away
_WRITES_S = 1.0  # a holder writes who it is right after it has locked


class Locked(EchoForgeError):
    """Another process works there."""


class LockLost(EchoForgeError):
    """Another process may have begun to work there: nothing more is to be written."""


class Lock(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """Raises LockLost: it is not held any more."""


@contextmanager
def locked(folder: str | Path, what: str, command: str, *, make: bool = True) -> Iterator[Lock]:
    """Hold the lock of a local ``folder`` while the block runs; a block inside it, in the same thread, holds it as well.

    Args:
        what: what the folder is: run, catalog, dataset … (for messages).
        command: who asks, as the command line names it.
        make: make the folder, and take it away again where nothing was put into it. Otherwise a folder that is not there
            is not locked.

    Raises:
        Locked: another process holds it; nothing was written.
        EchoForgeError: the folder cannot be written.
    """
    place = Path(os.path.realpath(folder))
    if not make and not place.is_dir():
        yield _Kernel()
        return
    with holding(str(place), lambda: _swept(place, what, str(folder), command)) as lock:
        yield lock


def check(folder: str | Path) -> None:
    """Ask before a commit whether this process still holds the lock that it took on ``folder``; raises LockLost."""
    place = os.path.realpath(folder)
    for (held, _), lock in list(_held.items()):
        if held == place:
            lock.check()


@contextmanager
def _swept(place: Path, what: str, folder: str, command: str) -> Iterator[Lock]:
    """The lock, and nothing left below the folder of those who held it and were killed."""
    with _local(place, what, folder, command) as lock:
        temporaries.sweep(place)
        yield lock


_held: dict[tuple[str, int], Lock] = {}
_descriptors: set[int] = set()


@contextmanager
def holding(place: str, take: Callable[[], AbstractContextManager[Lock]]) -> Iterator[Lock]:
    """The lock of ``place`` as ``take`` takes it, or the one that this thread holds already."""
    mine = place, threading.get_ident()
    if (lock := _held.get(mine)) is not None:
        yield lock
        return
    with take() as lock:
        _held[mine] = lock
        try:
            yield lock
        finally:
            _held.pop(mine, None)


def _after_fork() -> None:
    """A child that goes on without `exec` keeps no lock: it may outlive this process."""
    _held.clear()
    for descriptor in _descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_after_fork)


def note(command: str) -> str:
    """Who asks for a lock, as the others read it; no two are the same."""
    about = {**asdict(processes.current()), "command": command, "since": time.time(), "token": secrets.token_hex(8)}
    return json.dumps(about)


def dead(text: str) -> bool:
    """Whether the maker of a :func:`note` is known to be dead: a process of this machine that is gone."""
    with contextlib.suppress(*_NO_NOTE):
        said = json.loads(text)
        who = processes.Process(str(said["host"]), str(said["space"]), int(said["pid"]), int(said["started"]))
        return bool(who.space) and processes.lives(who) is False
    return False


def refusal(what: str, place: str, text: str) -> str:
    """The sentence for who comes second. ``text`` comes from a file and may hold anything."""
    where = f"the {what} '{one_line(place)}' is being changed by"
    wait = "wait until it has ended, or stop it, then run this again"
    try:
        said: dict[str, Any] = json.loads(text)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(said["since"])))
        who = f"`{said['command']}` (process {int(said['pid'])} on {said['host']}, since {since})"
    except (*_NO_NOTE, OSError):
        return f"{where} another process; {wait}."
    return f"{where} {one_line(who)[:300]}; {wait}."


def lost(what: str, place: str, why: str) -> LockLost:
    """The error of a holder that is not one any more."""
    return LockLost(
        f"stopped: the lock of the {what} '{one_line(place)}' is lost ({why}), and another process may be changing it; "
        "nothing that was committed is lost: when nobody works there, run the same command again."
    )


class _Kernel:
    """Held as long as the process lives."""

    def check(self) -> None: ...


class Leased:
    """A lease as a lock."""

    def __init__(self, lease: leases.Lease, what: str, place: str) -> None:
        self._lease, self._what, self._place = lease, what, place

    def check(self) -> None:
        """Raises LockLost: the lease was taken over, or could not be renewed."""
        if not self._lease.check():
            raise lost(self._what, self._place, self._lease.lost)


@contextmanager
def leased(board: leases.Board, what: str, place: str, command: str) -> Iterator[Lock]:
    """Hold the lease that hangs at ``board``.

    Raises:
        Locked: another process holds it.
    """
    try:
        lease = leases.Lease(board, note(command), dead)
    except leases.Taken as taken:
        raise Locked(refusal(what, place, str(taken))) from None
    try:
        yield Leased(lease, what, place)
    finally:
        lease.release()


@contextmanager
def _local(folder: Path, what: str, shown: str, command: str) -> Iterator[Lock]:
    with ExitStack() as stack:
        try:
            stack.enter_context(_made(folder))
            lock = stack.enter_context(_by_the_kernel(folder, what, shown, command))
            lock = lock or stack.enter_context(leased(leases.FolderBoard(folder), what, shown, command))
        except OSError as error:
            raise EchoForgeError(
                f"the {what} '{one_line(shown)}' cannot be locked: {error.strerror or error}; the folder must be writable, "
                f"and nothing else may be called {LOCK_FILE} in it."
            ) from error
        yield lock


@contextmanager
def _by_the_kernel(folder: Path, what: str, shown: str, command: str) -> Iterator[Lock | None]:
    """The lock; None where the file system has none."""
    path = folder / LOCK_FILE
    descriptor = _open(path)
    try:
        while not _flock(descriptor, path):  # its last holder has just taken the file away
            _close(descriptor)
            descriptor = _open(path)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, note(command).encode(), 0)
        lock: Lock | None = _Kernel()
    except BlockingIOError:
        text = _text(descriptor)
        _close(descriptor)
        raise Locked(refusal(what, shown, text)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            _close(descriptor)
            raise
        lock = None
    try:
        yield lock
    finally:
        if descriptor in _descriptors:  # not in a child
            if lock is not None:  # the file goes while it is locked: who waits for it finds it gone, and makes another
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            _close(descriptor)


def _open(path: Path) -> int:
    """The lock file, made where it is missing. A folder may come from strangers: nothing but a plain file is opened."""
    for left in reversed(range(_TURNS)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
            break
        except (FileNotFoundError, FileExistsError):  # somebody who had made the folder took it away
            if not left:
                raise
    _descriptors.add(descriptor)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        _close(descriptor)
        raise FileExistsError(errno.EEXIST, f"{LOCK_FILE} is no file of its own")
    return descriptor


def _flock(descriptor: int, path: Path) -> bool:
    """Lock; False where the file at ``path`` is another one by now. Raises BlockingIOError: somebody holds it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _text(descriptor: int) -> str:
    """What the holder says of itself."""
    deadline = time.monotonic() + _WRITES_S
    while not (text := os.pread(descriptor, _MOST_TEXT, 0)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return text.decode("utf-8", "replace")


def _close(descriptor: int) -> None:
    _descriptors.discard(descriptor)
    os.close(descriptor)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder, made where it was missing; what was made goes away again unless something was put into it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()
