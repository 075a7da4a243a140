"""The rows of an index: what the ledger holds, with texts, side tars and the verdicts of today. Whole columns, no rows."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from configs.dataset_schema import INDEX, INDEX_FILE
from configs.errors import EchoForgeError
from pipeline import listing, storage
from pipeline.dataset import files, index, texts
from pipeline.dataset.lists import joined
from pipeline.dataset.settings import CONTINUES
from pipeline.engine.ledger import Ledger

FIELDS = pa.schema([INDEX.field("sample_id"), INDEX.field("tensors"), INDEX.field("audio")])
"""What `shards add` keeps of the samples that have a field."""


class NothingEncoded(EchoForgeError):
    """No sample of a dataset has been encoded."""


def encoded(
    ledger: Ledger, wanted: set[str], plans: Mapping[str, pa.Table], encoder: str
) -> tuple[pa.Table, list[str]]:
    """The index rows of all finished units, sorted by sample id, and why some of them are left out.

    Raises:
        NothingEncoded: there are none.
    """
    rows = pa.concat_tables([index.encoded_schema().empty_table(), *ledger.read("samples", wanted=wanted)])
    rows, left = texts.join_texts(rows, plans.values(), ledger.read("texts", wanted=wanted), encoder)
    if not rows.num_rows:
        raise NothingEncoded("no sample could be encoded.")
    return index.as_written(rows), left


def read_fields(out: str) -> dict[str, pa.Table]:
    """What `shards add` put into side tars: name of the file in the dataset (``fields/*.parquet``) → its table."""
    names = [f"fields/{part.name}" for part in listing.files(storage.join(out, "fields"), ".parquet")]
    return {name: files.read_table(out, name, FIELDS) for name in names}


def join_fields(rows: pa.Table, *fields: pa.Table) -> pa.Table:
    """Add tensors of side tars (schema :data:`FIELDS`) to the rows of an index."""
    for extra in fields:
        owner = pc.index_in(extra["sample_id"], value_set=rows["sample_id"].combine_chunks())
        extra = extra.append_column("owner", owner).filter(pc.is_valid(owner)).combine_chunks()
        for name, key in (("tensors", "name"), ("audio", "variant")):
            lists = extra[name].combine_chunks()
            owners = extra["owner"].to_numpy()[pc.list_parent_indices(lists).to_numpy()]
            column = joined(rows[name], owners, lists.flatten(), key)
            rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
    return index.as_written(rows)


def carried_over(rows: pa.Table, out: str) -> pa.Table:
    """Verdict, reason, tier and scores as the index at ``out`` has them, where there is one.

    The ledger knows them only as they were when a sample was encoded; what later runs, perhaps with other catalogs,
    found out about it is in the index.
    """
    if not files.exists(out, INDEX_FILE):
        return rows
    old = files.read_index(out, unfinished=CONTINUES)
    names = ["reason", *(name for name in index.carried() if name != "speaker" and name in old.column_names)]
    return _replaced(rows, "sample_id", old, names)


def refresh(rows: pa.Table, clips: pa.Table) -> pa.Table:
    """Verdict, tier and scores as the catalog has them now; samples whose clip is gone keep theirs."""
    first = clips.filter(pc.equal(clips["verdict"], "keep"))  # a file under two names: one of its rows is kept
    now = pa.concat_tables([first, clips.filter(pc.fill_null(pc.not_equal(clips["verdict"], "keep"), True))])
    return _replaced(rows, "clip_id", now, [name for name in index.carried() if name != "speaker"])


def _replaced(rows: pa.Table, key: str, by: pa.Table, names: list[str]) -> pa.Table:
    """``rows`` with the columns ``names`` taken from the first row of ``by`` that has their ``key``, where one has."""
    place = pc.index_in(rows[key], value_set=by[key].combine_chunks()).combine_chunks()
    for name in names:
        field = rows.schema.field(name)
        values = pc.if_else(pc.is_valid(place), by[name].combine_chunks().cast(field.type).take(place), rows[name])
        rows = rows.set_column(rows.schema.get_field_index(name), field, values)
    return rows
