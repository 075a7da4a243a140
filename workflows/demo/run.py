"""The whole loop on a puppet world, offline: puppets → curate → shard → train → negatives → NDPO → generate → one page.

What it shows is that the loop works and that its outcome can be measured. The puppets are drawn, the encoders are
weight-free stand-ins and the network starts from random weights, so nothing here says anything of a real model.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from configs import reviews
from configs.dataset_schema import INDEX_FILE
from configs.errors import EchoForgeError
from configs.folders import check_out
from configs.runtime import stopping
from configs.runtime.console import Terminal
from configs.schema import Config
from curation import puppets
from curation.media.clip_reader import read_clip
from curation.puppets import measure
from curation.review import tables
from curation.schema import VIDEOS
from curation.sync.fit import fit_from_clips
from curation.sync.gather import puppet_clip
from pipeline.catalog.curate import CurateSummary, curate
from pipeline.catalog.tables import read as read_catalog
from pipeline.dataset.shard import shard
from pipeline.engine import lease
from pipeline.engine.progress import Progress
from train import stages
from train.data import negatives
from train.log import METRICS_FILE, of_kind, read_metrics
from workflows.cycle import run_cycle
from workflows.demo.page import Check, Curve, DemoPage, Generated, Source, jpeg_uri, strip, write
from workflows.generate import generate

PUPPETS = 220  # enough people that a network of 6 M parameters copies the face it is given instead of remembering one
FITTING = 48  # puppets that only the small SyncNet sees
FITTING_SEED = 1_000_003  # another world than the demo's corpus
LOSS_BAR = 0.6  # held-out loss at the end over its start
PICTURES = 4  # puppets of the training split that are animated from their first frame
DUBBED = 2  # held-out puppets that get another one's voice

STATEMENT = (
    "A puppet world: the people are drawn, the voices synthesised. Latents come from a weight-free 3-D DCT, captions, "
    "pictures and sounds from weight-free stand-ins, and the small network starts from random weights. The loop around "
    "them is the real one. Blurry by construction; no measure of what a real model can do."
)


@dataclass(frozen=True)
class DemoSummary:
    """What the demo made and measured."""

    page: Path
    checks: list[Check]
    timings: list[tuple[str, float]]

    @property
    def passed(self) -> bool:
        """Did every measured bar hold?"""
        return all(check.passed for check in self.checks)

    def __rich__(self) -> Table:
        table = Table(title="EchoForge demo: a puppet world with weight-free encoders", title_justify="left")
        for name in ("measured", "value", "bar", ""):
            table.add_column(name)
        for check in self.checks:
            table.add_row(
                check.name, check.value, check.bar, Text("ok", "green") if check.passed else Text("missed", "red")
            )
        minutes = sum(seconds for _, seconds in self.timings) / 60
        table.caption = f"{minutes:.1f} minutes. Open {self.page}"
        table.caption_justify = "left"
        return table


class _Clock:
    """Says what is being done and remembers how long it took."""

    def __init__(self, console: Terminal) -> None:
        self.console, self.timings = console, list[tuple[str, float]]()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        stopping.check()
        self.console.rule(Text(what, "bold"), align="left")
        started = time.monotonic()
        yield
        self.timings.append((what, time.monotonic() - started))


def run_demo(out: Path, config: Config, *, puppets: int | None = None) -> DemoSummary:
    """Run everything into ``out`` and write ``out/index.html``. Run again, it continues where it stopped.

    Raises:
        EchoForgeError: the preset is not one that works on puppets.
    """
    if config.model.codec.kind != "dct":
        raise EchoForgeError("demo shows the puppet world and needs the tiny preset; leave --preset out.")
    check_out(out, "demo")
    with lease.locked(str(out), "demo", "demo"):
        return _demo(out, config, puppets)


def _demo(out: Path, config: Config, puppets: int | None) -> DemoSummary:
    """:func:`run_demo` with its folder locked."""
    clock = _Clock(Terminal(stderr=True))
    videos, run = out / "videos", out / "run"
    dataset, catalog = str(out / "dataset"), str(out / "catalog")
    out.mkdir(parents=True, exist_ok=True)
    with clock("puppets: draw them, break some"):
        truth = _puppets(videos, puppets or PUPPETS, config)
    with clock("sync: fit a small SyncNet on other puppets"):
        config, card = _fitted(out / "sync.safetensors", config)
    with clock("curate: what is a good clip, and why not"):
        curated = curate([str(videos)], catalog, config)
        clock.console.print(curated.outcome())
    with clock("shard: latents, text, sound, masks in tars"):
        made = shard(catalog, dataset, config, watcher=Progress("shard", "tars"))
        clock.console.print(str(made))
    with clock("train: SFT, negatives, NDPO"):
        trained = run_cycle(dataset, run, config)
        clock.console.print(str(trained))
    if trained.outcome.status != "finished":  # a signal: its pictures would be taken for the demo's result
        raise EchoForgeError(
            "the training was stopped; run the same command again, it goes on from its last checkpoint."
        )
    with clock("generate: pictures that speak, a video with another voice"):
        generated, measured = _generate(out, run, dataset, catalog, truth, config)
    losses = of_kind(read_metrics(run / METRICS_FILE), "validation")
    checks = [_loss_check(losses), *_video_checks(measured)]
    page = out / "index.html"
    write(_page(out, config, curated, card, truth, generated, checks, clock.timings), page)
    return DemoSummary(page, checks, clock.timings)


def _puppets(folder: Path, count: int, config: Config) -> dict[str, dict[str, Any]]:
    """File name → its row of the generator's manifest."""
    rows = puppets.read_manifest(folder) if (folder / "manifest.parquet").is_file() else []
    if len(rows) != count:
        rows = puppets.make(folder, count, config.seed, config.curation.puppets)
    return {row["file"]: row for row in rows}


