"""Negatives: let a checkpoint generate under held-out conditions, measure the results, flag the suspicious ones.

Conditions come from the split `negatives` of the dataset, which nothing trains on. A unit of work is a batch of videos;
it runs through the same engine as curation and sharding, so a killed gathering continues. Measures are compared with
those of the real videos after the same codec, so the codec's own blur is not held against a sample.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save

from configs import aliases, folders, strict
from configs.dataset_schema import NEGATIVES
from configs.errors import EchoForgeError
from configs.paths import absolute, absolute_files
from configs.runtime import disk
from configs.runtime.devices import usable
from configs.schema import Config
from curation.media.clip_writer import write_video
from evaluation import defects as judge
from evaluation import versions
from model import pixels
from model.codecs import load_codec
from model.sampler import SamplerInputs, sample
from pipeline import storage
from pipeline.dataset import files as dataset_files
from pipeline.engine import lease, runner
from pipeline.engine.damage import mend
from pipeline.engine.ledger import Ledger
from pipeline.engine.progress import Progress, say
from pipeline.engine.rows import tables as as_tables
from pipeline.engine.unit import Result, Unit, unit_id
from train import rng, stages
from train.checkpoints import loading, retention
from train.data import inputs, negatives
from train.data.index import open_index
from train.data.loader import Loader
from train.state import Weights
from workflows.networks import autocast_for, check_network, load_network

SPLIT = "negatives"
GENERATING_TASKS = ("i2v", "lip_sync", "avatar_sync")
_REAL = pa.schema([("sample_id", pa.string()), ("scores", NEGATIVES.field("scores").type)])
_TABLES = {"samples": NEGATIVES, "real": _REAL}


@dataclass(frozen=True)
class GatherSummary:
    """What was gathered."""

    folder: Path
    samples: int
    flagged: int
    by_issue: dict[str, int]

    def __str__(self) -> str:
        issues = ", ".join(f"{n} {issue}" for issue, n in sorted(self.by_issue.items())) or "none"
        return f"{self.folder}: {self.samples} samples gathered, {self.flagged} flagged ({issues})"


class GatherWorker:
    """Generates and measures. Built once per process: network, codec and index load once."""

    def __init__(self, config: Config, dataset: str, step: Path, stage: str, weights: Weights, folder: Path) -> None:
        self.config, self.dataset, self.step, self.stage, self.weights = config, dataset, step, stage, weights
        self.folder, self.device = folder, config.pipeline.gather.device
        usable(self.device, "gather.device", "gather.share.gpus=0")
        self.network = load_network(step, config.model.transformer, self.device, weights)
        self.codec = load_codec(config.model.codec, self.device)
        self.index = open_index(dataset, split=SPLIT, keep=config.train.loader.keep)
        self.prompts = inputs.read_prompts(dataset)
        self.digest = loading.digest(step, weights) if retention.is_pinned(step) else ""

    def run(self, payload: dict[str, Any]) -> Result:
        """``payload``: ``rows`` (of the negatives split), ``seeds``, ``task``."""
        config, task = self.config, payload["task"]
        count = len(payload["rows"])
        chosen = _subset(self.index, payload["rows"])
        with Loader(
            self.dataset,
            config.train.loader,
            seed=0,
            global_batch=count,
            tasks=[task],
            once=True,
            pin=False,
            index=chosen,
        ) as source:
            batch = next(source)
        given = inputs.assemble(
            batch, [inputs.Keep()] * count, self.prompts, config.train.tasks,
            text_len=config.model.transformer.text_len, variant=config.model.transformer.variant,
            tasks=[task] * count,
        )  # fmt: skip
        order = [payload["ids"].index(name) for name in batch.sample_ids]
        seeds = [payload["seeds"][i] for i in order]
        latents = sample(
            self.network, sampler_inputs(given, self.prompts, batch.tokens_per_frame), config.model.sampler,
            config.model.guidance, config.model.phda, seeds=seeds, device=self.device,
            autocast=autocast_for(self.device),
        ).cpu()  # fmt: skip
        videos, real = self._pixels(latents), self._pixels(given.real)
        rows, known = [], []
        captions = _captions(chosen, batch.sample_ids)
        for k, name in enumerate(batch.sample_ids):
            boxes = batch["face_boxes"][k].numpy() if "face_boxes" in batch else None
            rows.append(self._row(name, seeds[k], task, captions[name], videos[k], real[k], boxes, latents[k]))
            known.append({"sample_id": name, "scores": _pairs(judge.measure(real[k], real[k][0], boxes))})
        return Result(as_tables({"samples": rows, "real": known}, _TABLES), amount=count * batch.frames / 25)

    def _pixels(self, latents: torch.Tensor) -> np.ndarray:
        """uint8 [B, F, H, W, 3]."""
        with torch.inference_mode():
            return pixels.to_bytes(self.codec.decode(latents.to(self.device).float()))

    def _row(
        self, name: str, seed: int, task: str, caption: str, video: np.ndarray, real: np.ndarray,
        boxes: np.ndarray | None, latents: torch.Tensor,
    ) -> dict[str, Any]:  # fmt: skip
        model = self.config.model
        sections = {key: strict.to_dict(getattr(model, key)) for key in ("sampler", "guidance")}
        settings = {key: json.dumps(value, sort_keys=True) for key, value in sections.items()}
        first = [json.dumps(aliases.as_first_named(v, key), sort_keys=True) for key, v in sections.items()]
        ident = unit_id(self.digest, self.stage, name, task, seed, *first)[:16]
        storage.write_bytes(str(self.folder / "latents" / f"{ident}.safetensors"), save({"latents": latents.float()}))
        write_video(self.folder / "videos" / f"{ident}.mp4", video, None)
        return {
            "negative_id": ident,
            "stage": self.stage,
            "step": int(self.step.name.removeprefix("step-")),
            "checkpoint_digest": self.digest,
            "weights": self.weights,
            "sample_id": name,
            "dataset_digest": "",
            "task": task,
            "prompt": caption,
            "prompt_hash": strict.digest(caption),
            "audio_source": name,
            "seed": seed,
            **settings,
            "phda": model.phda.schedule,
            "scores": _pairs(judge.measure(video, real[0], boxes)),
            "real_quantiles": [],
            "flags": [],
            "thumbnail": _strip(video),
            "video_path": f"videos/{ident}.mp4",
            "latents_path": f"latents/{ident}.safetensors",
        }


def gather(
    run: Path,
    dataset: str,
    stage: str | None,
    config: Config,
    *,
    inline: bool = False,
    ray_address: str | None = None,
    samples: int | None = None,
) -> GatherSummary:
    """Generate, measure and flag the samples of a `negatives` stage; ``samples.parquet`` appears last and whole.

    Args:
        stage: a `negatives` stage of ``config``; None: the first one that is not gathered yet.
        samples: how many; default what the stage says.

    Raises:
        EchoForgeError: no such stage, no checkpoint for it, or no sample of split `negatives`.
    """
    chosen = _stage(run, stage, config)
    step = next((p for p in retention.committed(run) if p.name == f"step-{chosen.first:06d}"), None)
    if step is None:
        raise EchoForgeError(
            f"stage '{chosen.name}' needs the checkpoint of step {chosen.first}, and {_last_checkpoint(run)}; train first."
        )
    folder = negatives.folder(run, chosen.name)
    with lease.locked(str(folder), "negatives folder", "negatives gather"):
        return _gather(folder, dataset, chosen, step, config, inline, ray_address, samples)


def _gather(
    folder: Path,
    dataset: str,
    chosen: stages.Stage,
    step: Path,
    config: Config,
    inline: bool,
    ray_address: str | None,
    samples: int | None,
) -> GatherSummary:
    """:func:`gather` with the folder of the stage locked."""
    check_network(step, config)
    index = open_index(dataset, split=SPLIT, keep=config.train.loader.keep)
    units = _units(index, chosen, config, samples or chosen.cfg.samples)
    folders.check_out_folder(folder)
    for name in ("latents", "videos"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {key: strict.digest(getattr(config.model, key), key) for key in ("sampler", "guidance", "phda")}
    parameters = settings | {"checkpoint": step.name} | versions.parameter(judge.VERSION)
    ledger = Ledger(str(folder / "ledger"), _TABLES, parameters)
    mend(ledger.root, ledger.tables, say)
    make = functools.partial(
        GatherWorker, absolute_files(config), absolute(dataset), step.absolute(), chosen.name, chosen.cfg.weights,
        folder.absolute(),
    )  # fmt: skip
    cfg = config.pipeline
    outcome = runner.run(
        units, make, ledger, cfg.gather.share, cfg.execution, inline=inline, ray_address=ray_address,
        watcher=Progress("negatives", "batches", str(folder / "status.json")),
    )  # fmt: skip
    if outcome.quarantined:
        raise EchoForgeError(
            f"{len(outcome.quarantined)} batches could not be gathered: {outcome.quarantined[0].cause}"
        )
    rows = [row for part in ledger.read("samples", wanted={u.id for u in units}) for row in part.to_pylist()]
    real = [row for part in ledger.read("real", wanted={u.id for u in units}) for row in part.to_pylist()]
    return _publish(folder, _flagged(rows, real, config, index.digest))


def _last_checkpoint(run: Path) -> str:
    last = retention.latest(run)
    return f"the last one in '{run}' is {last.name}" if last else f"'{run}' has none: {folders.found(run, 'run')}"


def sampler_inputs(given: inputs.Inputs, prompts: Mapping[str, torch.Tensor], tokens_per_frame: float) -> SamplerInputs:
    """What training assembles, as the sampler takes it; the prompts beside ``null`` are the negative ones."""
    return SamplerInputs(
        cond=given.cond, text=given.text, negatives={k: v for k, v in prompts.items() if k != "null"},
        image=given.image, audio=given.audio, audio_valid=given.audio_valid, audio_frame0=given.audio_frame0,
        tokens_per_frame=round(tokens_per_frame), face_mask=given.face_mask,
    )  # fmt: skip


def _stage(run: Path, name: str | None, config: Config) -> stages.Stage:
    planned = [s for s in stages.plan(config.train) if s.cfg.kind == "negatives"]
    for stage in planned:
        if stage.name == name or (name is None and not negatives.gathered(run, stage.name)):
            return stage
    known = ", ".join(s.name for s in planned) or "none"
    if name is None and planned:
        raise EchoForgeError(f"all negatives stages of '{run}' are gathered ({known}); review them, or train on.")
    what = "no negatives stage" if name is None else f"no negatives stage '{name}'"
    raise EchoForgeError(f"{what} in the configuration; its stages: {known}.")


def _units(index: Any, stage: stages.Stage, config: Config, count: int) -> list[Unit]:
    """``count`` videos: the split's samples in turn, each time with a new seed, grouped by bucket and task."""
    mix = {task: w for task, w in stages.mix_of(stage.cfg, config.train.tasks).items() if task in GENERATING_TASKS}
    if not mix:
        raise EchoForgeError(
            f"the task mix of stage '{stage.name}' has none of {', '.join(GENERATING_TASKS)} to generate."
        )
    ids = index.sample_ids(range(len(index)))
    buckets = {int(row): bucket for bucket, rows in index.members.items() for row in rows}
    groups: dict[tuple[str, str, int], list[tuple[int, int]]] = defaultdict(list)
    for number in range(count):
        row, turn = number % len(ids), number // len(ids)
        task = rng.choice(mix, config.seed, ids[row], turn, "gather task")
        seed = int(rng.uniform(config.seed, ids[row], turn, stage.name) * 2**48)
        groups[buckets[row], task, turn].append((row, seed))
    size = config.pipeline.gather.batch
    units = []
    for (_, task, _), members in sorted(groups.items()):
        for i in range(0, len(members), size):
            part = members[i : i + size]
            rows, seeds = [r for r, _ in part], [s for _, s in part]
            payload = {"rows": rows, "ids": [ids[r] for r in rows], "seeds": seeds, "task": task}
            units.append(Unit(unit_id(stage.name, task, *payload["ids"], *seeds), payload, key=f"{task} {ids[rows[0]]}",
                              cost=float(len(part)), budget_s=3600.0))  # fmt: skip
    return units


