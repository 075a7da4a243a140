"""What to curate: folders, globs, fsspec URLs, manifests, HDTF's annotation files, EMTD's lists → sources.

Only names are looked at; no media is opened, nothing is fetched from video sites. A name is never parsed beyond
what it stands for: quotes, spaces, a leading dash or a newline are only characters.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from configs import folders
from configs.errors import EchoForgeError
from configs.paths import absolute
from configs.runtime import stopping
from configs.runtime.shown import one_line
from curation.config import CurationConfig
from curation.media.container import utf8
from curation.operators.captions import CAPTION_BYTES, is_media
from curation.review import spreadsheet
from curation.sidecars import FACT_BYTES, checked, find, read, root_of

_TABLES = (".csv", ".tsv", ".parquet")
_LISTS = (".lst", ".list")
_MEDIA = frozenset(
    f".{name}"
    for name in (
        *("mp4", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "m4v", "m4a", "ts", "mts", "m2ts"),
        *("flv", "wmv", "3gp", "ogv", "mxf", "gif", "ivf", "y4m", "wav"),
    )
)
URI_BYTES = 4096
"""Of a name in a manifest: Linux' PATH_MAX; object stores take 1024."""
SPANS = 10_000
"""Of one video: a new clip every second for three hours."""
_LONGEST_S = 1e6  # eleven days: no span of a video ends later
_TABLE_BYTES = 4 << 30  # of a Parquet manifest, unpacked: ten million rows of 400 bytes
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
    root: str = ""  # folder that was named and searched; empty: another kind of source
    fault: str | None = None  # why it cannot be looked at, where a manifest says so already


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
        yield from _hdtf(path, cfg) if _is_hdtf(path) else _folder(name)
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


_NAMES = ("uri", "source_uri", "path", "url", "file", "video")
_TIMES = ("start", "start_s"), ("end", "end_s")


def _manifest(name: str, cfg: CurationConfig) -> Iterator[Source]:
    """CSV, TSV or Parquet: a column uri (or path, url, file, video), and if present start, end (seconds), licence,
    source, speaker, and the caption column of the configuration. Rows of one uri become its spans.

    A row that cannot be used is a source with a fault, so that it becomes a row of the catalog.
    """
    columns = (*_NAMES, *_TIMES[0], *_TIMES[1], "licence", "license", "source", "speaker", cfg.captions.column)
    found: dict[str, Source] = {}
    spans: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(_rows(name, columns), 1):
        item = _row_source(row, name, number, cfg.captions.column)
        first = found.setdefault(item.uri, item)
        if item.fault and not first.fault:
            found[item.uri] = replace(first, fault=item.fault)
        if len(seen := spans.setdefault(item.uri, [])) <= SPANS:
            seen.extend(item.spans)
    for uri, item in found.items():
        if len(spans[uri]) > SPANS:
            item = replace(item, fault=f"{name} gives it more than {SPANS} spans; give the whole video instead.")
        yield replace(item, spans=() if item.fault else tuple(sorted(spans[uri])))


def _row_source(row: dict[str, Any], name: str, number: int, column: str) -> Source:
    """One row of a manifest. Where it names no file that could be looked for, the row's number stands for it."""
    uri = f"{name}#row {number}"
    try:
        given = next((row[k] for k in _NAMES if row.get(k) not in (None, "")), None)
        uri = _beside(name, _checked_uri(given))
        start, end = (next((row[k] for k in keys if not _empty(row.get(k))), None) for keys in _TIMES)
        if (start is None) != (end is None):
            raise EchoForgeError("has one end of a span only; give start and end, or neither.")
        return Source(
            uri,
            source=_fact(row, "source") or PurePosixPath(name).stem,
            licence=_fact(row, "licence") or _fact(row, "license"),
            spans=() if start is None else (_span(start, end, "it"),),
            caption=_fact(row, column, CAPTION_BYTES),
            speaker=_fact(row, "speaker"),
        )
    except (EchoForgeError, ValueError) as error:  # ValueError: an address that cannot be taken apart
        return Source(uri, source=PurePosixPath(name).stem, fault=f"row {number} of {name}: {error}")


def _checked_uri(given: Any) -> str:
    if given is None:
        raise EchoForgeError("it names no video.")
    if not isinstance(given, str):
        raise EchoForgeError(f"the name of its video is {type(given).__name__} ({given!r:.80}) and no text.")
    checked(given, URI_BYTES, "the name of its video")
    if "\0" in given:
        raise EchoForgeError(f"the name of its video holds a zero byte ('{one_line(given)[:80]}').")
    if "::" in given and "://" in given:
        raise EchoForgeError(f"'{one_line(given)[:80]}' chains addresses, which is not followed; copy the file first.")
    return given


def _fact(row: dict[str, Any], key: str, most: int = FACT_BYTES) -> str | None:
    """The text in a cell; numbers (of speakers, say) as they are written; None where there is none."""
    value = row.get(key)
    if _empty(value):
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.15g}" if isinstance(value, float) else str(value)
    if not isinstance(value, str):
        raise EchoForgeError(f"its '{key}' is {type(value).__name__} and no text.")
    return checked(value, most, f"its '{key}'")


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _beside(name: str, uri: str) -> str:
    """``uri`` as it is when it is absolute or a URL, else relative to the file ``name``."""
    if uri.startswith("/") or "://" in uri or Path(uri).is_absolute():
        return uri
    beside = str(PurePosixPath(name).parent / uri)
    return absolute(beside) if ".." in uri else beside


