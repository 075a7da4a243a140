"""Files beside a local video (captions, facts), which strangers may have written: what of them is opened, and how much.

A sidecar is opened only as a regular file of limited size that lies, links resolved, in the folder of sources that the
user named: a link out of it could bring any text of this machine into a dataset. ``sources.follow_links=true`` allows
links to anywhere.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from configs.errors import EchoForgeError
from configs.runtime import regular
from configs.runtime.shown import one_line

MOST_BYTES = 16 << 20
"""Of a `.txt` or `.json`: key points of a long video are a few MB; it is held in memory when it is parsed."""
TABLE_BYTES = 256 << 20
"""Of a table of captions: a hundred thousand of 2 kB. The driver holds it while it plans its folder."""
FACT_BYTES = 1024
"""Of a name (speaker, licence, collection)."""


def root_of(uri: str, root: str, follow_links: bool) -> str | None:
    """Where sidecars of a video may lie: the real path of ``root``, else of the video's folder; None: anywhere."""
    return None if follow_links else os.path.realpath(root or Path(uri).parent)


def within(path: str, root: str | None) -> bool:
    """Does a path, links resolved, lie in the folder ``root`` (a real path; None: everywhere is inside)?"""
    return root is None or os.path.realpath(path).startswith(root.rstrip("/") + "/")


def find(file: Path, root: str | None, most: int = MOST_BYTES) -> Path | None:
    """The real path of a sidecar; None where there is no file of that name.

    Args:
        root: as :func:`root_of` gives it.
        most: bytes that it may have.

    Raises:
        EchoForgeError: a link out of ``root`` or to nowhere, a pipe or a device, too large.
    """
    try:
        if stat.S_ISDIR(file.lstat().st_mode):
            return None
    except OSError:  # nothing there, or a name too long for another suffix
        return None
    if not within(str(file), root):
        raise EchoForgeError(
            f"{_name(file)} is a link out of the folder of sources; put a file there, or set sources.follow_links=true."
        )
    real = Path(os.path.realpath(file))
    try:
        about = real.stat()
    except OSError as error:
        raise EchoForgeError(f"{_name(file)} cannot be read ({error.strerror}); mend or remove it.") from error
    if stat.S_ISDIR(about.st_mode):
        return None
    if not stat.S_ISREG(about.st_mode):
        raise EchoForgeError(f"{_name(file)} is a pipe or a device and no file; remove it.")
    if about.st_size > most:
        raise EchoForgeError(
            f"{_name(file)} has {about.st_size} bytes, and at most {most} are read; shorten it, or move it elsewhere."
        )
    return real


def read(file: Path) -> bytes:
    """The content of a file that :func:`find` gave; never more than :data:`MOST_BYTES`, whatever became of it since.

    Raises:
        OSError: it cannot be read.
    """
    with os.fdopen(regular.open_descriptor(file), "rb") as stream:
        return stream.read(MOST_BYTES)


def checked(text: str, most: int, what: str) -> str:
    """``text``, if a table can hold it.

    Args:
        most: bytes in UTF-8.
        what: it is, for the message.

    Raises:
        EchoForgeError: too long, or half a character in it (a lone surrogate, which no encoding has).
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise EchoForgeError(f"{what} holds a lone surrogate, which is no character; write it in UTF-8.") from error
    if size > most:
        raise EchoForgeError(f"{what} has {size} bytes, and at most {most} are taken; shorten it.")
    return text


def _name(file: Path) -> str:
    return f"the sidecar '{one_line(file.name)}'"