def _subset(index: Any, rows: list[int]) -> Any:
    """The same index with only the given rows."""
    from dataclasses import replace

    table = index.table.take(pa.array(rows))
    buckets = np.asarray(table["bucket"].to_pylist())
    return replace(index, table=table, members={str(b): np.flatnonzero(buckets == b) for b in sorted(set(buckets))})


def _captions(index: Any, ids: tuple[str, ...]) -> dict[str, str]:
    """The main caption of each sample, read from its tar member."""
    rows = {row["sample_id"]: row for row in index.table.select(["sample_id", "members"]).to_pylist()}
    found = {}
    for name in ids:
        member = next((m for m in rows[name]["members"] or [] if m["ext"] == "txt"), None)
        if member is None:
            raise EchoForgeError(f"sample {name} of '{index.root}' has no caption; run `shards verify` on the dataset.")
        try:
            found[name] = dataset_files.read_member(index.root, member).decode()
        except UnicodeDecodeError as error:
            raise EchoForgeError(f"the caption of sample {name} of '{index.root}' is not UTF-8 text.") from error
    return found


def _flagged(
    rows: list[dict[str, Any]], real: list[dict[str, Any]], config: Config, digest: str
) -> list[dict[str, Any]]:
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for row in real:
        for pair in row["scores"]:
            values[pair["name"]][row["sample_id"]] = pair["value"]
    known = {name: list(by_sample.values()) for name, by_sample in values.items()}
    cfg = config.pipeline.gather
    for row in rows:
        scores = {pair["name"]: pair["value"] for pair in row["scores"]}
        row["dataset_digest"] = digest
        row["real_quantiles"] = _pairs(judge.real_quantiles(scores, known))
        row["flags"] = [vars(flag) for flag in judge.flag(scores, known, cfg.quantile, cfg.margin)]
    return sorted(rows, key=lambda row: str(row["negative_id"]))


def _publish(folder: Path, rows: list[dict[str, Any]]) -> GatherSummary:
    with disk.replacing(folder / negatives.SAMPLES_FILE) as part:
        pq.write_table(versions.stamped(pa.Table.from_pylist(rows, schema=NEGATIVES), judge.VERSION), part)
    issues: dict[str, int] = defaultdict(int)
    for row in rows:
        for flag in row["flags"]:
            issues[flag["issue"]] += 1
    return GatherSummary(folder, len(rows), sum(bool(row["flags"]) for row in rows), dict(issues))


def _pairs(values: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "value": float(value)} for name, value in values.items()]


def _strip(video: np.ndarray, count: int = 8) -> bytes:
    import cv2

    picks = video[np.linspace(0, len(video) - 1, min(count, len(video))).round().astype(int)]
    strip = cv2.cvtColor(np.concatenate(list(picks), axis=1), cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", strip, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])
