"""What to curate: folders, globs, fsspec URLs, manifests, HDTF's annotation files, EMTD's lists → sources.

Only names are looked at; no media is opened, nothing is fetched from video sites. A name is never parsed beyond
what it stands for: quotes, spaces, a leading dash or a newline are only characters.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from configs import folders, stopping
from configs.errors import EchoForgeError
from configs.paths import absolute
from curation import spreadsheet
from curation.config import CurationConfig
from curation.media import utf8

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


@dataclass(frozen=True, slots=True)
class Source:
    """One video to curate. ``spans`` are seconds [start, end) to look at; none: all of it."""

    uri: str
    source: str = ""  # name of the collection it belongs to
    licence: str | None = None
    spans: tuple[tuple[float, float], ...] = ()
    caption: str | None = None
    speaker: str | None = None
    region: tuple[int, int, int, int, int] | None = None  # x, y, w, h where the speaker is, and for what height that is


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
        yield from _hdtf(path) if _is_hdtf(path) else _folder(name)
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
        yield from _manifest(name, cfg)
    elif suffix in _LISTS:
        yield from _list(name)
    elif suffix in _SIDECARS and not _looks_like_media(Path(name)):
        raise EchoForgeError(f"'{name}' is not a video; a list of videos ends in .csv, .tsv, .parquet, .lst or .list.")
    else:
        yield Source(utf8(name), source=utf8(_parent(name)))


def _folder(root: str) -> Iterator[Source]:
    for path in sorted(_files(root)):
        suffix = path.suffix.lower()
        sidecar = suffix in _SIDECARS and not _looks_like_media(path)
        if not sidecar and not path.name.startswith(".") and not path.name.endswith((".part", ".tmp")):
            yield Source(utf8(str(path)), source=utf8(path.parent.name))


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
            head = file.read(12)
    except OSError:
        return False
    return head[4:8] == b"ftyp" or (head[:4] in (b"\x1aE\xdf\xa3", b"RIFF") and head[8:12] not in (b"WAVE", b"WEBP"))


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


_NAMES = ("uri", "source_uri", "path", "url", "file", "video")


def _manifest(name: str, cfg: CurationConfig) -> Iterator[Source]:
    """CSV, TSV or Parquet: a column uri (or path, url, file, video), and if present start, end (seconds), licence,
    source, speaker, and the caption column of the configuration. Rows of one uri become its spans."""
    spans: dict[str, list[tuple[float, float]]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for row in _rows(name):
        uri = next((str(row[k]) for k in _NAMES if row.get(k)), None)
        if uri is None:
            raise EchoForgeError(f"{name} has no column that names the videos; call it 'uri' or 'path'.")
        uri = _beside(name, uri)
        facts.setdefault(uri, row)
        start, end = row.get("start") or row.get("start_s"), row.get("end") or row.get("end_s")
        if start not in (None, "") and end not in (None, ""):
            spans.setdefault(uri, []).append(_span(start, end, name))
    stem = PurePosixPath(name).stem
    for uri, row in facts.items():
        yield Source(
            uri,
            source=str(row.get("source") or stem),
            licence=row.get("licence") or row.get("license") or None,
            spans=tuple(sorted(spans.get(uri, []))),
            caption=row.get(cfg.captions.column) or None,
            speaker=row.get("speaker") or None,
        )


def _beside(name: str, uri: str) -> str:
    """``uri`` as it is when it is absolute or a URL, else relative to the file ``name``."""
    if uri.startswith("/") or "://" in uri or Path(uri).is_absolute():
        return uri
    beside = str(PurePosixPath(name).parent / uri)
    return absolute(beside) if ".." in uri else beside


def _rows(name: str) -> Iterator[dict[str, Any]]:
    with fsspec.open(name, "rb") as file:
        if not name.lower().endswith(".parquet"):
            yield from spreadsheet.rows(file.read(), name)
            return
        try:
            yield from pq.read_table(file).to_pylist()
        except pa.ArrowInvalid as error:
            raise EchoForgeError(f"'{name}' is not a readable Parquet file ({error}); write it again.") from error


def _list(name: str) -> Iterator[Source]:
    """EMTD and the like: one video a line, optionally followed by start and end in seconds."""
    with fsspec.open(name, "rt", encoding="utf-8") as file:
        for line in file:
            uri, *times = line.strip().split("\t") if "\t" in line else [line.strip()]
            if uri and not uri.startswith("#"):
                where = _beside(name, uri)
                span = (_span(times[0], times[1], name),) if len(times) >= 2 else ()
                yield Source(where, source=PurePosixPath(name).stem, spans=span)


def _is_hdtf(folder: Path) -> bool:
    return any(folder.glob("*_annotion_time.txt")) and any(folder.glob("*_video_url.txt"))


def _hdtf(folder: Path) -> Iterator[Source]:
    """HDTF's annotation files (RD, WDA, WRA: ``*_annotion_time.txt``, ``*_crop_wh.txt``) beside downloaded videos.

    ``NAME.mp4 0:05-0:35 1:10-1:40`` gives a video's time spans; ``NAME_0.mp4 x w y h`` the crop of its first span, in
    the resolution that ``*_resolution.txt`` names (``NAME.mp4 720``; 0 here: that of the file). Only faces inside the
    crop are looked at; the picture is not cut.
    """
    heights = {
        Path(line.split()[0]).stem: int(line.split()[1])
        for file in sorted(folder.glob("*_resolution.txt"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if len(line.split()) == 2 and line.split()[1].isdigit()
    }
    regions: dict[str, tuple[int, int, int, int, int]] = {}
    for file in sorted(folder.glob("*_crop_wh.txt")):
        for line in file.read_text(encoding="utf-8").splitlines():
            parts = line.split()
            if len(parts) == 5 and parts[0].endswith("_0.mp4"):
                x, w, y, h = (int(float(v)) for v in parts[1:])
                stem = parts[0][: -len("_0.mp4")]
                regions[stem] = (x, y, w, h, heights.get(stem, 0))
    for file in sorted(folder.glob("*_annotion_time.txt")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.strip():
                continue
            name, *times = line.split()
            spans = tuple(_clock_span(t, str(file)) for t in times)
            path = next((p for p in sorted(folder.rglob(name)) if p.is_file()), folder / name)
            yield Source(str(path), "HDTF", "CC BY 4.0 (annotations)", spans, region=regions.get(Path(name).stem))


def _clock_span(text: str, where: str) -> tuple[float, float]:
    start, _, end = text.partition("-")
    return _span(_seconds(start, where), _seconds(end, where), where)


def _seconds(text: str, where: str) -> float:
    try:
        total = 0.0
        for part in text.split(":"):
            total = total * 60 + float(part)
        return total
    except ValueError as error:
        raise EchoForgeError(f"'{text}' in {where} is not a time like 1:05; mend the annotation.") from error


def _span(start: Any, end: Any, where: str) -> tuple[float, float]:
    try:
        span = float(start), float(end)
    except ValueError as error:
        raise EchoForgeError(f"{where} has the span {start!r}–{end!r}; start and end are seconds.") from error
    if not 0 <= span[0] < span[1]:
        raise EchoForgeError(f"{where} has the span {start}–{end}; the end must lie after the start.")
    return span


def _parent(uri: str) -> str:
    return PurePosixPath(uri).parent.name
