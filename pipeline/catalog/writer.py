"""The tables of a catalog, written: decided over the whole corpus, a file at a time.

Deciding needs every clip's scores at once (copies are looked for across the corpus) but not its tracks and captions,
which are most of the bytes. So the corpus is passed twice: once for the light columns, which are decided in memory,
and once whole, a file at a time, to write the verdicts beside the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.errors import EchoForgeError
from curation.config import CurationConfig
from curation.decision.decide import DECIDED as decide_columns
from curation.decision.decide import decide_clips, decide_videos
from curation.decision.duplicates import mark_duplicates
from curation.schema import CLIPS
from pipeline.catalog import generation
from pipeline.catalog.generation import Damaged
from pipeline.catalog.run_record import RunRecord
from pipeline.catalog.tables import LIGHT, Snapshot, raw

DECIDED = ("duplicate_of", *decide_columns)
Clips = Callable[[list[str]], Iterator[pa.Table]]
"""Gives the clips with these columns, piece by piece, always in the same pieces and the same order."""


class About(NamedTuple):
    """What is said of decided tables: the record of the run, and the report (None: none is drawn)."""

    run: RunRecord
    page: str | None


Describe = Callable[[pa.Table, pa.Table], About]
"""Of the decided videos, and of the decided clips with their :data:`LIGHT` columns."""


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


def _replaceable(out: str) -> generation.Generation | None:
    """The generation that `curate` replaces; None as well where its ``tables.json`` is damaged."""
    try:
        return generation.current(out)
    except Damaged:
        return None


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
