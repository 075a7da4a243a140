"""What lies where a file of ours should be, and how it is set aside when it is damaged."""

from __future__ import annotations

import itertools
import os

from configs.paths import is_remote
from configs.runtime import temporaries
from pipeline import listing, storage


def is_file(url: str) -> bool | None:
    """Whether a regular file (or a link to one) is there; None: nothing is. Of an object store only files are asked for."""
    if is_remote(url):
        return True if storage.exists(url) else None
    path = storage.local(url)
    if path.is_file():
        return True
    return False if os.path.lexists(path) else None


def is_folder(url: str) -> bool:
    """Whether a folder is there; in an object store every name is one when something lies below it."""
    return is_remote(url) or storage.local(url).is_dir()


def everything(url: str, suffix: str) -> list[str]:
    """What lies directly in a folder under names that end in ``suffix``: of a local one also what is no file."""
    if is_remote(url):
        return [entry.url for entry in listing.files(url, suffix)]
    folder = storage.local(url)
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [str(folder / name) for name in there if name.endswith(suffix) and not temporaries.is_name(name)]


def set_aside(url: str) -> str:
    """Give what is there (a file, or locally anything) a name that ends in ``.damaged``; returns where it is.

    Raises:
        StoreError: no permission, or the store failed again and again.
    """
    number = next(n for n in itertools.count() if is_file(_aside(url, n)) is None)
    there = _aside(url, number)
    if is_remote(url):
        storage.write_bytes(there, storage.read_bytes(url))
        storage.remove(url)
    else:
        storage.retrying(lambda: storage.local(url).rename(storage.local(there)), f"renaming '{url}'")
    return there


def _aside(url: str, number: int) -> str:
    return f"{url}.damaged{number or ''}"
