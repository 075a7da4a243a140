"""What to curate: folders, globs, fsspec URLs, manifests, HDTF's annotation files, EMTD's lists → sources.

Only names are looked at; no media is opened, nothing is fetched from video sites. A name is never parsed beyond
what it stands for: quotes, spaces, a leading dash or a newline are only characters.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import fsspec

from configs import folders
from configs.errors import EchoForgeError
from configs.paths import absolute
from configs.runtime import stopping
from curation.caption_files import is_media
from curation.config import CurationConfig
from curation.media.container import utf8
from curation.sources import hdtf, manifest
from curation.sources.source import Source

_TABLES = (".csv", ".tsv", ".parquet")
_LISTS = (".lst", ".list")
_MEDIA = frozenset(
    f".{name}"
    for name in (
        *("mp4", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "m4v", "m4a", "ts", "mts", "m2ts"),
        *("flv", "wmv", "3gp", "ogv", "mxf", "gif", "ivf", "y4m", "wav"),
    )
)
_SIDECARS = frozenset((".txt", ".json", ".csv", ".parquet", ".md", ".srt", ".vtt", ".jpg", ".png", ".flac", ".html"))


def expand(sources: list[str], cfg: CurationConfig) -> list[Source]:
    """Sources as a user names them → videos, each once, in a stable order. Local ones are named from the root on.

    A folder is searched to any depth. Files in it that carry a video's extension are taken; so is any file that
    another kind of name does not explain (a wrong extension is no reason to lose a video); sidecars are not.

    Raises:
        EchoForgeError: a source that does not exist or is no video, or a table without a column of names.
    """
    found: dict[str, Source] = {}
    for name in sources:
        items = list(_one(absolute(name), cfg))
        if not items:
            raise EchoForgeError(
                f"'{name}' holds no videos{_instead(name)}; give a folder, a glob, a URL or a manifest."
            )
        stopping.check()
        for item in items:
            found.setdefault(item.uri, item)
    return list(found.values())


def _one(name: str, cfg: CurationConfig) -> Iterator[Source]:
    path = Path(name)
    if path.is_dir():
        if {"dataset", "run", "checkpoint"} & {kind.name for kind in folders.kinds(path)}:
            raise EchoForgeError(f"'{name}' holds no videos to curate{_instead(name)}.")
        yield from hdtf.annotated(path, _files(name), cfg) if hdtf.is_hdtf(path) else _folder(name)
    elif path.is_file():
        yield from _file(name, cfg)
    elif "://" in name or any(c in name for c in "*?["):
        yield from _remote(name, cfg)
    else:
        state = "is neither a folder nor a file" if path.exists() else "does not exist"
        raise EchoForgeError(f"'{name}' {state}; give a folder, a file, a glob or a URL.")


def _instead(name: str) -> str:
    """What a local folder is, as a clause."""
    return f": {folders.found(name, 'video')}" if Path(name).is_dir() else ""


def _file(name: str, cfg: CurationConfig) -> Iterator[Source]:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in _TABLES:
        yield from manifest.read_table(name, cfg.captions.column)
    elif suffix in _LISTS:
        yield from manifest.read_list(name)
    elif suffix in _SIDECARS and not _looks_like_media(Path(name)):
        raise EchoForgeError(f"'{name}' is not a video; a list of videos ends in .csv, .tsv, .parquet, .lst or .list.")
    else:
        yield Source(utf8(name), source=utf8(_parent(name)))


def _folder(root: str) -> Iterator[Source]:
    for path in sorted(_files(root)):
        suffix = path.suffix.lower()
        sidecar = suffix in _SIDECARS and not _looks_like_media(path)
        if not sidecar and not path.name.startswith(".") and not path.name.endswith((".part", ".tmp")):
            yield Source(utf8(str(path)), source=utf8(path.parent.name), root=utf8(root))


def _files(root: str) -> Iterator[Path]:
    """All that is no folder, links to folders followed once. What cannot be entered is an error: nothing is left out.

    Raises:
        EchoForgeError: a folder that cannot be listed.
    """

    def stop(error: OSError) -> None:
        raise EchoForgeError(f"the folder '{error.filename}' cannot be listed ({error.strerror}); allow it or move it.")

    seen: set[str] = set()
    for folder, below, names in os.walk(root, onerror=stop, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:  # a link back
            below.clear()
            continue
        seen.add(place)
        yield from (Path(folder, name) for name in names)


def _looks_like_media(path: Path) -> bool:
    """Does a file with a sidecar's extension begin like a video container?"""
    try:
        if not path.is_file():  # a pipe would wait for ever
            return False
        with path.open("rb") as file:
            return is_media(file.read(12))
    except OSError:
        return False


def _remote(name: str, cfg: CurationConfig) -> Iterator[Source]:
    try:
        fs, root = fsspec.core.url_to_fs(name)
    except (ValueError, ImportError) as error:
        raise EchoForgeError(f"'{name}' cannot be opened: {error}; check the address.") from error
    if any(c in name for c in "*?["):
        files = sorted(p for p in fs.glob(root) if not fs.isdir(p))
    elif fs.isdir(root):
        files = sorted(p for p in fs.find(root) if PurePosixPath(p).suffix.lower() in _MEDIA)
    elif fs.exists(root):
        files = [root]
    else:
        raise EchoForgeError(f"'{name}' does not exist or cannot be listed; check the address and your credentials.")
    local = "://" not in name
    for file in files:
        uri = str(file) if local else fs.unstrip_protocol(file)
        yield from _file(uri, cfg) if len(files) == 1 else [Source(utf8(uri), source=utf8(_parent(uri)))]


def _parent(uri: str) -> str:
    return PurePosixPath(uri).parent.name
