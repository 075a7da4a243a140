"""Temporary folders of this program: in a place of its own, locked while their owner lives, swept when it is dead.

The system's temporary folder belongs to everybody, so a name in it proves nothing. All folders lie in
``<temporary folder>/echoforge-<user id>/``, which is used only when it is a real folder that this user alone may enter.
Each folder NAME has a file ``NAME.lock`` beside it that says who made it, and whose lock (flock) its owner holds until
it ends, however it ends: the system gives the lock back, programs started meanwhile do not inherit it. The sweep
deletes a folder only when its file carries our mark and nobody holds its lock.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

from configs.errors import EchoForgeError
from configs.runtime import processes

_MARK = "echoforge-scratch-1"
_LOCK = ".lock"
_OURS = re.compile(r"[0-9a-f]{8}\.lock")
_NAME_BYTES = 4
"""Random bytes of a folder's name (8 hex digits): short, because paths of sockets are; a name that is taken is drawn again."""
_FOREIGN_S = 86_400.0
"""A folder of another machine or container, whose processes cannot be asked for, is swept a day after it was made, if
its lock is free: on some network file systems a lock counts on one machine only. `store.sweep` waits as long."""


@contextlib.contextmanager
def folder(longest: int | None = None) -> Iterator[Path]:
    """A new folder that only this user may enter, removed at the end of the block or, after a kill, by a later sweep.

    Args:
        longest: its path has at most so many characters (a socket's path ends at 107); ``/tmp`` is used where the
            temporary folder's own path is too long.

    Raises:
        EchoForgeError: no temporary folder can be made.
    """
    _sweep_once()
    place = _place(longest)
    try:
        name, lock = _claim(place)
    except OSError as error:
        raise EchoForgeError(_no_room(place, error)) from error
    try:
        yield place / name
    finally:
        shutil.rmtree(place / name, ignore_errors=True)
        if not (place / name).exists():  # else a process below us still writes: a later sweep takes the rest
            (place / f"{name}{_LOCK}").unlink(missing_ok=True)
        os.close(lock)


def kept(name: str) -> Path:
    """Path of a folder for what other packages keep from run to run (caches); nothing in it is ever swept.

    Raises:
        EchoForgeError: no temporary folder can be made.
    """
    return _place() / name


def sweep() -> int:
    """Remove what dead processes of this program left in the temporary folder; returns how many folders."""
    return sum(_sweep(place) for place in {_shared(parent) for parent in _parents()})


@cache
def _sweep_once() -> None:
    sweep()


# ---------------------------------------------------------------------------------------------------- the place


def _parents() -> list[str]:
    """Where places may lie; ``/tmp`` second, for paths that must be short."""
    try:
        return [tempfile.gettempdir(), "/tmp"]
    except OSError as error:
        raise EchoForgeError(_no_room("the temporary folder", error)) from error


def _shared(parent: str) -> Path:
    return Path(parent) / f"echoforge-{os.geteuid()}"


def _place(longest: int | None = None) -> Path:
    """Our place, made if need be."""
    places = [_shared(parent) for parent in _parents()]
    need = 1 + 2 * _NAME_BYTES
    return _usable(next((p for p in places if longest is None or len(str(p)) + need <= longest), places[-1]))


@cache
def _usable(place: Path) -> Path:
    """``place``, made if need be; where its name is taken by something else, a private one of this process."""
    try:
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o700)
        with _opened(place) as handle:
            if handle is not None:
                return place
        private = Path(tempfile.mkdtemp(prefix=f"{place.name}-", dir=place.parent))
    except OSError as error:
        raise EchoForgeError(_no_room(place.parent, error)) from error
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    print(
        f"warning: '{place}' is not a folder that this user alone may enter, so temporary files go to '{private}', which "
        "nobody removes after a kill; remove the former, or set TMPDIR to another folder.",
        file=sys.stderr,
    )
    return private


@contextlib.contextmanager
def _opened(place: Path) -> Iterator[int | None]:
    """A descriptor of ``place``; None when it is missing, a link, no folder, or open to other users."""
    try:
        handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        about = os.fstat(handle)
        yield handle if about.st_uid == os.geteuid() and not stat.S_IMODE(about.st_mode) & 0o077 else None
    finally:
        os.close(handle)


def _no_room(place: Path | str, error: OSError) -> str:
    why = error.strerror or str(error)
    return (
        f"no temporary folder can be made in '{place}' ({why}); set TMPDIR to a folder with space that you may write."
    )


# ---------------------------------------------------------------------------------------------------- one folder


def _claim(place: Path) -> tuple[str, int]:
    """Make a folder: first its lock, then the mark, then the folder, so that a sweep sees nothing that is half ours."""
    while True:
        name = secrets.token_hex(_NAME_BYTES)
        with contextlib.suppress(FileExistsError):
            lock = os.open(place / f"{name}{_LOCK}", os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            break
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, json.dumps({"mark": _MARK, **asdict(processes.current())}).encode())
        (place / name).mkdir(mode=0o700)
    except OSError:
        (place / f"{name}{_LOCK}").unlink()
        os.close(lock)
        raise
    return name, lock


def _sweep(place: Path) -> int:
    removed = 0
    with _opened(place) as handle:
        if handle is None:
            return 0
        for file in filter(_OURS.fullmatch, os.listdir(handle)):  # noqa: PTH208 - a path cannot be a descriptor
            with contextlib.suppress(OSError):
                removed += _swept(handle, file)
    return removed


def _swept(place: int, file: str) -> bool:
    """Remove the folder of one lock file of ``place`` if it is ours and its owner is dead."""
    lock = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its owner lives, or another sweep has it
        if not _dead(lock) or not os.path.samestat(os.fstat(lock), os.stat(file, dir_fd=place, follow_symlinks=False)):
            return False
        name = file.removesuffix(_LOCK)
        shutil.rmtree(name, ignore_errors=True, dir_fd=place)  # of links it removes nothing, and follows none
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=place, follow_symlinks=False)
            return False  # something is still being written there: the next sweep completes it
        os.unlink(file, dir_fd=place)
        return True
    finally:
        os.close(lock)


def _dead(lock: int) -> bool:
    """Whether a lock file carries our mark and its owner is gone."""
    about = os.fstat(lock)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
        return False
    try:
        told = json.loads(os.read(lock, 4096))
        mark = told.pop("mark")
        owner = processes.Process(**told)
        lives = processes.lives(owner)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # not what we write
        return False
    if mark != _MARK:
        return False
    return time.time() - about.st_mtime > _FOREIGN_S if lives is None else not lives
