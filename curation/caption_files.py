"""Captions and facts that people wrote of a video: files beside it, and the caption of a manifest.

What lies beside a local video: ``NAME.txt`` (paragraphs: several lengths), ``NAME.json`` (captions, speaker, licence,
collection), or a row of ``captions.csv`` / ``captions.parquet`` in its folder (columns ``file`` and ``captions.column``).
What of them is opened at all is said in `curation.sidecars`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from configs.errors import EchoForgeError
from curation import sidecars
from curation.captions import PARTS, caption
from curation.clip import Caption
from curation.config import CaptionsConfig
from curation.media.container import utf8

CAPTION_BYTES = 16 << 10
"""Of one caption: the text encoder reads 512 tokens, 3 kB of English; more is a transcript."""
CAPTIONS_BYTES = 64 << 10
"""Of all captions of a video: every clip has them in its row."""
CAPTIONS = 64
"""Captions of a video: every part of `captions.PARTS` in several wordings."""


@dataclass(frozen=True)
class Written:
    """What people wrote of a video."""

    captions: tuple[Caption, ...] = ()
    speaker: str | None = None
    licence: str | None = None
    source: str | None = None  # the collection that it belongs to


def written(uri: str, cfg: CaptionsConfig, manifest: str | None = None, root: str | None = None) -> Written:
    """What lies beside a video; its captions are the ``manifest``'s where nothing beside it has any.

    Args:
        manifest: the caption that a manifest gives, if any.
        root: real path of the folder that sidecars must lie in (`sidecars.root_of`); None: anywhere.

    Raises:
        EchoForgeError: a sidecar that is there but cannot be read, or holds more than a caption or a fact may.
    """
    path = Path(uri)
    given = (caption(manifest, "manifest"),) if manifest and manifest.strip() else ()
    if "://" in uri or not path.name:
        return Written(given)
    described = _Described.beside(path, root)
    facts = described.facts()
    return Written(_captions(path, described, cfg, root) or given, **facts)


def _captions(path: Path, described: _Described, cfg: CaptionsConfig, root: str | None) -> tuple[Caption, ...]:
    text = path.with_suffix(".txt")
    with _named(text):
        if text != path and (data := _read(text, root)) is not None:
            return _limited(_paragraphs(data, text), text)
    if described.fault:
        raise described.fault
    if described.there:
        with _named(described.file):
            return _limited(described.captions(), described.file)
    for name in ("captions.csv", "captions.parquet"):
        table = path.parent / name
        with _named(table):
            if (real := sidecars.find(table, root, sidecars.TABLE_BYTES)) is not None:
                told = _table(str(real), real.stat().st_mtime_ns, cfg.column).get(path.name)
                if told:
                    return _limited([caption(told, f"sidecar:{name}")], table)
    return ()


@dataclass(frozen=True)
class _Described:
    """``NAME.json``, parsed once for captions and facts."""

    file: Path
    there: bool = False
    content: Any = None
    fault: EchoForgeError | None = None

    @classmethod
    def beside(cls, path: Path, root: str | None) -> _Described:
        file = path.with_suffix(".json")
        if file == path:
            return cls(file)
        try:
            with _named(file):
                data = _read(file, root)
                return cls(file) if data is None else cls(file, True, _parsed(data, file))
        except EchoForgeError as error:
            return cls(file, fault=error)

    def facts(self) -> dict[str, str]:
        """Speaker, licence and collection, where they are given.

        Raises:
            EchoForgeError: one of them is no short text.
        """
        said = self.content if isinstance(self.content, dict) else {}
        return {
            key: sidecars.checked(str(said[key]), sidecars.FACT_BYTES, f"the {key} in {self.file.name}")
            for key in ("speaker", "licence", "source")
            if said.get(key)
        }

    def captions(self) -> list[Caption]:
        """A text, a list ``captions``, or texts by name: ``caption``, ``text``, ``prompt`` and the parts.

        Raises:
            TypeError: a caption of the list is no text.
        """
        found, source = self.content, f"sidecar:{self.file.name}"
        if isinstance(found, str):
            return [caption(found, source)]
        if isinstance(found, dict):
            nested = found.get("captions")
            if isinstance(nested, list):
                return [caption(_said(c), source) for c in nested]
            named = [caption(found[k], source, k) for k in PARTS if isinstance(found.get(k), str)]
            plain = [caption(found[k], source) for k in ("caption", "text", "prompt") if isinstance(found.get(k), str)]
            return plain + named
        return []


def _read(file: Path, root: str | None) -> bytes | None:
    """A sidecar's bytes; None where there is none, or a video that was named so by mistake."""
    real = sidecars.find(file, root)
    if real is None:
        return None
    data = sidecars.read(real)
    # UTF-16 has zero bytes and is text, too: its reader says what to do
    if b"\0" not in data[:4096] or data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data
    if is_media(data[:12]):
        return None
    raise EchoForgeError(
        f"the caption file {file.name} is not text (it has zero bytes); save it as UTF-8 or remove it."
    )


