"""Who a process is, in words that another process can check later: for locks, temporary folders and half-written files.

A process id alone is not enough: ids are given again, and two containers that share a folder count theirs apart.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of some machine.

    Attributes:
        host: name of the machine, letters, digits and hyphens only.
        space: what process ids of that machine are counted in: the boot and the pid namespace ('' where the system does
            not tell).
        pid: its id there.
        started: clock ticks from boot to its start; 0 where the system does not tell.
    """

    host: str
    space: str
    pid: int
    started: int


def current() -> Process:
    """This process."""
    return Process(host(), _space(), os.getpid(), _started(os.getpid()) or 0)


def lives(process: Process) -> bool | None:
    """Whether ``process`` still runs; None where this process cannot know: on another machine or in another container."""
    if (process.host, process.space) != (host(), _space()):
        return None
    if not exists(process.pid):
        return False
    return not process.started or _started(process.pid) in (process.started, None)


def exists(pid: int) -> bool:
    """Whether a process of this machine has this id now, whoever it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; a number that no process can have
        return pid < 2**31
    return True


def host() -> str:
    """Name of this machine, fit for a file name."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


@cache
def _space() -> str:
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _started(pid: int) -> int | None:
    """proc(5): field 22 of ``/proc/PID/stat``, counted after the command's name, which may hold spaces and brackets."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
    return None
