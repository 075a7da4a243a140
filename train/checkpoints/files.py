"""Files of a run that a bad disk or a stranger may have changed: what they must be to be opened, and their digests.

Only regular files are opened: a link would lead elsewhere, and a pipe or a device would be read for ever.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any, BinaryIO

from configs import members
from configs.runtime import regular

try:  # a training machine may have torch and little else
    from xxhash import xxh3_64 as _xxh3
except ImportError:
    _xxh3 = None  # type: ignore[assignment, misc]

MAX_JSON = 256 * 2**20
"""Bytes: room for the metadata of two million shards, which are 128 bytes each."""
REMEDY = "copy it anew, or train again into another folder"
"""For a damaged checkpoint that has no older one beside it."""
_BLOCK = 4 * 2**20  # bytes hashed at a time: many enough that calls cost nothing, few enough to stay in the cache


class Damaged(Exception):
    """A file that cannot be used: which one, and why. What to do is for the caller to say."""


def open_binary(path: Path) -> BinaryIO:
    """A regular file, for reading.

    Raises:
        OSError: there is none, or it is a link, a folder, a pipe or a device.
    """
    return os.fdopen(regular.open_descriptor(path), "rb")


def reason(error: OSError) -> str:
    """What went wrong, as a clause, without the path."""
    return "it is missing" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a small file.

    Raises:
        Damaged: not a regular file, or more than ``limit`` bytes.
    """
    try:
        with open_binary(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read: {reason(error)}") from error
    if len(data) > limit:
        raise Damaged(f"{path.name} is larger than the {limit / 2**20:g} MiB that such a file may have")
    return data


def read_json(path: Path, limit: int = 2**20) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        Damaged: not a regular file, larger than ``limit`` bytes, not JSON, or something else than an object.
    """
    try:
        data = json.loads(read_bytes(path, limit).decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8; not JSON; too many digits; too many brackets
        raise Damaged(f"{path.name} is not JSON") from error
    if not isinstance(data, dict):
        raise Damaged(f"{path.name} holds no JSON object")
    return data


def is_deep(data: object, levels: int = 50) -> bool:
    """Whether JSON is nested deeper than any configuration: what walks through it would run out of stack."""
    below: list[object] = [data]
    for _ in range(levels):
        items = [
            value.values() if isinstance(value, dict) else value for value in below if isinstance(value, (dict, list))
        ]
        below = [inner for item in items for inner in item]
    return bool(below)


def write_new(path: Path, text: str) -> None:
    """Write a file of which nothing was there before; what was is removed, so that no link is followed."""
    path.unlink(missing_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def digest(path: Path) -> str:
    """``xxh3:…`` (it keeps up with the disk), or ``sha256:…`` where xxhash is not installed. Raises OSError."""
    with open_binary(path) as file:
        return _digest(file, "sha256" if _xxh3 is None else "xxh3")


def difference(folder: Path, name: str, wanted: str) -> str | None:
    """Why the member ``name`` of ``folder`` is not the file of which :func:`digest` said ``wanted``; None where it is."""
    kind = wanted.partition(":")[0]
    if kind == "xxh3" and _xxh3 is None:
        return "its digest is of the kind xxh3, and the package xxhash is not installed here (pip install xxhash)"
    if kind not in ("xxh3", "sha256"):
        return "its digest is of an unknown kind"
    try:
        with members.opened(folder, name) as file:
            same = _digest(file, kind) == wanted
    except members.BadMember as error:
        return str(error).rstrip(".")
    except OSError as error:
        return reason(error)
    return None if same else f"its bytes are not those that were written ({kind} differs)"


def _digest(file: IO[bytes], kind: str) -> str:
    hasher: Any = hashlib.sha256() if kind == "sha256" else _xxh3()
    block = memoryview(bytearray(_BLOCK))
    while count := file.readinto(block):  # type: ignore[attr-defined]
        hasher.update(block[:count])
    return f"{kind}:{hasher.hexdigest()}"