def is_media(head: bytes) -> bool:
    """Are these the first 12 bytes of a video container?"""
    return head[4:8] == b"ftyp" or (head[:4] in (b"\x1aE\xdf\xa3", b"RIFF") and head[8:12] not in (b"WAVE", b"WEBP"))


class Beside:
    """What lies beside local videos, so that a changed sidecar is noticed. A folder is listed once."""

    def __init__(self, cfg: CaptionsConfig, follow_links: bool = False) -> None:
        self._cfg, self._follow = cfg, follow_links
        self._folders: dict[tuple[str, str], dict[str, str]] = {}
        self._tables: dict[tuple[str, str], Path | None] = {}

    def tag(self, uri: str, root: str = "") -> str:
        """Changes when the sidecars of this video do; empty where there are none.

        Args:
            root: folder of sources that it was found in; empty: its own.
        """
        folder, name = os.path.split(uri)
        place = folder, root
        if place not in self._folders:
            real = sidecars.root_of(uri, root, self._follow)
            self._folders[place] = self._listed(folder or ".", real)
            self._tables[place] = self._table_of(folder, real)
        files, stem = self._folders[place], PurePosixPath(name).stem
        found = [files.get(stem + suffix, "") for suffix in (".txt", ".json") if stem + suffix != name]
        told = self._told(self._tables[place], name)
        return "\0".join((*found, told)) if told or any(found) else ""

    @staticmethod
    def same_but_time(a: str, b: str) -> bool:
        """Whether two tags differ in nothing but the times of the files."""
        first, second = ([*(mark.partition(":")[0] for mark in parts[:-1]), parts[-1]]
                         for parts in (a.split("\0"), b.split("\0")))  # fmt: skip
        return first == second

    @staticmethod
    def _listed(folder: str, root: str | None) -> dict[str, str]:
        outside = not sidecars.within(os.path.join(folder, "_"), root)  # noqa: PTH118 - a million of these
        found = {}
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith((".txt", ".json")) and entry.is_file():
                        stat = entry.stat()
                        refused = outside or (entry.is_symlink() and not sidecars.within(entry.path, root))
                        found[utf8(entry.name)] = f"{stat.st_size}:{stat.st_mtime_ns}{':refused' if refused else ''}"
        except (OSError, ValueError):  # the analysis says what is wrong
            return {}
        return found

    @staticmethod
    def _table_of(folder: str, root: str | None) -> Path | None:
        for name in ("captions.csv", "captions.parquet"):
            try:
                if (real := sidecars.find(Path(folder, name), root, sidecars.TABLE_BYTES)) is not None:
                    return real
            except EchoForgeError:  # the same
                return None
        return None

    def _told(self, table: Path | None, name: str) -> str:
        """Not kept: tables of many folders would add up."""
        if table is None:
            return ""
        try:
            return _table(str(table), table.stat().st_mtime_ns, self._cfg.column).get(name, "")
        except (OSError, ValueError, pa.ArrowException, EchoForgeError):  # the same
            return ""


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Re-raise errors with the sidecar's name."""
    try:
        yield
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"the caption file {file.name} cannot be read ({type(error).__name__}: {first}); mend or remove it."
        raise EchoForgeError(message) from error