def _rows(name: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows of a table with those of ``columns`` that it has.

    Raises:
        EchoForgeError: it cannot be read as what its name says, or has no column of names.
    """
    with fsspec.open(name, "rb") as file:
        rows = _parquet(file, name, columns) if name.lower().endswith(".parquet") else spreadsheet.rows(file, name)
        first = next(rows, None)
        if first is None:
            return
        if not set(_NAMES) & first.keys():
            raise EchoForgeError(f"{name} has no column that names the videos; call it 'uri' or 'path'.")
        yield {key: first[key] for key in columns if key in first}
        for row in rows:
            yield {key: row[key] for key in columns if key in row}


def _parquet(file: Any, name: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(file) as table:
            names = [n for n in dict.fromkeys(columns) if n in table.schema_arrow.names]
            groups = (table.metadata.row_group(i) for i in range(table.num_row_groups))
            if sum(group.total_byte_size for group in groups) > _TABLE_BYTES:
                raise EchoForgeError(f"'{name}' unpacks to more than {_TABLE_BYTES >> 30} GB; split it.")
            for batch in table.iter_batches(batch_size=1024, columns=names):
                values = [_values(batch.column(n)) for n in names]
                for cells in zip(*values, strict=True) if names else [()] * batch.num_rows:
                    yield dict(zip(names, cells, strict=True))
    except (pa.ArrowException, OSError, KeyError, ValueError, OverflowError) as error:
        raise EchoForgeError(f"'{name}' is not a readable Parquet file ({error}); write it again.") from error


def _values(column: pa.Array) -> list[Any]:
    """The cells of a column. Text that is not UTF-8 (nothing checks it in a file) has lone surrogates."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        raw = column.cast(pa.binary() if pa.types.is_string(column.type) else pa.large_binary()).to_pylist()
        return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in raw]
    cells: list[Any] = column.to_pylist()
    return cells


def _list(name: str) -> Iterator[Source]:
    """EMTD and the like: one video a line, optionally followed by start and end in seconds."""
    with fsspec.open(name, "rb") as file:
        for number, line in enumerate(spreadsheet.lines(file, name), 1):
            uri, *times = line.strip().split("\t") if "\t" in line else [line.strip()]
            if uri and not uri.startswith("#"):
                row = {"uri": uri} | (dict(zip(("start", "end"), times, strict=False)) if len(times) >= 2 else {})
                yield _row_source(row, name, number, "")


def _is_hdtf(folder: Path) -> bool:
    return any(folder.glob("*_annotion_time.txt")) and any(folder.glob("*_video_url.txt"))


def _hdtf(folder: Path, cfg: CurationConfig) -> Iterator[Source]:
    """HDTF's annotation files (RD, WDA, WRA: ``*_annotion_time.txt``, ``*_crop_wh.txt``) beside downloaded videos.

    ``NAME.mp4 0:05-0:35 1:10-1:40`` gives a video's time spans; ``NAME_0.mp4 x w y h`` the crop of its first span, in
    the resolution that ``*_resolution.txt`` names (``NAME.mp4 720``; 0 here: that of the file). Only faces inside the
    crop are looked at; the picture is not cut.
    """

    def said(pattern: str) -> Iterator[tuple[str, list[str]]]:
        root = root_of("", str(folder), cfg.sources.follow_links)
        for file in sorted(folder.glob(pattern)):
            if (real := find(file, root)) is not None:
                for line in spreadsheet.lines(io.BytesIO(read(real)), str(file)):
                    yield str(file), line.split()

    heights = {
        Path(parts[0]).stem: int(parts[1])
        for _, parts in said("*_resolution.txt")
        if len(parts) == 2 and parts[1].isdecimal()
    }
    regions: dict[str, tuple[int, int, int, int, int]] = {}
    for where, parts in said("*_crop_wh.txt"):
        if len(parts) == 5 and parts[0].endswith("_0.mp4"):
            try:
                x, w, y, h = (int(float(v)) for v in parts[1:])
            except (ValueError, OverflowError) as error:
                raise EchoForgeError(f"'{' '.join(parts)}' in {where} is no crop; mend the annotation.") from error
            stem = parts[0][: -len("_0.mp4")]
            regions[stem] = (x, y, w, h, heights.get(stem, 0))
    there: dict[str, Path] = {}
    for path in sorted(_files(str(folder))):
        there.setdefault(path.name, path)
    for where, parts in said("*_annotion_time.txt"):
        if parts:
            name, *times = parts
            spans = tuple(_clock_span(t, where) for t in times)
            path = there.get(name, folder / Path(name).name)
            region = regions.get(Path(name).stem)
            licence = "CC BY 4.0 (annotations)"
            yield Source(utf8(str(path)), "HDTF", licence, spans, region=region, root=utf8(str(folder)))


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
    except (ValueError, TypeError, OverflowError) as error:
        raise EchoForgeError(f"{where} has the span {start!r:.40}–{end!r:.40}; start and end are seconds.") from error
    if not 0 <= span[0] < span[1] <= _LONGEST_S:
        raise EchoForgeError(
            f"{where} has the span {start!s:.40}–{end!s:.40}; the end must lie after the start, and before {_LONGEST_S:.0f} s."
        )
    return span


def _parent(uri: str) -> str:
    return PurePosixPath(uri).parent.name
