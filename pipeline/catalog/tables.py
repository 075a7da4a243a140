"""The tables of a catalog: decided over the whole corpus, read and written piece by piece.

Catalogs are read here, all of one generation (:mod:`pipeline.catalog.generation`); columns that an older version did not write
are filled with nulls. Everyone else is handed tables or rows.

Deciding needs every clip's scores at once (copies are looked for across the corpus) but not its tracks and captions,
which are most of the bytes. So the corpus is passed twice: once for the light columns, which are decided in memory,
and once whole, a file at a time, to write the verdicts beside the rest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs import folders
from configs.errors import EchoForgeError
from curation.config import CurationConfig
from curation.decision.decide import DECIDED as decide_columns
from curation.decision.decide import decide_clips, decide_videos
from curation.decision.duplicates import mark_duplicates
from curation.schema import CLIPS, VIDEOS
from pipeline import storage
from pipeline.catalog import generation
from pipeline.catalog.generation import AGAIN, MARK, RUN_FILE, Damaged, File
from pipeline.engine import seal

HEAVY = ("tracks", "captions")
LIGHT = [name for name in CLIPS.names if name not in HEAVY]
DECIDED = ("duplicate_of", *decide_columns)
ESSENTIAL = {
    "videos": ("video_id", "source_uri", "verdict"),
    "clips": ("clip_id", "video_id", "source_uri", "start_frame", "end_frame", "verdict"),
}
"""Columns without which a file is no table of a catalog; others are null where a file lacks them."""
SCHEMAS = {"videos": VIDEOS, "clips": CLIPS}

Clips = Callable[[list[str]], Iterator[pa.Table]]
"""Gives the clips with these columns, piece by piece, always in the same pieces and the same order."""


class About(NamedTuple):
    """What is said of decided tables: the facts of the run (JSON), and the report (None: none is drawn)."""

    run: dict[str, Any]
    page: str | None


Describe = Callable[[pa.Table, pa.Table], About]
"""Of the decided videos, and of the decided clips with their :data:`LIGHT` columns."""


class Whole(NamedTuple):
    """A catalog: both tables and the facts of the run that decided them, all of one generation."""

    videos: pa.Table
    clips: pa.Table
    run: dict[str, Any]


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


def write(
    out: str, videos: pa.Table, clips: Clips, cfg: CurationConfig, rows: int, describe: Describe
) -> tuple[pa.Table, pa.Table]:
    """Decide the corpus and write it as the tables of ``out``, in files of at most about ``rows`` rows.

    Returns:
        Both tables decided, the clips with their :data:`LIGHT` columns.
    """
    light = _concat(clips(LIGHT), LIGHT)
    videos, light = decide(videos, light, cfg)
    about = describe(videos, light)
    with generation.Change(out, _replaceable(out)) as change:
        for piece in _gathered(_with_verdicts(clips, light), rows):
            change.add("clips", _sorted(piece, ["source_uri", "start_frame"]))
        for start in range(0, max(videos.num_rows, 1), rows):
            change.add("videos", _sorted(videos.slice(start, rows), ["source_uri"]))
        change.commit(*about)
    return videos, light


def rewrite(out: str, cfg: CurationConfig, describe: Describe) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Decide the corpus of a finished catalog again; every new file has the rows of an old one.

    Returns:
        As :func:`write`, and the verdicts and reasons that the clips had before.
    """
    before = Snapshot(out, restart="redecide")
    was = before.read("clips", ["verdict", "reasons"])
    videos, light = decide(before.read("videos"), _concat(before.pieces("clips", LIGHT), LIGHT), cfg)
    about = describe(videos, light)

    def clips(columns: list[str]) -> Iterator[pa.Table]:
        return before.pieces("clips", columns)

    with generation.Change(out, before.generation) as change:
        for table in _with_verdicts(clips, light):
            change.add("clips", table)
        start = 0
        for count in before.rows("videos"):
            change.add("videos", videos.slice(start, count))
            start += count
        change.commit(*about)
    return videos, light, was