def _fitted(path: Path, config: Config) -> tuple[Config, dict[str, Any]]:
    """The configuration with a SyncNet fitted on puppets of another seed, and that file's card."""
    if not path.is_file():
        cfg = config.curation.puppets
        clips = (puppet_clip(f"fit-{i}", puppets.sample(FITTING_SEED + config.seed, i, cfg)) for i in range(FITTING))
        fit_from_clips(clips, path, config.curation.sync, domain="puppets of the procedural corpus", seed=config.seed)
    from curation.sync import load_backend

    sync = replace(config.curation.sync, backend="fitted", fitted=str(path))
    backend: Any = load_backend(sync)
    return replace(config, curation=replace(config.curation, sync=sync)), backend.card


@dataclass(frozen=True)
class _Measured:
    """One generated video against the truth."""

    task: str
    own: float  # correlation of the mouth with its own sound's truth
    others: float  # mean correlation with other puppets' truth
    nearest_is_reference: bool


def _generate(
    out: Path, run: Path, dataset: str, catalog: str, truth: dict[str, dict[str, Any]], config: Config
) -> tuple[list[Generated], list[_Measured]]:
    """Animate puppets that training saw with voices that it never heard; dub held-out puppets with another one's voice.

    A network that trained for minutes on two hundred puppets cannot be asked for faces that it never saw: of held-out
    puppets it generates the mouth alone.
    """
    held = _clean(dataset, catalog, truth, ("test", "val", "negatives"))
    seen = _clean(dataset, catalog, truth, ("train",))
    if len(held) < 2:
        raise EchoForgeError("fewer than two clean held-out puppets; make more with --puppets.")
    length = max(config.pipeline.buckets.lengths)
    corpus = _corpus(truth, out / "videos", length, config)
    folder = out / "generated"
    folder.mkdir(exist_ok=True)
    cards: list[Generated] = []
    measured: list[_Measured] = []
    jobs = [("i2v", name, held[i % len(held)]) for i, name in enumerate(seen[:PICTURES])]
    jobs += [("lip_sync", name, held[(i + 1) % len(held)]) for i, name in enumerate(held[-DUBBED:])]
    for number, (task, person, voice) in enumerate(jobs):
        source, target = out / "videos" / person, folder / f"{task}-{Path(person).stem}.mp4"
        generate(
            run, config, audio=out / "videos" / voice, out=target, image=source, video=source, task=task,
            prompt=truth[person]["caption"], seconds=length / 25, seed=config.seed + number,
        )  # fmt: skip
        made = read_clip(str(target), 0, length, width=corpus[person].shape[2], height=corpus[person].shape[1]).frames
        measured.append(_measure(task, made, person, voice, truth, corpus))
        if task not in [card.title.split(":")[0] for card in cards]:
            cards.append(_card(task, person, voice, target, out, made, corpus[person], measured[-1]))
    return cards, measured


