"""A field is added to a dataset in side tars; nothing that is there is touched."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa

from configs import folders
from configs.errors import EchoForgeError
from configs.paths import absolute, absolute_files
from configs.runtime import scratch
from model.config import ModelConfig
from pipeline import storage
from pipeline.catalog import identity
from pipeline.config import EncodeConfig
from pipeline.dataset import files
from pipeline.dataset.encode import encode_group, load_encoders
from pipeline.dataset.files import read_index, read_plans
from pipeline.dataset.index import MemberEntry, members_of
from pipeline.dataset.jobs import BUDGET_PER_SAMPLE_S
from pipeline.dataset.merge import FIELDS, join_fields, read_fields
from pipeline.dataset.publish import write_index
from pipeline.dataset.sample import PlannedSample
from pipeline.dataset.settings import Settings, read_described
from pipeline.dataset.tar import ShardSample
from pipeline.engine import lease, runner
from pipeline.engine.damage import mend
from pipeline.engine.ledger import Ledger
from pipeline.engine.progress import say
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


ADD = "shards add"


@dataclass(frozen=True)
class FieldJob:
    """Planned samples (JSON) of one tar (relative to the dataset), and where their `.mp4` members lie, by sample id."""

    tar: str
    samples: tuple[str, ...]
    stored: Mapping[str, MemberEntry]


class FieldWorker:
    """Encodes one field for one tar's samples into ``<tar>.<field>.tar`` beside it."""

    def __init__(self, dataset: str, field: str, model: ModelConfig, cfg: EncodeConfig):
        self.dataset, self.field, self.cfg = dataset, field, cfg
        self.context_frames, self.encoders = model.audio_encoder.context_frames, load_encoders(model, cfg)

    def run(self, payload: FieldJob) -> Result:
        """The side tar is there whole before this returns."""
        samples = [PlannedSample.from_json(text) for text in payload.samples]
        with scratch.folder() as folder:
            if self.field in TASK_OF:
                samples = [self._readable(s, payload.stored.get(s.sample_id), folder) for s in samples]
            encoded, failed = encode_group(samples, self.encoders, self.cfg, self.context_frames)
        if failed:
            cause, uri = failed[0].cause, failed[0].sample.source.uri
            if cause == identity.GONE:  # the names are those of the dataset's plans: no catalog is asked
                cause = "is not where it was when it was encoded; make it readable there (a link will do)"
            raise EchoForgeError(f"{uri}: {cause}")
        only = [ShardSample(e.written.sample_id, {self.field: e.written.tensors[self.field]}) for e in encoded]
        found, tars = files.save_tar(self.dataset, _side(payload.tar, self.field), only)
        rows = [
            {
                "sample_id": item.sample.sample_id,
                "tensors": [asdict(tensor) for tensor in found[item.sample.sample_id].tensors],
                "audio": [asdict(item.audio)] if self.field.startswith("audio.") else [],
            }
            for item in encoded
        ]
        return Result({"fields": pa.Table.from_pylist(rows, schema=FIELDS), "tars": tars})

    def _readable(self, sample: PlannedSample, mp4: MemberEntry | None, folder: Path) -> PlannedSample:
        """The sample as it is while its source is there, as it was curated; else with its stored `.mp4` (the clip at
        bucket size)."""
        if mp4 is None or identity.intact(sample.source):
            return sample
        copy = folder / f"{unit_id(sample.sample_id)}.mp4"  # an id in a plan may be any text
        copy.write_bytes(files.read_member(self.dataset, mp4))
        source = replace(sample.source, uri=str(copy))
        return replace(sample, source=source, start_frame=0, crop=None, offset_samples=0, stored=True)


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
    units = _field_units(plans, index, field)
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
    description = read_described(dataset, ADD)
    tars = files.tar_digests(ledger.read("tars", wanted=wanted))
    write_index(dataset, joined, description, {name: files.table_bytes(table)}, tars, ADD)
    return int(table.num_rows)


def _side(tar: str, field: str) -> str:
    """The tar that holds a field of the samples of ``tar``."""
    return f"{tar.removesuffix('.tar')}.{field}.tar"


def _mark_replaced(dataset: str, field: str, units: Sequence[Unit[FieldJob]], ledger: Ledger) -> None:
    """Tars that the index names are about to be written anew (by another encoder): until the index follows, nobody may
    read them by it."""
    digests, done = files.read_digests(dataset, unfinished=[ADD]), ledger.done()
    sides = (_side(unit.payload.tar, field) for unit in units if unit.id not in done)
    if digests and any(side in digests.files for side in sides):
        files.mark(dataset, ADD, digests)


def _field_units(plans: Mapping[str, pa.Table], index: pa.Table, field: str) -> list[Unit[FieldJob]]:
    have = dict(zip(index["sample_id"].to_pylist(), index["generation"].to_pylist(), strict=True))
    videos = {sample: member for sample, held in members_of(index) for member in held if member.ext == "mp4"}
    groups: dict[str, list[str]] = {}
    stored: dict[str, dict[str, MemberEntry]] = {}
    for generation, plan in plans.items():
        for sample, tar, text in zip(*(plan[n].to_pylist() for n in ("sample_id", "tar", "sample")), strict=True):
            if have.get(sample) == generation:  # an earlier one may have planned it and left it out
                groups.setdefault(tar, []).append(text)
                stored.setdefault(tar, {}).update({sample: videos[sample]} if sample in videos else {})
    return [
        Unit(
            unit_id(field, tar, *texts),
            FieldJob(tar, tuple(texts), stored[tar]),
            key=tar,
            cost=float(len(texts)),
            budget_s=BUDGET_PER_SAMPLE_S * (len(texts) + 1),
        )
        for tar, texts in groups.items()
    ]
