"""Datasets grow and part without encoding anything twice: add a field in side tars, merge, split."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from configs import aliases, folders
from configs.dataset_files import Damaged, FileDigest
from configs.dataset_schema import DATASET_FILE, PROMPTS_FILE
from configs.errors import EchoForgeError
from configs.paths import absolute, absolute_files
from configs.runtime import disk, scratch, stopping
from model.config import ModelConfig
from pipeline import storage
from pipeline.catalog import identity
from pipeline.config import EncodeConfig
from pipeline.dataset import card, files
from pipeline.dataset.encode import encode_group, load_encoders
from pipeline.dataset.files import read_index, read_plans
from pipeline.dataset.index import index_table
from pipeline.dataset.shard import BUDGET_PER_SAMPLE_S, FIELDS, Settings, join_fields, read_fields, write_index
from pipeline.dataset.tar import ShardSample
from pipeline.engine import lease, runner
from pipeline.engine.damage import mend
from pipeline.engine.ledger import Ledger
from pipeline.engine.progress import say
from pipeline.engine.rows import tables as as_tables
from pipeline.engine.schedule import Watcher
from pipeline.engine.unit import Result, Unit, unit_id

Task = Literal["i2v", "flf2v", "lip_sync", "avatar_sync"]
TASK_OF: dict[str, Task] = {
    "cond_lip": "lip_sync",
    "cond_avatar": "avatar_sync",
    "cond_i2v": "i2v",
    "cond_flf2v_last": "flf2v",
}
TABLES = {"fields": FIELDS, "tars": files.TARS}


ADD, MERGE, SPLIT = "shards add", "shards merge", "shards split"


class FieldWorker:
    """Encodes one field for one tar's samples into ``<tar>.<field>.tar`` beside it."""

    def __init__(self, dataset: str, field: str, model: ModelConfig, cfg: EncodeConfig):
        self.dataset, self.field, self.cfg = dataset, field, cfg
        self.context_frames, self.encoders = model.audio_encoder.context_frames, load_encoders(model, cfg)

    def run(self, payload: dict[str, Any]) -> Result:
        """``payload``: ``tar`` of the samples (relative), their plan entries, and where their `.mp4` members lie."""
        samples = [json.loads(text) for text in payload["samples"]]
        with scratch.folder() as folder:
            if self.field in TASK_OF:
                samples = [self._readable(s, payload["mp4"].get(s["sample_id"]), folder) for s in samples]
            written, rows, failed = encode_group(samples, self.encoders, self.cfg, self.context_frames)
        if failed:
            cause = failed[0]["cause"]
            if cause == identity.GONE:  # the names are those of the dataset's plans: no catalog is asked
                cause = "is not where it was when it was encoded; make it readable there (a link will do)"
            raise EchoForgeError(f"{failed[0]['source_uri']}: {cause}")
        side = _side(payload["tar"], self.field)
        only = [ShardSample(s.sample_id, {self.field: s.tensors[self.field]}) for s in written]
        found, tar = files.save_tar(self.dataset, side, only)
        audio = {row["sample_id"]: row["audio"] if self.field.startswith("audio.") else [] for row in rows}
        entries = [
            {"sample_id": s.sample_id, "tensors": found[s.sample_id]["tensors"], "audio": audio[s.sample_id]}
            for s in only
        ]
        return Result(as_tables({"fields": entries, "tars": [tar]}, TABLES))

    def _readable(self, sample: dict[str, Any], mp4: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
        """The sample as it is while its source is there, as it was curated; else with its stored `.mp4` (the clip at
        bucket size)."""
        if mp4 is None or identity.intact(sample):
            return sample
        copy = folder / f"{unit_id(sample['sample_id'])}.mp4"  # an id in a plan may be any text
        copy.write_bytes(files.read_member(self.dataset, mp4))
        return sample | {"source_uri": str(copy), "start_frame": 0, "crop": None, "offset_samples": 0, "stored": True}


def add(
    dataset: str,
    field: str,
    config: Settings,
    *,
    inline: bool = False,
    ray_address: str | None = None,
    watcher: Watcher | None = None,
) -> int:
    """Encode ``field`` for every sample into side tars; no existing tar is touched. Conditions are made from the source,
    or from the sample's stored `.mp4` where the source is gone; sound needs the source.

    ``field``: ``cond_lip``, ``cond_avatar``, ``cond_i2v``, ``cond_flf2v_last`` or ``audio.<variant>`` (of the audio
    encoder that the configuration names). Resumes like `shard`.

    Returns:
        How many samples have the field now.

    Raises:
        EchoForgeError: unknown field, a dataset without plans or damaged, or a source that cannot be read.
    """
    variant = f"audio.{config.model.audio_encoder.variant}"
    if field not in TASK_OF and field != variant:
        raise EchoForgeError(f"field '{field}' cannot be added; known: {', '.join([*TASK_OF, variant])}.")
    dataset = dataset.rstrip("/")
    folders.check_out_folder(dataset)
    with lease.locked(dataset, "dataset", "shards add", make=False):
        return _add(dataset, field, config, inline, ray_address, watcher)


def _add(
    dataset: str, field: str, config: Settings, inline: bool, ray_address: str | None, watcher: Watcher | None
) -> int:
    """:func:`add` with the dataset locked."""
    index, plans = read_index(dataset, unfinished=[ADD]), read_plans(dataset)
    if not plans:
        raise EchoForgeError(f"'{dataset}' has no plan: it was merged or split; add the field before that.")
    tasks: tuple[Task, ...] = (
        ("i2v", TASK_OF[field]) if field == "cond_flf2v_last" else (TASK_OF[field],) if field in TASK_OF else ()
    )
    cfg = replace(config.pipeline.encode, tasks=tasks, mp4=False)
    have = dict(zip(index["sample_id"].to_pylist(), index["generation"].to_pylist(), strict=True))
    units = _field_units(plans, have, field, _videos(index))
    encoder = config.model.codec if field in TASK_OF else config.model.audio_encoder
    files.check_target(dataset, "ledger/add/parts")
    ledger = Ledger(storage.join(dataset, "ledger", "add"), TABLES, {"field": field, "encoder": str(encoder)})
    mend(ledger.root, ledger.tables, say)
    worker = functools.partial(FieldWorker, absolute(dataset), field, absolute_files(config.model), cfg)
    execution = config.pipeline.execution
    _mark_replaced(dataset, field, units, ledger)
    outcome = runner.run(
        units, worker, ledger, execution.shard, execution, inline=inline, ray_address=ray_address, watcher=watcher
    )
    if outcome.quarantined:
        raise EchoForgeError(f"'{field}' could not be added to {len(outcome.quarantined)} tars; the first: "
                             f"{outcome.quarantined[0].cause}")  # fmt: skip
    wanted = {unit.id for unit in units}
    parts = list(ledger.read("fields", wanted=wanted))
    table = (pa.concat_tables(parts) if parts else FIELDS.empty_table()).sort_by("sample_id").combine_chunks()
    name = f"fields/{field}.parquet"
    joined = join_fields(index, *({**read_fields(dataset), name: table}).values())
    description = _description(dataset, ADD)
    tars = files.tar_digests(ledger.read("tars", wanted=wanted))
    write_index(dataset, joined, description, {name: files.table_bytes(table)}, tars, ADD)
    return int(table.num_rows)


def _side(tar: str, field: str) -> str:
    """The tar that holds a field of the samples of ``tar``."""
    return f"{tar.removesuffix('.tar')}.{field}.tar"


def _mark_replaced(dataset: str, field: str, units: Sequence[Unit], ledger: Ledger) -> None:
    """Tars that the index names are about to be written anew (by another encoder): until the index follows, nobody may
    read them by it."""
    digests, done = files.read_digests(dataset, unfinished=[ADD]), ledger.done()
    sides = (_side(unit.payload["tar"], field) for unit in units if unit.id not in done)
    if digests and any(side in digests.files for side in sides):
        files.mark(dataset, ADD, digests)


def _videos(index: pa.Table) -> dict[str, dict[str, Any]]:
    """Sample id → place of its `.mp4` member, for samples that have one."""
    return {
        sample: member
        for sample, members in zip(index["sample_id"].to_pylist(), index["members"].to_pylist(), strict=True)
        for member in members
        if member["ext"] == "mp4"
    }


def _field_units(
    plans: dict[str, pa.Table], have: dict[str, str], field: str, videos: dict[str, dict[str, Any]]
) -> list[Unit]:
    groups: dict[str, list[str]] = {}
    stored: dict[str, dict[str, Any]] = {}
    for generation, plan in plans.items():
        for sample, tar, text in zip(*(plan[n].to_pylist() for n in ("sample_id", "tar", "sample")), strict=True):
            if have.get(sample) == generation:  # an earlier one may have planned it and left it out
                groups.setdefault(tar, []).append(text)
                stored.setdefault(tar, {}).update({sample: videos[sample]} if sample in videos else {})
    return [
        Unit(
            unit_id(field, tar, *texts),
            {"tar": tar, "samples": texts, "mp4": stored[tar]},
            key=tar,
            cost=float(len(texts)),
            budget_s=BUDGET_PER_SAMPLE_S * (len(texts) + 1),
        )
        for tar, texts in groups.items()
    ]


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
    descriptions = [_description(d) for d in datasets]
    for dataset, description in zip(datasets, descriptions, strict=True):
        if description["encoders"] != descriptions[0]["encoders"]:
            kinds = [k for k, v in descriptions[0]["encoders"].items() if description["encoders"].get(k) != v]
            raise EchoForgeError(
                f"'{dataset}' and '{datasets[0]}' were made with other encoders ({', '.join(kinds)}) and cannot be merged; "
                "shard one of them again with the other's preset."
            )
    _check_free(out, MERGE)
    rows: dict[str, dict[str, Any]] = {}
    splits: dict[str, str] = {}
    copies: dict[str, tuple[str, str]] = {}  # tar in ``out`` → (dataset, tar there)
    number = 0
    for dataset in datasets:
        renamed: dict[str, str] = {}  # generation of this dataset → of the new one
        for row in read_index(dataset).to_pylist():
            if splits.setdefault(row["video_id"], row["split"]) != row["split"]:
                raise EchoForgeError(
                    f"video {row['video_id']} is in split {splits[row['video_id']]}, "
                    f"but in '{dataset}' in {row['split']}."
                )
            if row["sample_id"] in rows:
                continue
            for old in [*(_generation(item["tar"]) for item in [*row["members"], *row["tensors"]]), row["generation"]]:
                if old not in renamed:
                    renamed[old] = f"gen-{number:03d}"
                    number += 1
            for item in [*row["members"], *row["tensors"]]:
                copies[_moved(item["tar"], renamed)] = dataset, item["tar"]
            rows[row["sample_id"]] = _moved_row(row, renamed)
    prompts = files.read_prompts(datasets[0])
    tars = _copy(copies, out)
    description = {**descriptions[0], "parts": list(map(_base, datasets)), "plans": []}
    description["curation"] = card.together([d.get("curation") for d in descriptions])
    write_index(out, index_table(list(rows.values())), description, {PROMPTS_FILE: prompts}, tars, MERGE)
    return len(rows)


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
    description = {**_description(dataset), "parts": [_base(dataset)], "plans": []}
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


def _moved_row(row: dict[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    moved = {
        kind: [item | {"tar": _moved(item["tar"], renamed)} for item in row[kind]] for kind in ("tensors", "members")
    }
    return row | moved | {"generation": renamed[row["generation"]]}


def _base(dataset: str) -> str:
    return storage.name_of(dataset.rstrip("/"))


def _description(dataset: str, *unfinished: str) -> dict[str, Any]:
    """``dataset.json``; its settings with the names of today."""
    description = files.read_description(dataset, unfinished=unfinished)
    if not description.get("encoders"):
        raise Damaged(dataset, DATASET_FILE, "it does not say which encoders made the dataset")
    settings = aliases.modernise(description.get("settings") or {})
    return description | {"plans": description.get("plans") or [], "settings": settings}
