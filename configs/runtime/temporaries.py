"""Names of files that are being written beside their target, and their removal when the writer has died.

A name says which process writes (`configs.runtime.processes`), so that a sweep takes a dead one's file and no living one's.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from configs.runtime import processes

_NAME = re.compile(
    r"^\..*\.(?P<host>[^.~]+)(~(?P<space>[0-9a-f]{8})-(?P<started>\d+))?~(?P<pid>\d+)~\d+\.tmp$", re.DOTALL
)
"""Without the middle part as versions up to 0.1.0 wrote it, which take the rest for another machine's."""
_KEPT_BYTES = 100
"""Of a target's name in its temporary one: a name ends at 255 bytes, a machine's at 64, and the numbers want some 60."""
_FOREIGN_S = 86_400.0
"""Age at which a file of another machine or container goes: nobody can ask there whether its writer lives."""
_counter = itertools.count()


def beside(target: Path) -> Path:
    """A new hidden name in the folder of ``target``. :func:`sweep` removes the file when this process has died."""
    me = processes.current()
    writer = f"{me.host}~{_short(me.space)}-{me.started}~{me.pid}"
    return target.parent / f"{_stem(target)}{writer}~{next(_counter)}.tmp"


def is_name(name: str) -> bool:
    """Whether :func:`beside`, or an older version, made this name."""
    return _NAME.match(name) is not None


def sweep(folder: Path) -> int:
    """Remove what dead processes left anywhere below ``folder``; returns how many files. Links are not followed."""
    found = (Path(root) / name for root, _, names in os.walk(folder) for name in names if is_name(name))
    return _sweep(found)


def sweep_beside(target: Path) -> int:
    """Remove what dead processes left of ``target`` alone, in a folder that may be anybody's."""
    stem = _stem(target)
    with contextlib.suppress(OSError):
        return _sweep(p for p in target.parent.iterdir() if p.name.startswith(stem) and is_name(p.name))
    return 0


def _stem(target: Path) -> str:
    # The name is cut so that the longest legal target still has room for the temporary one beside it.
    return f".{os.fsencode(target.name)[:_KEPT_BYTES].decode('utf-8', 'ignore')}."


def _sweep(paths: Iterable[Path]) -> int:
    removed = 0
    for path in paths:
        match = _NAME.match(path.name)
        with contextlib.suppress(FileNotFoundError):
            lives = _lives(match) if match else True
            if lives is False or (lives is None and time.time() - path.lstat().st_mtime > _FOREIGN_S):
                path.unlink()
                removed += 1
    return removed


def _lives(name: re.Match[str]) -> bool | None:
    """Whether the process that a temporary file is named after still runs; None where this one cannot know."""
    host, pid, me = name["host"], int(name["pid"]), processes.current()
    if name["space"] is None:
        return None if processes.exists(pid) or host != me.host else False
    if name["space"] != _short(me.space):
        return None
    return processes.lives(processes.Process(host, me.space, pid, int(name["started"])))


def _short(space: str) -> str:
    return hashlib.sha256(space.encode()).hexdigest()[:8]