def _clean(dataset: str, catalog: str, truth: dict[str, dict[str, Any]], splits: Sequence[str]) -> list[str]:
    """Clean puppets of the given splits, in their order."""
    index = pq.read_table(Path(dataset) / INDEX_FILE, columns=["video_id", "split"]).to_pandas()
    names = read_catalog(catalog, "videos", VIDEOS, ["video_id", "source_uri"]).to_pandas()
    names["file"] = names["source_uri"].map(lambda uri: Path(uri).name)
    joined = index.drop_duplicates("video_id").merge(names, on="video_id")
    chosen = [
        str(file)
        for split in splits
        for file in sorted(joined[joined["split"] == split]["file"])
        if file in truth and not truth[file]["fault"]
    ]
    return list(dict.fromkeys(chosen))


def _corpus(truth: dict[str, dict[str, Any]], videos: Path, length: int, config: Config) -> dict[str, np.ndarray]:
    """First frames of every puppet that is long enough and whole, at the bucket's size."""
    size = config.curation.puppets.size
    broken = ("truncated", "damaged")
    return {
        name: read_clip(str(videos / name), 0, length, width=size, height=size).frames
        for name, row in truth.items()
        if row["frames"] >= length and row["fault"] not in broken
    }


def _measure(
    task: str,
    made: np.ndarray,
    person: str,
    voice: str,
    truth: dict[str, dict[str, Any]],
    corpus: dict[str, np.ndarray],
) -> _Measured:
    count = len(made)
    boxes = np.asarray(truth[person]["mouth_boxes"], np.float32)[:count]

    def follows(name: str) -> float:
        return measure.follows(made, boxes, np.asarray(truth[name]["mouth_px"], np.float32)[:count])

    others = [follows(n) for n, row in truth.items() if n not in (person, voice) and n in corpus and not row["fault"]]
    distance = {
        n: float(np.abs(made.astype(np.int16) - frames.astype(np.int16)).mean()) for n, frames in corpus.items()
    }
    best = min(distance, key=lambda n: distance[n])
    same = {person, *(n for n, row in truth.items() if row["duplicate_of"] == truth[person]["name"])}
    return _Measured(task, follows(voice), float(np.nanmean(others)), best in same)


def _card(
    task: str, person: str, voice: str, target: Path, out: Path, made: np.ndarray, real: np.ndarray, found: _Measured
) -> Generated:
    title = {"i2v": "i2v: a picture that speaks", "lip_sync": "lip_sync: another voice for a video"}[task]
    given = (
        f"the first frame of a puppet that training saw, and the sound of {voice}, which it never heard"
        if task == "i2v"
        else f"everything but the mouth of a held-out puppet, and the sound of {voice}"
    )
    return Generated(
        title,
        target.relative_to(out).as_posix(),
        f"videos/{person}",
        strip(made),
        strip(real),
        [
            f"given: {given}",
            f"mouth follows its sound with r = {found.own:.2f}; other puppets' sounds: {found.others:.2f} on average",
            "the nearest puppet is its own reference"
            if found.nearest_is_reference
            else "the nearest puppet is another one",
        ],
    )


def _loss_check(losses: list[dict[str, Any]]) -> Check:
    if not losses:
        return Check("held-out loss, end / start", "not measured", f"≤ {LOSS_BAR}", False)
    first, last = float(losses[0]["loss_ema"]), float(losses[-1]["loss_ema"])
    return Check(
        "held-out loss, end / start",
        f"{last / first:.2f} ({first:.3f} → {last:.3f})",
        f"≤ {LOSS_BAR}",
        last / first <= LOSS_BAR,
    )


