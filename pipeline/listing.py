"""What lies in a folder, on a disk or in an object store; names are taken as they are, nothing in them is a pattern."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from configs.paths import is_remote
from configs.runtime import temporaries
from pipeline import storage


def files(url: str, suffix: str = "") -> list[storage.Entry]:
    """The files directly in a folder whose names end in ``suffix``, by name; temporary files are left out.

    A folder that does not exist is empty. Names are taken as they are: nothing in them is a pattern.
    """
    entries = _list_remote(url) if is_remote(url) else _list_local(url)
    wanted = (e for e in entries if e.name.endswith(suffix) and not temporaries.is_name(e.name))
    return sorted(wanted, key=lambda e: e.name)


def _list_local(url: str) -> Iterator[storage.Entry]:
    folder = storage.local(url)
    if not folder.is_dir():
        return
    with os.scandir(folder) as items:
        for item in items:
            try:
                if item.is_file():
                    stat = item.stat()
                    yield storage.Entry(str(folder / item.name), item.name, stat.st_size, str(stat.st_mtime_ns))
            except FileNotFoundError:
                continue  # renamed or removed meanwhile


def _list_remote(url: str) -> Iterator[storage.Entry]:
    fs, path = storage.filesystem(url)
    fs.invalidate_cache()
    try:
        items = storage.retrying(lambda: fs.ls(path, detail=True), f"listing '{url}'")
    except FileNotFoundError:
        return
    for item in items:
        if item["type"] == "file" and item["name"].rstrip("/") != path.rstrip("/"):
            name = PurePosixPath(item["name"]).name
            yield storage.Entry(
                fs.unstrip_protocol(item["name"]), name, int(item["size"] or 0), storage.tag_of(item.get)
            )


def folders(url: str) -> list[str]:
    """The folders directly in a folder, by name; one that does not exist has none."""
    if not is_remote(url):
        return sorted(str(p) for p in storage.local(url).iterdir() if p.is_dir()) if storage.local(url).is_dir() else []
    fs, path = storage.filesystem(url)
    fs.invalidate_cache()
    try:
        items = storage.retrying(lambda: fs.ls(path, detail=True), f"listing '{url}'")
    except FileNotFoundError:
        return []
    found = (PurePosixPath(i["name"].rstrip("/")).name for i in items if i["type"] == "directory")
    return [storage.join(url, name) for name in sorted(found)]


def names_below(url: str, skip: tuple[str, ...] = ()) -> list[str]:
    """Paths (``a/b``) of everything below a folder that is no folder, sorted; links are named and not followed.

    Args:
        skip: folders directly in it that are left out.
    """
    if is_remote(url):
        fs, path = storage.filesystem(url)
        found = storage.retrying(lambda: fs.find(path), f"listing '{url}'")
        names = [name[len(path.rstrip("/")) + 1 :] for name in found]
    else:
        names = []
        for folder, below, here in os.walk(storage.local(url)):
            links = [name for name in below if (Path(folder) / name).is_symlink()]
            names += [(Path(folder) / name).relative_to(storage.local(url)).as_posix() for name in [*here, *links]]
    return sorted(name for name in names if name.partition("/")[0] not in skip)
