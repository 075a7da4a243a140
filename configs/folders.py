"""What a folder holds (a catalog, a dataset, a run …), for errors about a wrong one, and checks of output paths.

A folder is known by the files that its maker writes. Only local paths are looked at; of an object store nothing is said.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.dataset_schema import DATASET_FILE, INDEX_FILE
from configs.errors import EchoForgeError
from configs.runtime import disk

PROGRESS_FILE = "progress.json"
"""In every committed checkpoint."""
LEDGER = "ledger"
"""The record of work of `curate` and `shard`: there from the first moment of a run on."""

Name = Literal["catalog", "dataset", "run", "checkpoint"]
_LEAST = 1_000_000
"""Bytes that every output may take; with less free the disk counts as full before the work and not after it."""
_VIDEOS = ("*.mp4", "*.mov", "*.mkv", "*.webm", "*.avi")


@dataclass(frozen=True)
class Kind:
    """What a command makes. ``marks`` are patterns; one file that matches one of them is enough."""

    name: Name
    marks: tuple[str, ...]
    taken_by: str


KINDS = (
    Kind("catalog", ("clips/*.parquet", f"{LEDGER}/curate"), "`shard`, `sync fit` and `catalog …`"),
    Kind("dataset", (INDEX_FILE, DATASET_FILE, f"{LEDGER}/shard"), "`train` and `shards …`"),
    Kind("run", (f"step-*/{PROGRESS_FILE}",), "`generate`, `negatives …` and `train DATASET --out`"),
    Kind("checkpoint", (PROGRESS_FILE,), "`generate`"),
)


def kinds(place: str | Path) -> list[Kind]:
    """All that a local folder is."""
    folder = Path(place)
    return [kind for kind in KINDS if any(next(folder.glob(mark), None) for mark in kind.marks)]


def found(place: str | Path, wanted: str) -> str:
    """What is at ``place``, where ``wanted`` was looked for in vain: a clause for an error message."""
    if _remote(place):
        return f"it is not a {wanted}, or not a finished one"
    path = Path(place)
    if not path.exists():
        return "it does not exist"
    if not path.is_dir():
        return "it is a file"
    there = kinds(path)
    if any(kind.name == wanted for kind in there):
        return "it is not finished"
    if there:
        return f"it is a {there[0].name}, which {there[0].taken_by} take{'s' if there[0].name == 'checkpoint' else ''}"
    if any(next(path.glob(pattern), None) for pattern in _VIDEOS):
        return "it is a folder of videos, which `curate` takes"
    return "it is an empty folder" if next(path.iterdir(), None) is None else f"it is a folder without a {wanted}"


def check_out(out: str | Path, wanted: str, inputs: Iterable[str | Path] = ()) -> None:
    """Check an output folder before any work, so that nothing is left half made.

    Args:
        wanted: what is to be written there: a name of :data:`KINDS`, or anything else.
        inputs: folders that are only read.

    Raises:
        EchoForgeError: ``out`` is a file or lies below one, may not be written, is an input, or holds something else.
    """
    check_out_folder(out, wanted)
    if _remote(out):
        return
    path = Path(out)
    if any(_same(path, place) for place in inputs):
        raise EchoForgeError(f"--out {out} is also the input; give the {wanted} a folder of its own.")
    there = [kind.name for kind in kinds(path)]
    if there and wanted not in there:
        raise EchoForgeError(f"--out {out} holds a {there[0]}; give the {wanted} a folder of its own.")


def check_out_folder(out: str | Path, wanted: str = "files") -> None:
    """:func:`check_out` for a folder that may hold anything."""
    if _remote(out):
        return
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise EchoForgeError(f"--out {out} is a file; give a folder for the {wanted}.")
    _check_parent(path)


def check_out_file(out: str | Path, suffixes: tuple[str, ...], inputs: Iterable[str | Path] = ()) -> None:
    """Check an output file before any work. Its folder need not exist yet.

    Args:
        suffixes: what it may end in.
        inputs: files that are only read.

    Raises:
        EchoForgeError: ``out`` is a folder, ends otherwise, lies below a file, may not be written, or is an input.
    """
    path = Path(out)
    if path.is_dir():
        raise EchoForgeError(f"--out {out} is a folder; give the name of a {' or '.join(suffixes)} file.")
    if path.suffix.lower() not in suffixes:
        raise EchoForgeError(
            f"--out {out} cannot be written as such a file; its name must end in {' or '.join(suffixes)}."
        )
    _check_parent(path.parent)
    if any(_same(path, place) for place in inputs):
        raise EchoForgeError(f"--out {out} is also an input and would be overwritten; give another name.")


def _check_parent(path: Path) -> None:
    """Raise unless ``path`` is a folder that can be written in, or can be made."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise EchoForgeError(f"the folder '{path}' cannot be made: '{there.name}' is a file; give another --out.")
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        raise EchoForgeError(f"'{there}' is on a read-only file system; allow writing there, or give another --out.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise EchoForgeError(f"'{there}' may not be written by this user; give another --out, or allow it (chmod).")
    disk.check_room(there, _LEAST, "the output")


def _same(a: Path, b: str | Path) -> bool:
    return not _remote(b) and Path(b).exists() and a.resolve() == Path(b).resolve()


def _remote(place: str | Path) -> bool:
    return "://" in str(place)
