"""The one way to open a file that a table names inside a folder: the members of a dataset, the files of its negatives.

An index, a plan or a table of samples may come from a stranger. It could name ``../../etc/passwd``, ``/dev/zero`` or a
name that is a link out of the folder. So a name counts only as a plain relative path, no part of it may be a link, and
what it leads to must be a regular file. The folder itself may be reached through links: the user named it.

For files on this machine; of an object store :func:`relative` checks the name, and the store has neither links nor
devices. Standard library only: `train/` reads with it, too.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from configs.errors import EchoForgeError
from configs.runtime import regular
from configs.runtime.shown import one_line

# Control characters and lone surrogates; backslash and colon (drives, URLs, `a::b` chains of fsspec); what ends or
# escapes a path in a URL.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f\\\\:%?#\ud800-\udfff]")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_SUCH_PATH = (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)


class BadMember(EchoForgeError):
    """A name that leads out of its folder, or to something that is no regular file, or past the end of one."""


def relative(name: object) -> str:
    """``name`` itself, when it is a plain relative path: ``part/part``, no ``..``, nothing that a URL or Windows reads
    otherwise.

    Raises:
        BadMember: it is not.
    """
    if not isinstance(name, str) or _FORBIDDEN.search(name) or {"", ".", ".."} & set(name.split("/")):
        raise BadMember(f"'{_short(name)}' lies outside the folder: only plain relative paths are followed.")
    return name


def check(root: str | os.PathLike[str], name: object) -> Path:
    """The path of a member, for libraries that open files themselves, and of one that is to be written.

    Raises:
        BadMember: a bad name, a link on the way, or something there that is no regular file.
    """
    parts = relative(name).split("/")
    path = Path(root)
    for number, part in enumerate(parts, 1):
        path = path / part
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _refused(name, error) from error
        if number == len(parts):
            try:
                regular.check(mode)
            except regular.NotRegular as error:
                raise _not_regular(name, error) from error
        elif not stat.S_ISDIR(mode):
            raise BadMember(f"'{_short(name)}' lies behind a link or a file.")
    return path


def open_descriptor(root: str | os.PathLike[str], name: object) -> int:
    """A descriptor of a member, for reading; the caller closes it.

    Raises:
        BadMember: as :func:`check`.
        FileNotFoundError: there is no such file. Other OSErrors: it may not be read.
    """
    *folders, file = relative(name).split("/")
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:
            inner = os.open(part, _FOLDER, dir_fd=at)
            os.close(at)
            at = inner
        return regular.open_descriptor(file, dir_fd=at)
    except regular.NotRegular as error:
        raise _not_regular(name, error) from error
    except OSError as error:
        if error.errno in _NO_SUCH_PATH:
            raise _refused(name, error) from error
        raise
    finally:
        os.close(at)


@contextmanager
def opened(root: str | os.PathLike[str], name: object) -> Iterator[IO[bytes]]:
    """A member as a stream. Raises as :func:`open_descriptor`."""
    with os.fdopen(open_descriptor(root, name), "rb") as stream:
        yield stream


def read(root: str | os.PathLike[str], name: object, *, most: int) -> bytes:
    """The whole content of a member of at most ``most`` bytes.

    Raises:
        BadMember: a bad name, no regular file, or it is larger. OSError: as :func:`open_descriptor`.
    """
    with opened(root, name) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise BadMember(f"'{_short(name)}' has {size} bytes; such a file has at most {most}.")
        return stream.read(size)


def read_range(root: str | os.PathLike[str], name: object, offset: int, length: int) -> bytes:
    """``length`` bytes from ``offset`` on. The file's size is asked before memory is taken.

    Raises:
        BadMember: a bad name, no regular file, or the range is not inside it. OSError: as :func:`open_descriptor`.
    """
    with opened(root, name) as stream:
        check_range(name, offset, length, os.fstat(stream.fileno()).st_size)
        stream.seek(offset)
        return stream.read(length)


def check_range(name: object, offset: int, length: int, size: int) -> None:
    """Raise :class:`BadMember` unless ``length`` bytes from ``offset`` on lie inside a file of ``size`` bytes."""
    if type(offset) is not int or type(length) is not int or offset < 0 or length < 0 or offset + length > size:
        raise BadMember(f"'{_short(name)}' has {size} bytes, and {length} from byte {offset} on are asked for.")


def _not_regular(name: object, error: regular.NotRegular) -> BadMember:
    return BadMember(f"'{_short(name)}' is {error.kind}, not a regular file.")


def _refused(name: object, error: OSError) -> BadMember:
    what = "has too long a name" if error.errno == errno.ENAMETOOLONG else "lies behind a link or a file"
    return BadMember(f"'{_short(name)}' {what}.")


def _short(name: object) -> str:
    text = one_line(name)
    return text if len(text) <= 80 else f"{text[:80]}…"
