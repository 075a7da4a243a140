"""Kept clips of a catalog → a dataset of shards: plan, encode through the engine, publish.

Layout of ``out`` (`docs/data-formats.md`): ``gen-NNN/plan.parquet`` and ``gen-NNN/<bucket>/shard-*.tar``,
``index.parquet``, ``prompts.safetensors``, ``dataset.json``, ``README.md``; the record of work is in
``ledger/shard``. A killed run continues: what the ledger knows is not encoded again, and the rest gives the bytes
that it would have given.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from safetensors.torch import save

from configs import folders, strict
from configs.dataset_description import Description, EncoderName
from configs.dataset_schema import PROMPTS_FILE
from configs.errors import EchoForgeError
from configs.paths import absolute, absolute_files
from configs.runtime import disk
from configs.runtime.shown import one_line
from model.config import ModelConfig
from pipeline import listing, storage
from pipeline.catalog import identity, tables
from pipeline.catalog.located import located
from pipeline.catalog.summary import standing
from pipeline.dataset import card, files, merge, superseded, texts
from pipeline.dataset.encode import Encoders, load_encoders
from pipeline.dataset.jobs import Job, SampleJob, ShardWorker, ledger_tables, sample_units
from pipeline.dataset.plan import encoded_bytes, extend_plans
from pipeline.dataset.publish import write_index
from pipeline.dataset.sample import PlannedSample
from pipeline.dataset.settings import Settings, check_settings, made_with, parameters
from pipeline.engine import lease, runner
from pipeline.engine.damage import mend
from pipeline.engine.ledger import Ledger
from pipeline.engine.progress import say
from pipeline.engine.schedule import Watcher
from pipeline.engine.unit import Failure, Unit

TRANSFORMS = (
    "25 fps, RGB scaled to −1..1; sound 16 kHz mono, moved by offset_samples; "
    "latents are the codec's posterior mean, normalised, bf16"
)


@dataclass(frozen=True)
class ShardSummary:
    """What a run of `shard` did and what the dataset holds now."""

    dataset: str
    samples: int
    hours: float
    by_split: dict[str, int]
    by_bucket: dict[str, int]
    tars: int
    bytes: int
    encoded_now: int  # tars
    failed: list[str] = field(default_factory=list)  # one sentence each

    def __str__(self) -> str:
        splits = ", ".join(f"{count} {name}" for name, count in self.by_split.items())
        lines = [
            f"{self.dataset}: {self.samples} samples ({self.hours:.2f} h) in {self.tars} tars, "
            f"{self.bytes / 1e6:.1f} MB; {self.encoded_now} tars made now.",
            f"splits: {splits}",
            "buckets: " + ", ".join(f"{name} {count}" for name, count in self.by_bucket.items()),
        ]
        return "\n".join(lines + [f"left out: {one_line(cause)}" for cause in self.failed[:20]])


def shard(
    catalog_dir: str,
    out: str,
    config: Settings,
    *,
    inline: bool = False,
    ray_address: str | None = None,
    limit: int | None = None,
    watcher: Watcher | None = None,
) -> ShardSummary:
    """Encode the kept clips of ``catalog_dir`` into the dataset ``out``; continue, extend or finish it.

    Args:
        limit: only the first so many kept clips (by id).

    Raises:
        EchoForgeError: no catalog, nothing kept, a dataset of other encoders or settings at ``out``, or another process
            changes it.
        MissingWeights: a configured network is not there.
    """
    out = out.rstrip("/")
    folders.check_out(out, "dataset")
    with lease.locked(out, "dataset", "shard"):
        return _shard(catalog_dir, out, config, inline, ray_address, limit, watcher)


def _shard(
    catalog_dir: str,
    out: str,
    config: Settings,
    inline: bool,
    ray_address: str | None,
    limit: int | None,
    watcher: Watcher | None,
) -> ShardSummary:
    """:func:`shard` with the dataset locked: plan, encode, publish."""
    cfg = config.pipeline
    videos, clips, run = tables.read_whole(catalog_dir)
    kept = clips.filter(pc.equal(clips["verdict"], "keep")).sort_by("clip_id")
    if not kept.num_rows:
        state = standing(catalog_dir, videos, clips, run.preset)
        what = f"catalog '{catalog_dir}' keeps no clip, so there is nothing to shard ({state.counts()})."
        raise EchoForgeError("\n".join([what, *state.why(), *state.next_steps()]))
    check_settings(out, config, None)
    encoders = load_encoders(config.model, cfg.encode)
    digests = parameters(cfg, encoders)
    check_settings(out, config, digests)
    # plan
    kept = located(identity.attach(kept, videos), catalog_dir)
    planned = kept.slice(0, limit)
    ledger = Ledger(storage.join(out, "ledger", "shard"), ledger_tables(), digests)
    mend(ledger.root, ledger.tables, say)
    plans, today = extend_plans(out, planned, cfg, digests, encoders, _left_out(ledger))
    units = _units(plans, kept, encoders)
    _forget_lost(out, ledger, units)
    # encode
    disk.check_room(out, _room(units, ledger.done(), encoders), "encoding what is planned")
    prompts = _prompts(encoders, config.model)
    if inline:
        make_worker = functools.partial(ShardWorker, out, config.model, cfg.encode, encoders)
    else:
        make_worker = functools.partial(ShardWorker, absolute(out), absolute_files(config.model), cfg.encode)
    outcome = runner.run(
        units, make_worker, ledger, cfg.execution.shard, cfg.execution,
        inline=inline, ray_address=ray_address, watcher=watcher,
    )  # fmt: skip
    # publish
    wanted = {unit.id for unit in units}
    failed = pa.concat_tables([ledger.tables["failed"].empty_table(), *ledger.read("failed", wanted)])
    try:
        rows, left = merge.encoded(ledger, wanted, plans, encoders.text.digest)
    except merge.NothingEncoded as error:
        quarantined = [failure for unit, failure in ledger.quarantined().items() if unit in wanted]
        raise EchoForgeError(_nothing_encoded(catalog_dir, failed, quarantined)) from error
    held = videos if limit is None else planned
    compared = superseded.compare(plans.values(), today, planned, clips, held["video_id"].drop_null().to_pylist())
    table = superseded.mark(merge.refresh(merge.carried_over(rows, out), clips), compared)
    table = merge.join_fields(table, *merge.read_fields(out).values())
    causes = _causes(failed, located(videos, catalog_dir), set(table["sample_id"].to_pylist()))
    causes += [f"{failure.key}: {failure.cause}" for failure in outcome.quarantined] + left
    description = Description(
        encoders={kind: EncoderName(**name) for kind, name in encoders.digests.items()},
        made_with=made_with(config),
        parameters=digests,
        settings={name: strict.to_dict(getattr(cfg, name)) for name in ("buckets", "encode", "shards")},
        curation=card.curation(clips, videos, set(table["video_id"].to_pylist())),
        plans=tuple(plans),
        left_out=tuple(causes),
        others={"transforms": TRANSFORMS},
    )
    tars = files.tar_digests(ledger.read("tars", wanted=wanted))
    totals = write_index(out, table, description, {PROMPTS_FILE: prompts}, tars, "shard")
    return ShardSummary(
        dataset=out,
        samples=totals.samples,
        hours=totals.hours,
        by_split=totals.samples_by_split,
        by_bucket=totals.samples_by_bucket,
        tars=totals.tars,
        bytes=totals.bytes,
        encoded_now=outcome.done,
        failed=causes,
    )


def _units(plans: Mapping[str, pa.Table], kept: pa.Table, encoders: Encoders) -> list[Unit[Job]]:
    """Texts first, then the samples of every generation, with their sources where the catalog has them now."""
    now = dict(zip(kept["clip_id"].to_pylist(), kept["source_uri"].to_pylist(), strict=True))
    units: list[Unit[Job]] = [*texts.text_units(plans, encoders.text.digest)]
    for generation, plan in plans.items():
        units += sample_units(generation, plan, now)
    return units


def _forget_lost(out: str, ledger: Ledger, units: Sequence[Unit[Job]]) -> None:
    if lost := lost_tars(out, ledger):
        say(f"{len(lost)} tars are gone or cut short, the first '{lost[0]}': they are made again.")
        ledger.forget({unit.id for unit in units if unit.key in lost})


def lost_tars(out: str, ledger: Ledger) -> list[str]:
    """Tars of the ledger that are not there, or shorter than their last tensor; their contents are not read."""
    ends: dict[str, int] = {}
    for table, column in (("samples", "tensors"), ("texts", "tensor")):
        for part in ledger.read(table, columns=[column]):
            tensors = part[column].combine_chunks()
            tensors = pc.list_flatten(tensors) if pa.types.is_list(tensors.type) else tensors
            places = pa.table(
                {
                    "tar": pc.struct_field(tensors, "tar"),
                    "end": pc.add(pc.struct_field(tensors, "offset"), pc.struct_field(tensors, "length")),
                }
            )
            for tar, end in zip(*places.group_by("tar").aggregate([("end", "max")]).to_pydict().values(), strict=True):
                ends[tar] = max(end, ends.get(tar, 0))
    folders_of = {tar.rpartition("/")[0] for tar in ends}
    sizes = {
        f"{folder}/{e.name}": e.size for folder in folders_of for e in listing.files(storage.join(out, folder), ".tar")
    }
    return sorted(tar for tar, end in ends.items() if sizes.get(tar, -1) < end)


def _left_out(ledger: Ledger) -> Counter[str]:
    """How often each sample was left out because its source was not the one that was curated, by sample id."""
    parts = ledger.read("failed", columns=["sample_id", "cause"])
    return Counter(
        row["sample_id"] for part in parts for row in part.to_pylist() if row["cause"].startswith(identity.CAUSES)
    )


def _causes(failed: pa.Table, videos: pa.Table, encoded: set[str]) -> list[str]:
    """Why samples are left out, each file and cause once.

    Not named any more: samples that were encoded since, and a file that changed once the catalog knows its new content.
    """
    now = dict(zip(videos["source_uri"].to_pylist(), videos["video_id"].to_pylist(), strict=True))
    told: dict[str, set[str]] = {}
    for name, video, uri, cause in zip(*(column.to_pylist() for column in failed.columns), strict=True):
        if (cause != identity.CHANGED or now.get(uri, video) == video) and name not in encoded:
            told.setdefault(f"{uri}: {cause}", set()).add(name)
    return [cause if len(ids) == 1 else f"{cause} ({len(ids)} samples)" for cause, ids in told.items()]


def _room(units: Sequence[Unit[Job]], done: set[str], encoders: Encoders) -> int:
    """About how many bytes the tars that are missing will take; all samples of a tar are of one bucket."""
    missing = [unit.payload for unit in units if unit.id not in done and isinstance(unit.payload, SampleJob)]
    return sum(len(job.samples) * encoded_bytes(PlannedSample.from_json(job.samples[0]), encoders) for job in missing)


def _nothing_encoded(catalog_dir: str, failed: pa.Table, quarantined: Sequence[Failure]) -> str:
    """One sentence with the first three causes, each with its file."""
    told = failed["cause"].to_pylist()
    causes = dict.fromkeys(
        f"{uri}: {cause.rstrip('.')}" for uri, cause in zip(failed["source_uri"].to_pylist(), told, strict=True)
    )
    causes |= dict.fromkeys(f"{failure.key}: {failure.cause.rstrip('.')}" for failure in quarantined)
    shown = "; ".join(list(causes)[:3]) or "no cause is recorded"
    more = f" (and {len(causes) - 3} more)" if len(causes) > 3 else ""
    if identity.GONE in told:
        remedy = f"if the videos moved, `catalog relocate {catalog_dir} OLD NEW` names their folders"
    elif not quarantined and all(cause.startswith(identity.CAUSES) for cause in told):
        remedy = "mend these and run again"
    else:
        remedy = "mend these and give another --out"
    return f"no sample could be encoded: {shown}{more}; {remedy}."


def _prompts(encoders: Encoders, model: ModelConfig) -> bytes:
    """`prompts.safetensors`: ``null`` and every negative prompt, [L, dim] bf16, once per dataset."""
    import torch

    texts = {"null": "", **model.guidance.prompts}
    rows = encoders.text.encode(list(texts.values()))
    return save({name: row.to(torch.bfloat16).cpu().contiguous() for name, row in zip(texts, rows, strict=True)})
