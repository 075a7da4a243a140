"""Datasets grow and part without encoding anything twice: merge, split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs import folders
from configs.dataset_files import FileDigest
from configs.dataset_schema import DATASET_FILE, PROMPTS_FILE
from configs.errors import EchoForgeError
from configs.runtime import disk, stopping
from pipeline import storage
from pipeline.dataset import card, files
from pipeline.dataset.files import read_index
from pipeline.dataset.index import as_written
from pipeline.dataset.publish import write_index
from pipeline.dataset.settings import read_described
from pipeline.engine import lease

MERGE, SPLIT = "shards merge", "shards split"


def merge(datasets: Sequence[str], out: str) -> int:
    """Copy several datasets into a new one; a sample that two of them hold is taken once. Returns the samples.

    Raises:
        EchoForgeError: fewer than two datasets, other encoders, a video in two splits, or something is at ``out``.
    """
    if len({d.rstrip("/") for d in datasets}) < max(2, len(datasets)):
        raise EchoForgeError(f"merging needs at least two datasets, each named once; got: {', '.join(datasets)}.")
    folders.check_out(out, "dataset")
    with lease.locked(out, "dataset", "shards merge"):
        return _merge(datasets, out)


def _merge(datasets: Sequence[str], out: str) -> int:
    """:func:`merge` with ``out`` locked."""
    descriptions = [read_described(d) for d in datasets]
    for dataset, description in zip(datasets, descriptions, strict=True):
        first, other = descriptions[0].encoders or {}, description.encoders or {}
        if first != other:
            kinds = [kind for kind, name in first.items() if other.get(kind) != name]
            raise EchoForgeError(
                f"'{dataset}' and '{datasets[0]}' were made with other encoders ({', '.join(kinds)}) and cannot be merged; "
                "shard one of them again with the other's preset."
            )
    _check_free(out, MERGE)
    parts: list[pa.Table] = []
    taken: set[str] = set()
    splits: dict[str, str] = {}
    copies: dict[str, tuple[str, str]] = {}  # tar in ``out`` → (dataset, tar there)
    generations = count()
    for dataset in datasets:
        table = read_index(dataset)
        for video, held in zip(table["video_id"].to_pylist(), table["split"].to_pylist(), strict=True):
            if splits.setdefault(video, held) != held:
                raise EchoForgeError(f"video {video} is in split {splits[video]}, but in '{dataset}' in {held}.")
        table = table.filter(pa.array([sample not in taken for sample in table["sample_id"].to_pylist()], pa.bool_()))
        taken.update(table["sample_id"].to_pylist())
        renamed = _new_generations(table, generations)
        parts.append(_moved_rows(table, renamed))
        copies |= {_moved(tar, renamed): (dataset, tar) for tar in files.tars_of(table)}
    prompts = files.read_prompts(datasets[0])
    tars = _copy(copies, out)
    together = card.together([d.curation for d in descriptions])
    description = replace(descriptions[0], parts=tuple(map(_base, datasets)), plans=(), curation=together)
    table = as_written(pa.concat_tables(parts, promote_options="default"))
    write_index(out, table, description, {PROMPTS_FILE: prompts}, tars, MERGE)
    return int(table.num_rows)


def _new_generations(table: pa.Table, numbers: Iterator[int]) -> dict[str, str]:
    """A new name for every generation that a row or one of its tars names, in the order of the rows."""
    renamed: dict[str, str] = {}
    columns = (table[name].to_pylist() for name in ("members", "tensors", "generation"))
    for held, tensors, generation in zip(*columns, strict=True):
        for old in [*(_generation(item["tar"]) for item in [*held, *tensors]), generation]:
            if old not in renamed:
                renamed[old] = f"gen-{next(numbers):03d}"
    return renamed


def split(dataset: str, out: str, *, splits: Sequence[str] = (), buckets: Sequence[str] = ()) -> int:
    """Copy the tars of some splits or buckets into a dataset of its own. Returns the samples.

    Raises:
        EchoForgeError: nothing is left, or something is at ``out``.
    """
    folders.check_out(out, "dataset")
    with lease.locked(out, "dataset", "shards split"):
        return _split(dataset, out, splits, buckets)


def _split(dataset: str, out: str, splits: Sequence[str], buckets: Sequence[str]) -> int:
    """:func:`split` with ``out`` locked."""
    table = whole = read_index(dataset)
    for name, wanted in (("split", splits), ("bucket", buckets)):
        if wanted:
            table = table.filter(pc.is_in(table[name], pa.array(list(wanted), pa.string())))
    if not table.num_rows:
        asked = " and ".join(f"{n} {' or '.join(w)}" for n, w in (("split", splits), ("bucket", buckets)) if w)
        there = "; ".join(
            f"its {name}s: {', '.join(sorted(set(whole[name].to_pylist())))}" for name in ("split", "bucket")
        )
        raise EchoForgeError(f"'{dataset}' has no sample with {asked}; {there}.")
    _check_free(out, SPLIT)
    description = replace(read_described(dataset), parts=(_base(dataset),), plans=())
    prompts = files.read_prompts(dataset)
    tars = _copy({tar: (dataset, tar) for tar in files.tars_of(table)}, out)
    write_index(out, table, description, {PROMPTS_FILE: prompts}, tars, SPLIT)
    return int(table.num_rows)


def _check_free(out: str, command: str) -> None:
    """Raise unless ``out`` holds no dataset, or one that ``command`` was interrupted in."""
    digests = files.read_digests(out, unfinished=[command])
    if files.exists(out, DATASET_FILE) and not (digests and digests.unfinished):
        raise EchoForgeError(f"'{out}' holds a dataset already; give another --out.")


def _copy(copies: Mapping[str, tuple[str, str]], out: str) -> dict[str, FileDigest]:
    """Copy tars, each checked on the way; ``copies``: tar in ``out`` → (dataset, tar there). Returns their digests."""
    known = {dataset: files.read_digests(dataset) for dataset in {dataset for dataset, _ in copies.values()}}
    sizes = (found.files[tar].size for name, tar in copies.values() if (found := known[name]) and tar in found.files)
    disk.check_room(out, sum(sizes), "copying the tars")
    made = {}
    for target, (dataset, tar) in copies.items():
        stopping.check()
        digests = known[dataset]
        made[target] = files.copy_tar(dataset, tar, out, target, digests.files.get(tar) if digests else None)
    return made


def _generation(tar: str) -> str:
    return tar.split("/", maxsplit=1)[0]


def _moved(tar: str, renamed: Mapping[str, str]) -> str:
    return "/".join([renamed[_generation(tar)], *tar.split("/")[1:]])


def _moved_rows(table: pa.Table, renamed: Mapping[str, str]) -> pa.Table:
    """Rows of an index whose generations have other names."""
    generations = pa.array([renamed[name] for name in table["generation"].to_pylist()], pa.string())
    table = table.set_column(table.schema.get_field_index("generation"), "generation", generations)
    for kind in ("tensors", "members"):
        lists = table[kind].combine_chunks()
        items, encoded = lists.flatten(), lists.flatten().field("tar").dictionary_encode()
        names = pa.array([_moved(tar, renamed) for tar in encoded.dictionary.to_pylist()], pa.string())
        moved = pa.DictionaryArray.from_arrays(encoded.indices, names).cast(pa.string())
        arrays = [moved if field.name == "tar" else items.field(field.name) for field in items.type]
        offsets = pa.array(np.cumsum([0, *lists.value_lengths().fill_null(0).to_numpy()]), pa.int32())
        column = pa.ListArray.from_arrays(
            offsets, pa.StructArray.from_arrays(arrays, fields=list(items.type)), type=lists.type
        )
        table = table.set_column(table.schema.get_field_index(kind), table.schema.field(kind), column)
    return table


def _base(dataset: str) -> str:
    return storage.name_of(dataset.rstrip("/"))
