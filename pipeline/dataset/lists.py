"""List columns of an index grow without becoming objects: a dataset may have a million rows with twenty tensors each."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def joined(lists: pa.ChunkedArray, owners: np.ndarray, items: pa.StructArray, key: str) -> pa.ListArray:
    """Lists of structs, with ``items`` at the end of the lists of their rows.

    Args:
        owners: row of each item, int64 [len(items)].
        key: an item takes the place of what its list holds under the same value of this field.
    """
    column = lists.combine_chunks()
    flat = column.flatten()
    rows = np.repeat(np.arange(len(column)), column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    stays = np.ones(len(flat), bool)
    kinds = pc.unique(items.field(key))
    old, new = (pc.fill_null(pc.index_in(part.field(key), kinds), -1).to_numpy() for part in (flat, items))
    for kind in range(len(kinds)):
        replaced = np.zeros(len(column), bool)
        replaced[owners[new == kind]] = True
        stays &= ~((old == kind) & replaced[rows])
    kept = np.flatnonzero(stays)
    values = pa.concat_arrays([flat.take(pa.array(kept)), items.cast(flat.type)])
    owner = np.concatenate([rows[kept], owners])
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=len(column))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    missing = pa.array(column.is_null().to_numpy(zero_copy_only=False) & (counts == 0))  # null stays null
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), values.take(pa.array(order)), type=column.type, mask=missing
    )
