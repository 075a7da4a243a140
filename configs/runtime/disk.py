"""What a disk refuses, as a sentence: full, read-only, not allowed. And files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from configs.errors import EchoForgeError
from configs.runtime import temporaries

_WHY = {
    errno.ENOSPC: "no space is left; free some and run again",
    errno.EDQUOT: "the quota is used up; free some space and run again",
    errno.EFBIG: "it would be larger than files may be here (`ulimit -f`); raise the limit and run again",
    errno.EROFS: "its file system is read-only; allow writing, or give another place",
    errno.EACCES: "this user may not write there; allow it (chmod), or give another place",
    errno.EPERM: "this user may not write there; allow it (chmod), or give another place",
}


class Refused(EchoForgeError):
    """The disk took nothing more: no fault of what was to be written, and the same for whatever comes next."""


def refusal(error: BaseException | None) -> str | None:
    """Why the disk refused and what to do, if that is what ``error``, or an error below it, says."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _WHY:
            return _WHY[error.errno]
        # safetensors and torch pass the system's message on in an exception of their own
        text = str(error)
        for number, why in _WHY.items():
            if os.strerror(number) in text or f"os error {number})" in text:
                return why
        error = error.__cause__
    return None


@contextlib.contextmanager
def refused(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say what the disk refuses inside the block.

    Raises:
        Refused: names ``path``, why, and what to do.
    """
    try:
        yield
    except EchoForgeError:
        raise
    except BaseException as error:  # torch's CheckpointException is no Exception
        if (why := refusal(error)) is None:
            raise
        raise Refused(f"'{os.fspath(path)}' could not be written: {why}.") from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write beside ``path``, whose folder is made. When the block ends well it takes the name ``path``; else it
    is gone: at once, or after a kill when ``path`` is written again.

    Raises:
        Refused: the disk did not take it.
    """
    target = Path(path)
    part = temporaries.beside(target)
    with refused(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporaries.sweep_beside(target)
        part.unlink(missing_ok=True)  # a link in its place would be followed
        try:
            yield part
            sync(part)
            part.replace(target)
            sync(target.parent)
        finally:
            part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_room(place: str | os.PathLike[str], needed: int, what: str) -> None:
    """Check before the work that ``needed`` bytes are free where ``place`` is, or will be made. Of an object store, and of
    a file system that does not say what it has, nothing is known.

    Raises:
        Refused: they are not; ``what`` says what takes them.
    """
    if "://" in os.fspath(place):
        return
    path = Path(place).absolute()
    usage = shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists()))
    if usage.total and usage.free < needed:
        raise Refused(
            f"{what} needs about {_amount(needed)} at '{os.fspath(place)}', where {_amount(usage.free)} are free; make room, "
            "or give another place."
        )


def _amount(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"
