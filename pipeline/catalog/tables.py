"""The tables of a catalog, read: all of one generation (:mod:`pipeline.catalog.generation`), file by file or whole.

Columns that an older version did not write are filled with nulls. Everyone else is handed tables or clips.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from configs import folders
from configs.errors import EchoForgeError
from curation.schema import CLIPS, VIDEOS
from pipeline import storage
from pipeline.catalog import generation
from pipeline.catalog.generation import AGAIN, MARK, RUN_FILE, Damaged, File
from pipeline.catalog.run_record import RunRecord
from pipeline.engine import seal

HEAVY = ("tracks", "captions")
LIGHT = [name for name in CLIPS.names if name not in HEAVY]
ESSENTIAL = {
    "videos": ("video_id", "source_uri", "verdict"),
    "clips": ("clip_id", "video_id", "source_uri", "start_frame", "end_frame", "verdict"),
}
"""Columns without which a file is no table of a catalog; others are null where a file lacks them."""
SCHEMAS = {"videos": VIDEOS, "clips": CLIPS}


class Whole(NamedTuple):
    """A catalog: both tables and the record of the run that decided them, all of one generation."""

    videos: pa.Table
    clips: pa.Table
    run: RunRecord


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
    def run(self) -> RunRecord:
        """The record of the run that decided the tables; empty where an older version kept none.

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
    """Both tables with these columns (None: all), and the record of the run that decided them.

    Raises:
        EchoForgeError: as :func:`read`; or ``run.json`` of an older version is damaged.
    """

    def once() -> Whole:
        now = Snapshot(out)
        return Whole(now.read("videos", videos), now.read("clips", clips), now.run)

    return generation.retrying(out, once)


def saved(out: str) -> RunRecord:
    """The record of the run that decided the catalog; empty where there is none.

    Raises:
        Damaged: ``tables.json``, or the ``run.json`` of an older version, is.
    """
    now = generation.current(out)
    return now.run if now else _old_run(out)


def _old_run(out: str) -> RunRecord:
    return RunRecord(seal.read_json(storage.join(out, RUN_FILE), "delete it to go on without its thresholds") or {})


def find_clip(out: str, clip: str) -> pa.Table | None:
    """The one row of a clip (schema `CLIPS`); None where there is none. Other clips' tracks and captions are not read."""

    def once() -> pa.Table | None:
        for file in Snapshot(out).files["clips"]:
            at = pc.index(_piece(file, CLIPS, ["clip_id"], ESSENTIAL["clips"])["clip_id"], clip).as_py()
            if at >= 0:
                return _piece(file, CLIPS, CLIPS.names, ESSENTIAL["clips"]).slice(at, 1)
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