def _video_checks(measured: list[_Measured]) -> list[Check]:
    near = sum(m.nearest_is_reference for m in measured)
    own, others = float(np.nanmean([m.own for m in measured])), float(np.nanmean([m.others for m in measured]))
    return [
        Check(
            "nearest of all puppets is the own reference",
            f"{near} of {len(measured)} videos",
            "all",
            near == len(measured),
        ),
        Check("mouth follows its sound (mean r)", f"{own:.2f}, shuffled {others:.2f}", "above shuffled", own > others),
    ]


def _page(
    out: Path, config: Config, curated: CurateSummary, card: dict[str, Any], truth: dict[str, dict[str, Any]],
    generated: list[Generated], checks: list[Check], timings: list[tuple[str, float]],
) -> DemoPage:  # fmt: skip
    lines = read_metrics(out / "run" / METRICS_FILE)
    training, held = of_kind(lines, "step"), of_kind(lines, "validation")
    curves = [
        Curve("training", [x["step"] for x in training], [x["loss"] for x in training]),
        Curve("held out", [x["step"] for x in held], [x["loss"] for x in held]),
        Curve("held out, average of weights", [x["step"] for x in held], [x["loss_ema"] for x in held]),
    ]
    planned = stages.plan(config.train)
    rows = _negative_rows(out / "run", [s for s in planned if s.cfg.kind == "negatives"])
    hours = curated.hours
    total = sum(curated.clips.values())
    funnel = [("files", sum(curated.videos.values()), 0.0), ("clips", total, sum(hours.values()))]
    funnel += [(verdict, curated.clips[verdict], hours.get(verdict, 0.0)) for verdict in ("keep", "hold", "reject")
               if curated.clips.get(verdict)]  # fmt: skip
    folders = (negatives.folder(Path("run"), s.name) for s in planned if s.cfg.kind == "negatives")
    folder = next(folders, Path("run") / negatives.FOLDER)
    return DemoPage(
        title="EchoForge: the whole loop on a puppet world",
        statement=STATEMENT,
        checks=checks,
        funnel=funnel,
        sources=_sources(out, truth),
        curves=curves,
        stages=[(s.name, s.first) for s in planned if s.cfg.kind != "negatives"],
        negatives=rows,
        generated=generated,
        timings=timings,
        facts={
            "negatives": f"{folder}/samples.parquet",
            "fitted SyncNet": ", ".join(f"{k} {v}" for k, v in card.items() if isinstance(v, (int, float, str)))[:300],
            "verdicts": ", ".join(f"{n} {v}" for v, n in Counter(curated.clips).items()),
        },
    )


def _sources(out: Path, truth: dict[str, dict[str, Any]]) -> list[Source]:
    columns = ["source_uri", "verdict", "reasons"]
    rows = read_catalog(str(out / "catalog"), "videos", VIDEOS, columns).to_pandas()
    found = []
    for row in rows.sort_values("source_uri").to_dict("records"):
        path = Path(row["source_uri"])
        if path.name in truth:
            reasons = [str(reason) for reason in row["reasons"]][:2]
            found.append(Source(path.stem, _thumbnail(path), truth[path.name]["fault"] or "", row["verdict"], reasons))
    return found


def _thumbnail(path: Path) -> str:
    try:
        return jpeg_uri(read_clip(str(path), 5, 6, width=96, height=96).frames[0])
    except EchoForgeError:
        return ""  # a damaged file has no picture


def _negative_rows(run: Path, planned: list[stages.Stage]) -> list[dict[str, Any]]:
    import base64

    rows: list[dict[str, Any]] = []
    for stage in planned:
        folder = negatives.folder(run, stage.name)
        if not (folder / negatives.SAMPLES_FILE).is_file():
            continue
        gathered = tables.samples(folder)
        judged = reviews.judgements(gathered, reviews.read(folder), accept_flags=True)
        for row in gathered.to_pylist():
            rows.append(
                {
                    "strip": "data:image/jpeg;base64," + base64.b64encode(row["thumbnail"]).decode(),
                    "flags": [f"{flag['issue']}: {flag['reason']}" for flag in row["flags"]],
                    "verdict": str(judged[row["negative_id"]]),
                }
            )
    return sorted(rows, key=lambda row: -len(row["flags"]))[:24]
