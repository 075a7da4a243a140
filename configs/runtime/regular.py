"""Open a regular file and nothing else. What stands at a path may have been put there by a stranger: opening a link leads
elsewhere, opening a pipe waits for ever, and opening a device may already do something.

Standard library only: `train/` reads with it, too.
"""

from __future__ import annotations

import os
import stat

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class NotRegular(OSError):
    """A link, a folder, a device or a pipe is in the place of a file; ``kind`` says which, in words."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"it is {kind}, not a regular file")
        self.kind = kind


def check(mode: int) -> None:
    """Raise :class:`NotRegular` unless ``mode`` (`os.stat`) is that of a regular file."""
    if not stat.S_ISREG(mode):
        raise NotRegular("a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "a device or pipe")


def open_descriptor(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> int:
    """A descriptor to read a regular file with; the caller closes it.

    Args:
        dir_fd: of the folder that a relative ``path`` starts from.

    Raises:
        NotRegular: something else is there. Other OSErrors: nothing is there, or it may not be read.
    """
    check(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode)  # before it is opened
    descriptor = os.open(path, _FLAGS, dir_fd=dir_fd)
    try:
        check(os.fstat(descriptor).st_mode)
    except NotRegular:
        os.close(descriptor)
        raise
    return descriptor