def _limited(found: list[Caption], file: Path) -> tuple[Caption, ...]:
    """``found``, if rows can hold it.

    Raises:
        EchoForgeError: too many, too long, or no text.
    """
    if len(found) > CAPTIONS:
        raise EchoForgeError(f"{file.name} has {len(found)} captions, and at most {CAPTIONS} are taken; remove some.")
    for one in found:
        sidecars.checked(one.text, CAPTION_BYTES, f"a caption in {file.name}")
    sidecars.checked("".join(one.text for one in found), CAPTIONS_BYTES, f"the text of all captions in {file.name}")
    return tuple(found)


def _decoded(data: bytes, file: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EchoForgeError(f"the caption {file.name} is not UTF-8 text; save it again as UTF-8.") from error


def _parsed(data: bytes, file: Path) -> Any:
    text = _decoded(data, file)
    try:
        return json.loads(text)
    except ValueError as error:
        raise EchoForgeError(f"the caption {file.name} is not valid JSON ({error}); mend or remove it.") from error
    except RecursionError as error:
        raise EchoForgeError(f"the caption {file.name} is JSON nested too deeply; mend or remove it.") from error


def _paragraphs(data: bytes, file: Path) -> list[Caption]:
    return [caption(p, f"sidecar:{file.name}") for p in _decoded(data, file).split("\n\n") if p.strip()]


def _said(item: Any) -> str:
    text = item["text"] if isinstance(item, dict) else item
    if not isinstance(text, str):
        raise TypeError(f"a caption is {type(text).__name__}, not text")
    return text


@lru_cache(maxsize=4)  # folders come in order; a table may be large
def _table(file: str, mtime: int, column: str) -> dict[str, str]:
    del mtime  # part of the key: a changed file is read again
    found: dict[str, str] = {}
    size = 0
    for batch in _batches(file, column):
        for name, text in zip(batch[0].to_pylist(), batch[1].to_pylist(), strict=True):
            if text is not None and name is not None and (text := str(text)):
                found[Path(str(name)).name] = text
                size += len(text)
                if size > sidecars.TABLE_BYTES:  # a few bytes of Parquet can say a text a million times
                    raise ValueError(f"it holds more than {sidecars.TABLE_BYTES >> 20} MB of text")
    return found


def _batches(file: str, column: str) -> Iterator[pa.RecordBatch]:
    """Batches of two columns: the names of the files, and their captions."""
    names = ["file", column]
    if file.endswith(".csv"):
        types = pyarrow.csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.string()))
        try:
            yield from pyarrow.csv.read_csv(file, convert_options=types).to_batches(max_chunksize=1024)
        except KeyError as error:
            raise EchoForgeError(_without(file, column)) from error
        return
    with pq.ParquetFile(file, read_dictionary=[column]) as table:
        if not set(names) <= set(table.schema_arrow.names):
            raise EchoForgeError(_without(file, column))
        groups = (table.metadata.row_group(i) for i in range(table.num_row_groups))
        if sum(group.total_byte_size for group in groups) > sidecars.TABLE_BYTES:
            raise ValueError(f"it unpacks to more than {sidecars.TABLE_BYTES >> 20} MB")
        for batch in table.iter_batches(batch_size=1024, columns=names):
            yield batch.select(names)


def _without(file: str, column: str) -> str:
    return f"{Path(file).name} needs the columns 'file' and '{column}' (captions.column)."
