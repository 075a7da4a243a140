"""The tables of a catalog: decided over the whole corpus, read and written piece by piece.

Catalogs are read here: one that is half-written is refused, and columns that an older version did not write are filled
with nulls. Everyone else is handed tables or rows. Only :mod:`pipeline.relocate` reads and rewrites the files itself,
because it must keep every column as it is and continue half-written tables.

Deciding needs every clip's scores at once (copies are looked for across the corpus) but not its tracks and captions,
which are most of the bytes. So the corpus is passed twice: once for the light columns, which are decided in memory,
and once whole, a file at a time, to write the verdicts beside the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs import folders
from configs.errors import EchoForgeError
from curation.catalog import CLIPS, VIDEOS
from curation.config import CurationConfig
from curation.decide import DECIDED as decide_columns
from curation.decide import decide_clips, decide_videos
from curation.dedup import mark_duplicates
from pipeline import store

HEAVY = ("tracks", "captions")
LIGHT = [name for name in CLIPS.names if name not in HEAVY]
DECIDED = ("duplicate_of", *decide_columns)
ESSENTIAL = {
    "videos": ("video_id", "source_uri", "verdict"),
    "clips": ("clip_id", "video_id", "source_uri", "start_frame", "end_frame", "verdict"),
}
"""Columns without which a file is no table of a catalog; others are null where a file lacks them."""
MARK = "incomplete.json"

Clips = Callable[[list[str]], Iterator[pa.Table]]
"""Gives the clips with these columns, piece by piece, always in the same pieces and the same order."""


def decide(videos: pa.Table, clips: pa.Table, cfg: CurationConfig) -> tuple[pa.Table, pa.Table]:
    """Verdicts of both tables. Decided once before duplicates are marked, so that the copy that stays is a kept one.

    Args:
        clips: :data:`LIGHT` columns. Their hashes come back empty.
    """
    at = clips.schema.get_field_index("duplicate_of")
    clips = clips.set_column(at, clips.schema.field(at), pa.nulls(clips.num_rows, pa.string()))
    clips = decide_clips(clips, cfg)
    pa.default_memory_pool().release_unused()
    if clips.num_rows and cfg.dedup.enabled:
        clips = mark_duplicates(clips, cfg.dedup)
        at = clips.schema.get_field_index("phash")  # most of the light bytes, and not needed any more
        clips = clips.set_column(at, clips.schema.field(at), pa.nulls(clips.num_rows, clips.schema.field(at).type))
        clips = _decided_again(clips, pc.is_valid(clips["duplicate_of"]).to_numpy(), cfg)
    return decide_videos(videos, clips, cfg), clips


def _decided_again(clips: pa.Table, rows: np.ndarray, cfg: CurationConfig) -> pa.Table:
    """``clips`` with only these rows decided again."""
    again = decide_clips(clips.filter(pa.array(rows)), cfg)
    take = np.arange(clips.num_rows)
    take[rows] = clips.num_rows + np.arange(again.num_rows)
    for name in DECIDED:
        column = pa.chunked_array([*clips[name].chunks, *again[name].chunks]).combine_chunks().take(pa.array(take))
        clips = clips.set_column(clips.schema.get_field_index(name), clips.schema.field(name), column)
    return clips


def write(out: str, videos: pa.Table, clips: Clips, cfg: CurationConfig, rows: int) -> tuple[pa.Table, pa.Table]:
    """Decide the corpus and write ``videos/*.parquet`` and ``clips/*.parquet`` with at most about ``rows`` rows each.

    Returns:
        Both tables decided, the clips with their :data:`LIGHT` columns.
    """
    light = _concat(clips(LIGHT), LIGHT)
    videos, light = decide(videos, light, cfg)
    with changing(out, "curate"):
        found = _gathered(_with_verdicts(clips, light), rows)
        _write_all(store.join(out, "clips"), found, ["source_uri", "start_frame"])
        starts = range(0, max(videos.num_rows, 1), rows)
        _write_all(store.join(out, "videos"), (videos.slice(s, rows) for s in starts), ["source_uri"])
    return videos, light


def rewrite(out: str, cfg: CurationConfig) -> tuple[pa.Table, pa.Table]:
    """Decide the corpus of a finished catalog again; every file keeps its rows and is replaced in one step.

    Returns:
        As :func:`write`.
    """
    check(out, restart="redecide")
    videos = pa.concat_tables(_pieces(out, "videos", VIDEOS, VIDEOS.names)).combine_chunks()
    files = store.listing(store.join(out, "clips"), ".parquet")

    def clips(columns: list[str]) -> Iterator[pa.Table]:
        for file in files:
            yield _piece(file.url, CLIPS, columns, ESSENTIAL["clips"])

    videos, light = decide(videos, _concat(clips(LIGHT), LIGHT), cfg)
    with changing(out, "redecide"):
        for file, table in zip(files, _with_verdicts(clips, light), strict=True):
            store.write_table(file.url, table)
        start = 0
        for file in store.listing(store.join(out, "videos"), ".parquet"):
            with store.parquet(file.url) as old:
                count = old.metadata.num_rows
            store.write_table(file.url, videos.slice(start, count))
            start += count
    return videos, light


def read(out: str, name: str, schema: pa.Schema, columns: list[str] | None = None, *, restart: str = "") -> pa.Table:
    """One table of a catalog.

    Args:
        name, schema: ``videos`` and `VIDEOS`, or ``clips`` and `CLIPS`.
        columns: only these, in this order. One that a file lacks (an older version wrote it) is null there.
        restart: as in :func:`check`.

    Raises:
        EchoForgeError: there is none, its tables cannot be read, or they are half-written.
    """
    check(out, restart)
    return pa.concat_tables(_pieces(out, name, schema, columns or schema.names)).combine_chunks()


def pieces(out: str, name: str, schema: pa.Schema, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """As :func:`read`, a file at a time; what can be refused is refused before the first one is asked for."""
    check(out)
    return _pieces(out, name, schema, columns or schema.names)


def _pieces(out: str, name: str, schema: pa.Schema, columns: list[str]) -> Iterator[pa.Table]:
    parts = store.listing(store.join(out, name), ".parquet")
    if not parts:
        what = folders.found(out, "catalog")
        raise EchoForgeError(f"'{out}' holds no catalog ({name}/*.parquet): {what}; `curate` makes a catalog.")
    return (_piece(part.url, schema, columns, ESSENTIAL[name]) for part in parts)


def find_clip(out: str, clip: str) -> dict[str, Any] | None:
    """The row of a clip (schema `CLIPS`); None where there is none. Other clips' tracks and captions are not read."""
    check(out)
    for part in store.listing(store.join(out, "clips"), ".parquet"):
        ids = _piece(part.url, CLIPS, ["clip_id"], ESSENTIAL["clips"])["clip_id"]
        at = pc.index(ids, clip).as_py()
        if at >= 0:
            whole = _piece(part.url, CLIPS, CLIPS.names, ESSENTIAL["clips"])
            row: dict[str, Any] = whole.slice(at, 1).to_pylist()[0]
            return row
    return None


class changing:
    """While its block runs, the tables at ``out`` are half old and half new, and :func:`check` says so.

    Args:
        command: what may go on when it is interrupted, as :func:`check` names it: `curate`, or the rest of a
            `catalog …` command line.
    """

    def __init__(self, out: str, command: str) -> None:
        self._mark, self._command = store.join(out, MARK), command

    def __enter__(self) -> None:
        why = {"why": "the tables are being written", "command": self._command}
        store.write_bytes(self._mark, json.dumps(why).encode())

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            store.remove(self._mark)


def check(out: str, restart: str = "") -> None:
    """Refuse a catalog whose tables are half-written.

    Args:
        restart: a command that may go on when it was itself interrupted. `redecide` and `relocate` may: they replace
            columns file by file and keep the rows of each.

    Raises:
        EchoForgeError: a run writes the tables now, or was interrupted while it did.
    """
    mark = store.join(out, MARK)
    if not store.exists(mark):
        return
    command = json.loads(store.read_bytes(mark)).get("command", "curate")
    if command == restart:
        return
    again = "run it again (nothing is analysed twice)" if command == "curate" else f"run `catalog {command}` again"
    name = "curate" if command == "curate" else f"catalog {command}"
    raise EchoForgeError(
        f"the tables of '{out}' are half-written: `{name}` is at work, or was interrupted; if it is not running, {again}."
    )


def _piece(url: str, schema: pa.Schema, columns: list[str], essential: tuple[str, ...]) -> pa.Table:
    """Columns of one file with the types of ``schema``; those that it lacks are null."""
    try:
        with store.parquet(url) as file:
            have = file.schema_arrow.names
            if missing := [name for name in essential if name not in have]:
                raise EchoForgeError(
                    f"'{url}' is no table of a catalog (it has no column '{missing[0]}'); make one with `curate`."
                )
            found = file.read(columns=[name for name in columns if name in have])
            rows = file.metadata.num_rows
        wanted = pa.schema([schema.field(name) for name in columns])
        arrays = [found[f.name].cast(f.type) if f.name in have else pa.nulls(rows, f.type) for f in wanted]
        return pa.table(arrays, schema=wanted)
    except (pa.ArrowException, OSError) as error:
        raise EchoForgeError(f"the table '{url}' cannot be read ({error}); run `curate` again to write it.") from error


def _concat(pieces: Iterable[pa.Table], columns: list[str]) -> pa.Table:
    """One table, each column in one piece; columns are joined one by one, so that no two copies of all exist."""
    schema = pa.schema([CLIPS.field(name) for name in columns])
    tables = [piece.select(columns).cast(schema) for piece in pieces]
    if not tables:
        return schema.empty_table()
    joined = []
    for field in schema:
        chunks = [chunk for table in tables for chunk in table[field.name].chunks]
        joined.append(pa.chunked_array(chunks, field.type).combine_chunks())
        del chunks
        tables = [table.drop_columns(field.name) for table in tables]
    return pa.Table.from_arrays(joined, schema=schema)


def _with_verdicts(clips: Clips, light: pa.Table) -> Iterator[pa.Table]:
    start = 0
    for piece in clips(CLIPS.names):
        decided = light.slice(start, piece.num_rows)
        start += piece.num_rows
        if not np.array_equal(piece["clip_id"].to_numpy(), decided["clip_id"].to_numpy()):
            raise EchoForgeError("the catalog changed while it was read; is another run writing it? Run again.")
        columns = [decided[name] if name in DECIDED else piece[name] for name in CLIPS.names]
        yield pa.table(columns, names=CLIPS.names).cast(CLIPS)


def _gathered(pieces: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Small pieces joined and large ones cut to ``rows`` rows; at least one table."""
    waiting: list[pa.Table] = []
    count, given = 0, False
    for piece in pieces:
        waiting.append(piece)
        count += piece.num_rows
        while count >= rows:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows)
            waiting, count, given = [joined.slice(rows)], count - rows, True
    if count or not given:
        yield pa.concat_tables(waiting) if waiting else CLIPS.empty_table()


def _write_all(folder: str, pieces: Iterable[pa.Table], order: list[str]) -> None:
    written = set()
    for number, piece in enumerate(pieces):
        name = f"part-{number:05d}.parquet"
        table = piece.take(_order(piece, order))
        store.write_table(store.join(folder, name), table)
        written.add(name)
    for old in store.listing(folder, ".parquet"):
        if old.name not in written:
            store.remove(old.url)


def _order(table: pa.Table, columns: list[str]) -> pa.Array:
    return pc.sort_indices(table.select(columns), sort_keys=[(name, "ascending") for name in columns])
