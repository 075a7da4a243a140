"""Which checkpoints a run has, which are kept, and the remains of killed processes.

A checkpoint is ``step-N`` once it is committed, ``step-N.tmp`` while it is written, ``step-N.old`` while it is deleted.
Of links only the link is ever removed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from configs.errors import EchoForgeError
from configs.folders import PROGRESS_FILE
from train.checkpoints import manifest

LATEST = "LATEST"
PIN_FILE = "pinned"
_NAME = re.compile(r"step-([0-9]{1,18})(\.tmp|\.old)?", re.ASCII)


def committed(run: Path) -> list[Path]:
    """Committed checkpoints of a run, oldest first.

    Raises:
        EchoForgeError: one of them is a link: it would be read, renamed and deleted somewhere else.
    """
    found = [p for p in _ours(run) if not _suffix(p) and is_checkpoint(p)]
    if link := next((p for p in found if p.is_symlink()), None):
        raise EchoForgeError(f"checkpoint {link.name} of {run} is a link; put the folder itself in its place.")
    return sorted(found, key=step_of)


def latest(run: Path) -> Path | None:
    """The newest committed checkpoint, or None. (LATEST names it too, for other programs.)"""
    return paths[-1] if (paths := committed(run)) else None


def is_checkpoint(path: Path) -> bool:
    """Was this folder committed? (It may be damaged.)"""
    return any(os.path.lexists(path / name) for name in (PROGRESS_FILE, manifest.MANIFEST))


def is_pinned(path: Path) -> bool:
    """Was the checkpoint committed at the end of a stage?"""
    return (path / PIN_FILE).is_file()


def clean(run: Path) -> None:
    """Remove what a killed process left half-written or half-deleted. Of a link only the link goes.

    Raises:
        EchoForgeError: a folder is in the place of LATEST, so that no commit could end.
    """
    if (pointer := run / LATEST).is_dir() and not pointer.is_symlink():
        raise EchoForgeError(f"{pointer} is a folder, where the name of the newest checkpoint is written; remove it.")
    leftover = [path for path in _ours(run) if _suffix(path)]
    for path in leftover:
        final = path.with_suffix("")
        if _suffix(path) == ".old" and not path.is_symlink() and not os.path.lexists(final) and is_pinned(path):
            path.rename(final)
        else:
            remove(path)


def retain(run: Path, keep_last: int) -> None:
    """Delete the oldest unpinned checkpoints beyond ``keep_last`` (at least 1); the newest is never deleted."""
    loose = [p for p in committed(run) if not is_pinned(p)]
    for path in loose[: max(0, len(loose) - max(1, keep_last))]:
        doomed = path.with_name(path.name + ".old")
        remove(doomed)
        path.rename(doomed)
        remove(doomed)


def remove(path: Path) -> None:
    """Delete a folder with all in it, or a file; of a link only the link. Whoever watches may keep a part."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _ours(run: Path) -> list[Path]:
    """What lies in a run under the name of a checkpoint, whole or not."""
    return [path for path in run.glob("step-*") if _NAME.fullmatch(path.name)]


def step_of(path: Path) -> int:
    """The step that a checkpoint's name says; -1 of other names."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _suffix(path: Path) -> str:
    match = _NAME.fullmatch(path.name)
    return (match[2] or "") if match else ""
