"""Negatives: let a checkpoint generate under held-out conditions, measure the results, flag the suspicious ones.

Conditions come from the split `negatives` of the dataset, which nothing trains on. A unit of work is a batch of videos;
it runs through the same engine as curation and sharding, so a killed gathering continues. Measures are compared with
those of the real videos after the same codec, so the codec's own blur is not held against a sample.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from configs import folders, strict
from configs.dataset_schema import NEGATIVES
from configs.errors import EchoForgeError
from configs.paths import absolute, absolute_files
from configs.runtime import disk
from configs.schema import Config
from evaluation import defects as judge
from evaluation import versions
from pipeline.engine import lease, runner
from pipeline.engine.damage import mend
from pipeline.engine.ledger import Ledger
from pipeline.engine.progress import Progress, say
from pipeline.engine.unit import Unit, unit_id
from train import rng, stages
from train.checkpoints import retention
from train.data import negatives
from train.data.index import SampleIndex, open_index
from workflows.gather_worker import REAL, SPLIT, GatherJob, GatherWorker, pairs
from workflows.networks import check_network

GENERATING_TASKS = ("i2v", "lip_sync", "avatar_sync")
_TABLES = {"samples": NEGATIVES, "real": REAL}


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
    parameters = settings | {"checkpoint": step.name} | versions.parameter(versions.SAMPLES, judge.VERSION)
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
    wanted = {unit.id for unit in units}
    made, real = (
        pa.concat_tables([schema.empty_table(), *ledger.read(name, wanted=wanted)]) for name, schema in _TABLES.items()
    )
    return _publish(folder, _flagged(made, real, config, index.digest))


def _last_checkpoint(run: Path) -> str:
    last = retention.latest(run)
    return f"the last one in '{run}' is {last.name}" if last else f"'{run}' has none: {folders.found(run, 'run')}"


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


def _units(index: SampleIndex, stage: stages.Stage, config: Config, count: int) -> list[Unit[GatherJob]]:
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
            rows, seeds = tuple(r for r, _ in part), tuple(s for _, s in part)
            job = GatherJob(rows, tuple(ids[r] for r in rows), seeds, task)
            units.append(Unit(unit_id(stage.name, task, *job.ids, *seeds), job, key=f"{task} {job.ids[0]}",
                              cost=float(len(part)), budget_s=3600.0))  # fmt: skip
    return units


def _flagged(made: pa.Table, real: pa.Table, config: Config, digest: str) -> pa.Table:
    """The rows of all samples with their place among the real ones and their flags, by id."""
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for name, measured in zip(real["sample_id"].to_pylist(), _measures(real), strict=True):
        for measure, value in measured.items():
            values[measure][name] = value
    known = {name: list(by_sample.values()) for name, by_sample in values.items()}
    cfg = config.pipeline.gather
    scores = _measures(made)
    flags = [[vars(flag) for flag in judge.flag(found, known, cfg.quantile, cfg.margin)] for found in scores]
    for column, content in (
        ("dataset_digest", [digest] * made.num_rows),
        ("real_quantiles", pairs([judge.real_quantiles(found, known) for found in scores])),
        ("flags", flags),
    ):
        field = NEGATIVES.field(column)
        made = made.set_column(NEGATIVES.get_field_index(column), field, pa.array(content, field.type))
    return made.sort_by("negative_id").combine_chunks()


def _publish(folder: Path, rows: pa.Table) -> GatherSummary:
    with disk.replacing(folder / negatives.SAMPLES_FILE) as part:
        pq.write_table(versions.stamped(rows, versions.SAMPLES, judge.VERSION), part)
    flags = rows["flags"].to_pylist()
    issues = Counter(flag["issue"] for found in flags for flag in found)
    return GatherSummary(folder, rows.num_rows, sum(map(bool, flags)), dict(issues))


def _measures(rows: pa.Table) -> list[dict[str, float]]:
    return [{pair["name"]: pair["value"] for pair in pairs} for pairs in rows["scores"].to_pylist()]
