"""Kept clips of a catalog → a dataset of shards: plan, encode through the engine, merge the index, write the card.

Layout of ``out`` (`docs/data-formats.md`): ``gen-NNN/plan.parquet`` and ``gen-NNN/<bucket>/shard-*.tar``,
``index.parquet``, ``prompts.safetensors``, ``dataset.json``, ``README.md``; the record of work is in
``ledger/shard``. A killed run continues: what the ledger knows is not encoded again, and the rest gives the bytes
that it would have given.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from safetensors.torch import save

from configs import difference, folders, strict
from configs.dataset_files import FileDigest
from configs.dataset_schema import CARD_FILE, DATASET_FILE, INDEX, INDEX_FILE, PROMPTS_FILE, SCHEMA_VERSION
from configs.errors import EchoForgeError
from configs.paths import absolute, absolute_files
from configs.runtime import disk
from configs.runtime.shown import one_line
from curation.schema import FPS
from model.config import ModelConfig
from pipeline import listing, parquet, storage
from pipeline.catalog import identity, tables
from pipeline.catalog.located import located
from pipeline.catalog.summary import standing
from pipeline.config import EncodeConfig, PipelineConfig
from pipeline.dataset import card, superseded, texts
from pipeline.dataset import files as dataset
from pipeline.dataset import plan as shard_plan
from pipeline.dataset.encode import Encoders, encode_group, load_encoders
from pipeline.dataset.files import read_index, read_plans
from pipeline.dataset.index import index_table
from pipeline.dataset.stats import stats_of
from pipeline.engine import lease, runner
from pipeline.engine.damage import mend
from pipeline.engine.ledger import Ledger
from pipeline.engine.progress import say
from pipeline.engine.rows import tables as as_tables
from pipeline.engine.schedule import Watcher
from pipeline.engine.unit import Failure, Result, Unit, unit_id
from pipeline.engine.version import code_version

FAILED = pa.schema(
    [("sample_id", pa.string()), ("video_id", pa.string()), ("source_uri", pa.string()), ("cause", pa.string())]
)
ENCODED = pa.schema([field for field in INDEX if field.name != "reason"])
"""What the ledger holds of a sample; the reason is found when the index is written."""
TABLES = {"samples": ENCODED, "failed": FAILED, "texts": texts.TEXTS, "tars": dataset.TARS}
FIELDS = pa.schema([INDEX.field("sample_id"), INDEX.field("tensors"), INDEX.field("audio")])
"""What `shards add` keeps of the samples that have a field."""
_CLIP = re.compile(r'"clip_id": "([^"\\]*)"')
_SOURCE = re.compile(r'"source_uri": ("(?:[^"\\]|\\.)*")')
ENCODERS = ("codec", "text_encoder", "image_encoder", "audio_encoder")
"""Sections of the configuration that decide what the tensors hold."""
CONTINUES = ("shard", "shards add")
"""Commands that were perhaps interrupted while they replaced the index, and that `shard` finishes."""
BUDGET_PER_SAMPLE_S = 120.0
"""A sample takes seconds; a unit that needs this long for each of its samples hangs."""


class Settings(Protocol):
    """The parts of the configuration that sharding reads."""

    @property
    def preset(self) -> str: ...
    @property
    def pipeline(self) -> PipelineConfig: ...
    @property
    def model(self) -> ModelConfig: ...


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


class ShardWorker:
    """Encodes one group of samples, or of texts, and writes its tar. Built once per process: the networks load once."""

    def __init__(self, out: str, model: ModelConfig, cfg: EncodeConfig):
        self.out, self.cfg = out, cfg
        self.context_frames = model.audio_encoder.context_frames
        self.encoders: Encoders = load_encoders(model, cfg)

    def run(self, payload: dict[str, Any]) -> Result:
        """``payload``: ``tar`` (relative) and ``texts``, or ``generation`` and ``samples``. The tar is there whole before
        this returns."""
        if "texts" in payload:
            return Result(
                as_tables(texts.encode_texts(self.out, payload["tar"], payload["texts"], self.encoders.text), TABLES)
            )
        samples = [json.loads(text) for text in payload["samples"]]
        written, rows, failed = encode_group(samples, self.encoders, self.cfg, self.context_frames)
        tars = []
        if written:
            found, tar = dataset.save_tar(self.out, payload["tar"], written)
            tars.append(tar)
            for row in rows:
                row |= {"generation": payload["generation"], **found[row["sample_id"]]}
        seconds = sum(sample["F"] for sample in samples) / FPS
        return Result(as_tables({"samples": rows, "failed": failed, "tars": tars}, TABLES), amount=seconds)


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
    """:func:`shard` with the dataset locked."""
    cfg = config.pipeline
    videos, clips, run = tables.read_whole(catalog_dir)
    kept = clips.filter(pc.equal(clips["verdict"], "keep")).sort_by("clip_id")
    if not kept.num_rows:
        state = standing(catalog_dir, videos, clips, run.preset)
        what = f"catalog '{catalog_dir}' keeps no clip, so there is nothing to shard ({state.counts()})."
        raise EchoForgeError("\n".join([what, *state.why(), *state.next_steps()]))
    check_settings(out, config, None)
    encoders = load_encoders(config.model, cfg.encode)
    parameters = _parameters(cfg, encoders)
    check_settings(out, config, parameters)
    kept = located(identity.attach(kept, videos), catalog_dir)
    planned = kept.slice(0, limit)
    ledger = Ledger(storage.join(out, "ledger", "shard"), TABLES, parameters)
    mend(ledger.root, TABLES, say)
    plans = extend_plans(out, planned, cfg, parameters, encoders, _left_out(ledger))
    units = texts.text_units(plans, encoders.text.digest)
    now = dict(zip(kept["clip_id"].to_pylist(), kept["source_uri"].to_pylist(), strict=True))
    units += [unit for generation, plan in plans.items() for unit in _units(generation, plan, now)]
    if lost := lost_tars(out, ledger):
        say(f"{len(lost)} tars are gone or cut short, the first '{lost[0]}': they are made again.")
        ledger.forget({unit.id for unit in units if unit.key in lost})
    disk.check_room(out, _room(units, ledger.done(), encoders), "encoding what is planned")
    prompts = _prompts(encoders, config.model)
    if inline:
        make_worker = functools.partial(_worker_with, encoders, out, config.model, cfg.encode)
    else:
        make_worker = functools.partial(ShardWorker, absolute(out), absolute_files(config.model), cfg.encode)
    outcome = runner.run(
        units, make_worker, ledger, cfg.execution.shard, cfg.execution,
        inline=inline, ray_address=ray_address, watcher=watcher,
    )  # fmt: skip
    wanted = {unit.id for unit in units}
    failed = [row for part in ledger.read("failed", wanted) for row in part.to_pylist()]
    try:
        rows, left = merged(ledger, wanted, plans, encoders.text.digest)
    except NothingEncoded as error:
        aside = [failure for unit, failure in ledger.quarantined().items() if unit in wanted]
        raise EchoForgeError(_nothing_encoded(catalog_dir, failed, aside)) from error
    held = videos if limit is None else planned
    answered = set(held["video_id"].drop_null().to_pylist())
    compared = superseded.compare(plans.values(), planned, clips, answered)
    table = superseded.mark(refresh(carried_over(rows, out), clips), compared)
    table = join_fields(table, *read_fields(out).values())
    causes = _causes(failed, located(videos, catalog_dir), set(table["sample_id"].to_pylist()))
    causes += [f"{failure.key}: {failure.cause}" for failure in outcome.quarantined] + left
    tars = dataset.tar_digests(ledger.read("tars", wanted=wanted))
    curated = card.curation(clips, videos, set(table["video_id"].to_pylist()))
    facts = {
        "made_with": _made_with(config),
        "encoders": encoders.digests,
        "parameters": parameters,
        "plans": list(plans),
        "curation": curated,
    }
    return publish(out, table, config, facts, causes, prompts=prompts, tars=tars, encoded_now=outcome.done)


def _worker_with(encoders: Encoders, out: str, model: ModelConfig, cfg: EncodeConfig) -> ShardWorker:
    worker = ShardWorker.__new__(ShardWorker)
    worker.out, worker.cfg, worker.encoders = out, cfg, encoders
    worker.context_frames = model.audio_encoder.context_frames
    return worker


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


def _causes(failed: list[dict[str, Any]], videos: pa.Table, encoded: set[str]) -> list[str]:
    """Why samples are left out, each file and cause once.

    Not named any more: samples that were encoded since, and a file that changed once the catalog knows its new content.
    """
    now = dict(zip(videos["source_uri"].to_pylist(), videos["video_id"].to_pylist(), strict=True))
    told: dict[str, set[str]] = {}
    for row in failed:
        known = row["cause"] != identity.CHANGED or now.get(row["source_uri"], row["video_id"]) == row["video_id"]
        if known and row["sample_id"] not in encoded:
            told.setdefault(f"{row['source_uri']}: {row['cause']}", set()).add(row["sample_id"])
    return [cause if len(ids) == 1 else f"{cause} ({len(ids)} samples)" for cause, ids in told.items()]


def _parameters(cfg: PipelineConfig, encoders: Encoders) -> dict[str, str]:
    settings = {k: v for k, v in strict.to_dict(cfg.encode).items() if k != "device"}
    return {"encoders": encoders.digest, "encode": strict.digest(settings, "encode"), "format": str(SCHEMA_VERSION)}


def _made_with(config: Settings) -> dict[str, Any]:
    """What decides the bytes of a dataset, readable, for `dataset.json`: with other values nothing can be added to it."""
    encoders = {name: strict.to_dict(getattr(config.model, name)) for name in ENCODERS}
    encode = {k: v for k, v in strict.to_dict(config.pipeline.encode).items() if k != "device"}
    return {"preset": config.preset, "values": encoders | {"encode": encode}}


def check_settings(out: str, config: Settings, parameters: dict[str, str] | None) -> None:
    """Compare ``config`` with what the dataset at ``out`` was made with, where a `dataset.json` says it.

    Args:
        parameters: digests of ``config``; None before the encoders are loaded: then only encoders of another kind count.

    Raises:
        EchoForgeError: other settings; names the keys with both values, and the preset that made the dataset.
    """
    saved = dataset.read_description(out, unfinished=CONTINUES) if dataset.exists(out, DATASET_FILE) else {}
    before, now = saved.get("made_with"), _made_with(config)
    if before is None or saved.get("parameters") == parameters:
        return
    changes = difference.differences(before["values"], now["values"])
    if changes and (parameters is not None or any(".kind " in change for change in changes)):
        why = difference.summary(changes, before["preset"], now["preset"])
        raise EchoForgeError(f"dataset '{out}' was made with other settings ({why}): use those, or give another --out.")


def extend_plans(
    out: str,
    kept: pa.Table,
    cfg: PipelineConfig,
    parameters: dict[str, str],
    encoders: Encoders,
    left_out: Mapping[str, int],
) -> dict[str, pa.Table]:
    """The plans of all generations; a new one is written when ``kept`` has samples that none holds.

    Args:
        kept: with the columns of `identity.attach`.
        left_out: :func:`_left_out`. Samples that every plan so far left out are planned again once their source is there.

    Raises:
        EchoForgeError: the dataset was made with other encoders or settings, or no clip fits any bucket.
    """
    plans = read_plans(out)
    if not plans and dataset.exists(out, INDEX_FILE):
        raise EchoForgeError(f"dataset '{out}' was merged or split from others: give another --out, then merge again.")
    for generation, plan in plans.items():
        made = json.loads((plan.schema.metadata or {}).get(b"parameters", b"{}"))
        if made != parameters:
            differ = ", ".join(sorted(k for k in parameters if made.get(k) != parameters[k]))
            raise EchoForgeError(
                f"dataset '{out}' ({generation}) was made with other settings ({differ}): "
                "use the same configuration, or give another --out."
            )
    known = Counter(sample for plan in plans.values() for sample in plan["sample_id"].to_pylist())
    rows = kept.to_pylist()
    samples = [s for row in rows for s in shard_plan.samples_of(row, cfg.buckets, encoders.digest)]
    if not samples and not plans:
        raise EchoForgeError(
            f"none of the {len(rows)} kept clips fits a bucket: shortest length {min(cfg.buckets.lengths)} frames, "
            f"areas {list(cfg.buckets.areas)}; change buckets.lengths or buckets.areas."
        )
    lost = {sample for sample, times in left_out.items() if times == known[sample]}
    there: dict[tuple[str, str], bool] = {}  # one look per source, not per sample

    def is_back(sample: dict[str, Any]) -> bool:
        source = sample["source_uri"], sample["video_id"]
        if source not in there:
            there[source] = identity.intact(sample)
        return there[source]

    back = {s["sample_id"] for s in samples if s["sample_id"] in lost and is_back(s)}
    new = [s for s in samples if s["sample_id"] not in known or s["sample_id"] in back]
    if new:
        taken = _taken(plans)
        group_of, split_of = shard_plan.split_groups(rows, cfg.shards, taken)
        generation = f"gen-{len(plans):03d}"
        sizes = {sample["bucket"]: _bytes(sample, encoders) for sample in new}
        plan = shard_plan.make_plan(new, group_of, split_of, cfg.shards, generation=generation, bytes_per_sample=sizes)
        plan = plan.replace_schema_metadata({"parameters": json.dumps(parameters)})
        dataset.check_target(out, f"{generation}/plan.parquet")
        parquet.write(storage.join(out, generation, "plan.parquet"), plan)
        plans[generation] = plan
    return plans


def _taken(plans: dict[str, pa.Table]) -> dict[str, str]:
    taken: dict[str, str] = {}
    for plan in plans.values():
        for group, split, text in zip(*(plan[n].to_pylist() for n in ("group", "split", "sample")), strict=True):
            taken.setdefault(group, split)
            taken.setdefault(json.loads(text)["video_id"], split)
    return taken


def _bytes(sample: dict[str, Any], encoders: Encoders) -> int:
    """About how large a sample becomes: two bf16 latents of the video, and the small rest (texts lie elsewhere)."""
    latent = 2 * 16 * (1 + (sample["F"] - 1) // 4) * (sample["H"] // 8) * (sample["W"] // 8)
    return 2 * latent + 2 * encoders.image.tokens * encoders.image.dim + 60_000


def _room(units: list[Unit], done: set[str], encoders: Encoders) -> int:
    """About how many bytes the tars that are missing will take; all samples of a tar are of one bucket."""
    first = {unit.key: (json.loads(unit.payload["samples"][0]), unit.cost) for unit in units
             if unit.id not in done and "samples" in unit.payload}  # fmt: skip
    return round(sum(count * _bytes(sample, encoders) for sample, count in first.values()))


class NothingEncoded(EchoForgeError):
    """No sample of a dataset has been encoded."""


def _nothing_encoded(catalog_dir: str, failed: list[dict[str, Any]], aside: list[Failure]) -> str:
    """One sentence with the first three causes, each with its file."""
    causes = dict.fromkeys(f"{row['source_uri']}: {row['cause'].rstrip('.')}" for row in failed)
    causes |= dict.fromkeys(f"{failure.key}: {failure.cause.rstrip('.')}" for failure in aside)
    shown = "; ".join(list(causes)[:3]) or "no cause is recorded"
    more = f" (and {len(causes) - 3} more)" if len(causes) > 3 else ""
    told = [row["cause"] for row in failed]
    if identity.GONE in told:
        remedy = f"if the videos moved, `catalog relocate {catalog_dir} OLD NEW` names their folders"
    elif not aside and all(cause.startswith(identity.CAUSES) for cause in told):
        remedy = "mend these and run again"
    else:
        remedy = "mend these and give another --out"
    return f"no sample could be encoded: {shown}{more}; {remedy}."


def _units(generation: str, plan: pa.Table, now: Mapping[str, str]) -> list[Unit]:
    """One unit per tar. Its id is that of the plan; ``now`` says where the source of each clip lies today."""

    def moved(text: str) -> str:
        clip, uri = _CLIP.search(text), _SOURCE.search(text)  # a million of these: parsing them takes minutes
        place = now.get(clip[1]) if clip else None
        if place is None or (uri and uri[1] == json.dumps(place, ensure_ascii=False)):
            return text
        return json.dumps(json.loads(text) | {"source_uri": place}, sort_keys=True, ensure_ascii=False)

    groups: dict[str, list[str]] = {}
    for tar, text in zip(plan["tar"].to_pylist(), plan["sample"].to_pylist(), strict=True):
        groups.setdefault(tar, []).append(text)
    return [
        Unit(
            id=unit_id(tar, *texts),
            payload={"tar": tar, "generation": generation, "samples": [moved(text) for text in texts]},
            key=tar,
            cost=float(len(texts)),
            budget_s=BUDGET_PER_SAMPLE_S * (len(texts) + 1),
        )
        for tar, texts in groups.items()
    ]


def _prompts(encoders: Encoders, model: ModelConfig) -> bytes:
    """`prompts.safetensors`: ``null`` and every negative prompt, [L, dim] bf16, once per dataset."""
    import torch

    texts = {"null": "", **model.guidance.prompts}
    rows = encoders.text.encode(list(texts.values()))
    return save({name: row.to(torch.bfloat16).cpu().contiguous() for name, row in zip(texts, rows, strict=True)})


def merged(ledger: Ledger, wanted: set[str], plans: dict[str, pa.Table], encoder: str) -> tuple[pa.Table, list[str]]:
    """The index rows of all finished units, sorted by sample id, and why some of them are left out.

    Raises:
        NothingEncoded: there are none.
    """
    rows = [row for part in ledger.read("samples", wanted=wanted) for row in part.to_pylist()]
    rows, left = texts.join_texts(rows, plans.values(), ledger.read("texts", wanted=wanted), encoder)
    if not rows:
        raise NothingEncoded("no sample could be encoded.")
    return index_table(rows), left


def read_fields(out: str) -> dict[str, pa.Table]:
    """What `shards add` put into side tars: name of the file in the dataset (``fields/*.parquet``) → its table."""
    names = [f"fields/{part.name}" for part in listing.files(storage.join(out, "fields"), ".parquet")]
    return {name: dataset.read_table(out, name, FIELDS) for name in names}


def join_fields(index: pa.Table, *fields: pa.Table) -> pa.Table:
    """Add tensors of side tars (schema :data:`FIELDS`) to the rows of the index."""
    rows = index.to_pylist()
    by_id = {row["sample_id"]: row for row in rows}
    for extra in (extra for table in fields for extra in table.to_pylist()):
        if row := by_id.get(extra["sample_id"]):
            names = {tensor["name"] for tensor in extra["tensors"]}
            row["tensors"] = [t for t in row["tensors"] if t["name"] not in names] + extra["tensors"]
            variants = {grid["variant"] for grid in extra["audio"]}
            row["audio"] = [g for g in row["audio"] or [] if g["variant"] not in variants] + extra["audio"]
    return index_table(rows)


def carried_over(index: pa.Table, out: str) -> pa.Table:
    """Verdict, reason, tier and scores as the index at ``out`` has them, where there is one.

    The ledger knows them only as they were when a sample was encoded; what later runs, perhaps with other catalogs,
    found out about it is in the index.
    """
    if not dataset.exists(out, INDEX_FILE):
        return index
    names = ["reason", *(name for name in shard_plan.CARRIED if name != "speaker")]
    old = read_index(out, unfinished=CONTINUES)
    before = {row["sample_id"]: row for row in old.select(["sample_id", *names]).to_pylist()}
    return _replaced(index, "sample_id", before, names)


def _replaced(index: pa.Table, key: str, by: Mapping[str, Mapping[str, Any]], names: list[str]) -> pa.Table:
    """``index`` with the columns ``names`` taken from ``by``, where it has the row's ``key``."""
    keys = index[key].to_pylist()
    for name in names:
        old, field = index[name].to_pylist(), INDEX.field(name)
        values = [by[k][name] if k in by else v for k, v in zip(keys, old, strict=True)]
        index = index.set_column(index.schema.get_field_index(name), field, pa.array(values, field.type))
    return index


def refresh(index: pa.Table, clips: pa.Table) -> pa.Table:
    """Verdict, tier and scores as the catalog has them now; samples whose clip is gone keep theirs."""
    names = [name for name in shard_plan.CARRIED if name != "speaker"]
    now: dict[str, dict[str, Any]] = {}
    for row in clips.select(["clip_id", *names]).to_pylist():
        if row["verdict"] == "keep" or row["clip_id"] not in now:  # a file under two names: one of its rows is kept
            now[row["clip_id"]] = row
    return _replaced(index, "clip_id", now, names)


def publish(
    out: str,
    table: pa.Table,
    config: Settings,
    facts: dict[str, Any],
    causes: list[str],
    *,
    prompts: bytes,
    tars: Mapping[str, FileDigest],
    encoded_now: int = 0,
) -> ShardSummary:
    """:func:`write_index`, and the summary of the run."""
    settings = {name: strict.to_dict(getattr(config.pipeline, name)) for name in ("buckets", "encode", "shards")}
    description = {
        **facts,
        "settings": settings,
        "transforms": "25 fps, RGB scaled to −1..1; sound 16 kHz mono, moved by offset_samples; "
        "latents are the codec's posterior mean, normalised, bf16",
        "left_out": causes,
    }
    totals = write_index(out, table, description, {PROMPTS_FILE: prompts}, tars, "shard")
    return ShardSummary(
        dataset=out,
        samples=table.num_rows,
        hours=totals["hours"],
        by_split=totals["samples_by_split"],
        by_bucket=totals["samples_by_bucket"],
        tars=totals["tars"],
        bytes=totals["bytes"],
        encoded_now=encoded_now,
        failed=causes,
    )


def write_index(
    out: str,
    table: pa.Table,
    description: dict[str, Any],
    files: Mapping[str, bytes],
    tars: Mapping[str, FileDigest],
    command: str,
) -> dict[str, Any]:
    """Replace the small files of a dataset: `dataset.json`, the card, ``files`` and the index (`dataset.replace`).

    Args:
        description: content of `dataset.json` but for totals and versions.
        files: others, by name.
        tars: digests of tars that were made or copied now.
        command: what continues this when it is interrupted.

    Returns:
        Totals.
    """
    totals = stats_of(table)
    whole = {**description, "schema_version": SCHEMA_VERSION, "made_by": code_version(), "totals": totals}
    text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False)
    contents = {
        **files,
        DATASET_FILE: text.encode("utf-8", "backslashreplace"),  # a lone surrogate becomes its JSON escape
        card.SHEET_FILE: card.contact_sheet(out, table),
        CARD_FILE: card.dataset_card(table, whole).encode("utf-8", "backslashreplace"),
        INDEX_FILE: dataset.table_bytes(table),
    }
    named = dataset.tars_of(table)
    keep = [*named, *(f"{generation}/plan.parquet" for generation in description["plans"])]
    keep += [f"fields/{part.name}" for part in listing.files(storage.join(out, "fields"), ".parquet")]
    keep += [PROMPTS_FILE]
    known = {tar: digest for tar, digest in tars.items() if tar in named}
    dataset.replace(out, contents, known, [name for name in keep if name not in contents], command)
    return totals