def renamed(out: str, rename: Callable[[str, pa.Table], pa.Table | None], restart: str) -> None:
    """Write tables whose rows a function has changed; columns stay as they are, also those that this version lacks.

    Args:
        rename: (table, its rows in a file) → the rows to write; None: the file stays.
        restart: as in :func:`check`.

    Raises:
        EchoForgeError: a file cannot be read.
    """
    before, changed = Snapshot(out, restart), False
    with generation.Change(out, before.generation) as change:
        for name, parts in before.files.items():
            for file in parts:
                table = raw(file)
                new = rename(name, table)
                if new is None and file.part is not None:
                    change.keep(name, file.part)
                else:
                    change.add(name, table if new is None else new)
                changed |= new is not None
        if changed:
            change.commit(before.run, None)


class Snapshot:
    """The tables of a catalog as they are at one moment.

    When they are replaced while they are read, reading ends with `generation.Gone`, never with a mix.

    Args:
        restart: as in :func:`check`.

    Raises:
        EchoForgeError: there is no catalog, or its tables are half-written or damaged.
    """

    def __init__(self, out: str, restart: str = "") -> None:
        check(out, restart)
        self.out, self.generation = out, generation.current(out)
        self.files = generation.files(out, self.generation)

    @property
    def run(self) -> dict[str, Any]:
        """The facts of the run that decided the tables; empty where an older version kept none.

        Raises:
            Damaged: the ``run.json`` of an older version is.
        """
        return self.generation.run if self.generation else _old_run(self.out)

    def pieces(self, name: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """A table, a file at a time; what can be refused is refused before the first one is asked for."""
        schema = SCHEMAS[name]
        return (_piece(file, schema, columns or schema.names, ESSENTIAL[name]) for file in self._there(name))

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A whole table."""
        return pa.concat_tables(self.pieces(name, columns)).combine_chunks()

    def rows(self, name: str) -> list[int]:
        """How many rows each file of a table has."""
        counts = []
        for file in self._there(name):
            with generation.opened(file) as found:
                counts.append(found.metadata.num_rows)
        return counts

    def _there(self, name: str) -> list[File]:
        if not self.files[name]:
            what = folders.found(self.out, "catalog")
            raise EchoForgeError(f"'{self.out}' holds no catalog ({name}/*.parquet): {what}; `curate` makes a catalog.")
        return self.files[name]


def read(out: str, name: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """One table of a catalog; for two of them, which must belong together, :func:`read_whole` or :class:`Snapshot`.

    Args:
        name, schema: ``videos`` and `VIDEOS`, or ``clips`` and `CLIPS`.
        columns: only these, in this order. One that a file lacks (an older version wrote it) is null there.

    Raises:
        EchoForgeError: there is none, its tables cannot be read, or they are half-written.
    """
    return generation.retrying(out, lambda: Snapshot(out).read(name, columns or schema.names))


def read_whole(out: str, videos: list[str] | None = None, clips: list[str] | None = None) -> Whole:
    """Both tables with these columns (None: all), and the facts of the run that decided them.

    Raises:
        EchoForgeError: as :func:`read`; or ``run.json`` of an older version is damaged.
    """

    def once() -> Whole:
        now = Snapshot(out)
        return Whole(now.read("videos", videos), now.read("clips", clips), now.run)

    return generation.retrying(out, once)


def saved(out: str) -> dict[str, Any]:
    """The facts of the run that decided the catalog; empty where there is none.

    Raises:
        Damaged: ``tables.json``, or the ``run.json`` of an older version, is.
    """
    now = generation.current(out)
    return now.run if now else _old_run(out)


def _old_run(out: str) -> dict[str, Any]:
    return seal.read_json(storage.join(out, RUN_FILE), "delete it to go on without its thresholds") or {}


def find_clip(out: str, clip: str) -> dict[str, Any] | None:
    """The row of a clip (schema `CLIPS`); None where there is none. Other clips' tracks and captions are not read."""

    def once() -> dict[str, Any] | None:
        for file in Snapshot(out).files["clips"]:
            at = pc.index(_piece(file, CLIPS, ["clip_id"], ESSENTIAL["clips"])["clip_id"], clip).as_py()
            if at >= 0:
                whole = _piece(file, CLIPS, CLIPS.names, ESSENTIAL["clips"])
                row: dict[str, Any] = whole.slice(at, 1).to_pylist()[0]
                return row
        return None

    return generation.retrying(out, once)


def any_value(out: str, name: str, columns: Iterable[str]) -> bool:
    """Is one of these columns anywhere not null? Files that are damaged are passed over: `curate` writes them anew."""
    for file in _left(out, name):
        with contextlib.suppress(Damaged, generation.Gone), generation.opened(file) as found:
            table = found.read(columns=[column for column in columns if column in found.schema_arrow.names])
            if any(column.null_count < len(column) for column in table.columns):
                return True
    return False


def some(out: str, name: str) -> bool:
    """Whether the catalog at ``out`` has a file of this table, half-written or damaged ones included."""
    return bool(_left(out, name))


def named(out: str, name: str, columns: list[str]) -> Iterator[pa.Table]:
    """These columns of every file of a table, half-written tables included.

    Raises:
        EchoForgeError: a file cannot be read, or lacks one.
    """
    for file in generation.files(out, generation.current(out))[name]:
        yield raw(file, columns)


def raw(file: File, columns: list[str] | None = None) -> pa.Table:
    """A file of a table with all of its columns as they are, or with these.

    Raises:
        EchoForgeError: it cannot be read, or lacks one.
    """
    with generation.opened(file) as found:
        table = found.read(columns=columns)
        if missing := [column for column in columns or () if column not in table.column_names]:
            raise EchoForgeError(f"the table '{file.url}' has no column '{missing[0]}'; {AGAIN}.")
        return table.select(columns or table.column_names)


def _left(out: str, name: str) -> list[File]:
    """What there is of a table; of a catalog whose ``tables.json`` is damaged or gone nothing is known."""
    try:
        return generation.files(out, generation.current(out))[name]
    except EchoForgeError:
        return []


def _replaceable(out: str) -> generation.Generation | None:
    """The generation that `curate` replaces; None as well where its ``tables.json`` is damaged."""
    try:
        return generation.current(out)
    except Damaged:
        return None


def check(out: str, restart: str = "") -> None:
    """Refuse a catalog whose tables an older version has left half-written.

    Args:
        restart: a command that may go on when it was itself interrupted. `redecide` and `relocate` may: they replaced
            columns file by file and kept the rows of each.

    Raises:
        EchoForgeError: so it is.
    """
    url = storage.join(out, MARK)
    if not storage.exists(url):
        return
    try:
        command = (seal.read_json(url, "") or {}).get("command", "curate")
    except Damaged:
        command = "curate"
    if command == restart:
        return
    again = "run it again (nothing is analysed twice)" if command == "curate" else f"run `catalog {command}` again"
    name = "curate" if command == "curate" else f"catalog {command}"
    raise EchoForgeError(
        f"the tables of '{out}' are half-written: `{name}` is at work, or was interrupted; if it is not running, {again}."
    )


def _piece(file: File, schema: pa.Schema, columns: list[str], essential: tuple[str, ...]) -> pa.Table:
    """Columns of one file with the types of ``schema``; those that it lacks are null."""
    with generation.opened(file) as found:
        have = found.schema_arrow.names
        if missing := [name for name in essential if name not in have]:
            raise EchoForgeError(
                f"'{file.url}' is no table of a catalog (it has no column '{missing[0]}'); make one with `curate`."
            )
        table = found.read(columns=[name for name in columns if name in have])
        rows = found.metadata.num_rows
        wanted = pa.schema([schema.field(name) for name in columns])
        arrays = [table[f.name].cast(f.type) if f.name in have else pa.nulls(rows, f.type) for f in wanted]
        return pa.table(arrays, schema=wanted)


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


_FILE_MEMORY = 256 << 20  # bytes of the rows of a file: 50,000 usual ones have 100 to 200 MB


def _gathered(pieces: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Small pieces joined and large ones cut to ``rows`` rows, fewer where captions are long; at least one table."""
    waiting: list[pa.Table] = []
    count, given = 0, False
    for piece in pieces:
        waiting.append(piece)
        count += piece.num_rows
        while count >= rows or (count and sum(table.nbytes for table in waiting) >= _FILE_MEMORY):
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, rows)
            waiting, count, given = [joined.slice(rows)], max(0, count - rows), True
    if count or not given:
        yield pa.concat_tables(waiting) if waiting else CLIPS.empty_table()


def _sorted(table: pa.Table, columns: list[str]) -> pa.Table:
    order = [(name, "ascending") for name in columns]
    return table.take(pc.sort_indices(table.select(columns), sort_keys=order))
