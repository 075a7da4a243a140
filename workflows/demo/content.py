"""What the page of the demo shows, read from the catalog, the run and its negatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from configs import reviews
from configs.errors import EchoForgeError
from configs.schema import Config
from curation.media.clip_reader import read_clip
from curation.review import tables
from curation.schema import VIDEOS
from pipeline.catalog.curate import CurateSummary
from pipeline.catalog.tables import read as read_catalog
from train import stages
from train.data import negatives
from train.log import METRICS_FILE, of_kind, read_metrics
from workflows.demo.page import Check, Curve, DemoPage, Generated, Negative, Source, jpeg_data_uri, jpeg_uri
from workflows.demo.world import World

LOSS_BAR = 0.6  # held-out loss at the end over its start

STATEMENT = (
    "A puppet world: the people are drawn, the voices synthesised. Latents come from a weight-free 3-D DCT, captions, "
    "pictures and sounds from weight-free stand-ins, and the small network starts from random weights. The loop around "
    "them is the real one. Blurry by construction; no measure of what a real model can do."
)


def curves(run: Path) -> tuple[Curve, Curve, Curve]:
    """The losses of a run: training, held out, and held out with the average of the weights."""
    lines = read_metrics(run / METRICS_FILE)
    training, held = of_kind(lines, "step"), of_kind(lines, "validation")
    return (
        Curve("training", [x.step for x in training], [x.number("loss") for x in training]),
        Curve("held out", [x.step for x in held], [x.number("loss") for x in held]),
        Curve("held out, average of weights", [x.step for x in held], [x.number("loss_ema") for x in held]),
    )


def loss_check(run: Path) -> Check:
    """The bar for training: the held-out loss of the averaged weights falls."""
    *_, averaged = curves(run)
    if not averaged.values:
        return Check("held-out loss, end / start", "not measured", f"≤ {LOSS_BAR}", False)
    first, last = float(averaged.values[0]), float(averaged.values[-1])
    return Check(
        "held-out loss, end / start",
        f"{last / first:.2f} ({first:.3f} → {last:.3f})",
        f"≤ {LOSS_BAR}",
        last / first <= LOSS_BAR,
    )


def content(
    out: Path, config: Config, curated: CurateSummary, card: str, world: World, generated: Sequence[Generated],
    checks: Sequence[Check], timings: Sequence[tuple[str, float]],
) -> DemoPage:  # fmt: skip
    """What the page shows of the files in ``out``; ``card``: of the fitted SyncNet, in words."""
    planned = stages.plan(config.train)
    gathering = [stage.name for stage in planned if stage.cfg.kind == "negatives"]
    hours = curated.hours
    total = sum(curated.clips.values())
    funnel = [("files", sum(curated.videos.values()), 0.0), ("clips", total, sum(hours.values()))]
    funnel += [(verdict, curated.clips[verdict], hours.get(verdict, 0.0)) for verdict in ("keep", "hold", "reject")
               if curated.clips.get(verdict)]  # fmt: skip
    folder = negatives.folder(Path("run"), gathering[0]) if gathering else Path("run") / negatives.FOLDER
    return DemoPage(
        title="EchoForge: the whole loop on a puppet world",
        statement=STATEMENT,
        checks=checks,
        funnel=funnel,
        sources=_sources(out, world),
        curves=curves(out / "run"),
        stages=[(s.name, s.first) for s in planned if s.cfg.kind != "negatives"],
        negatives=negatives_of(out / "run", gathering),
        generated=generated,
        timings=timings,
        facts={
            "negatives": f"{folder}/samples.parquet",
            "fitted SyncNet": card,
            "verdicts": ", ".join(f"{n} {v}" for v, n in Counter(curated.clips).items()),
        },
    )


def _sources(out: Path, world: World) -> list[Source]:
    columns = ["source_uri", "verdict", "reasons"]
    rows = read_catalog(str(out / "catalog"), "videos", VIDEOS, columns).to_pandas()
    found = []
    for row in rows.sort_values("source_uri").to_dict("records"):
        path = Path(row["source_uri"])
        if path.name in world.puppets:
            reasons = [str(reason) for reason in row["reasons"]][:2]
            found.append(
                Source(path.stem, _thumbnail(path), world.puppets[path.name].fault or "", row["verdict"], reasons)
            )
    return found


def _thumbnail(path: Path) -> str:
    try:
        return jpeg_uri(read_clip(str(path), 5, 6, width=96, height=96).frames[0])
    except EchoForgeError:
        return ""  # a damaged file has no picture


def negatives_of(run: Path, names: Sequence[str]) -> list[Negative]:
    """The samples that were gathered at the stages ``names``, the most suspicious first; at most 24."""
    found: list[Negative] = []
    for name in names:
        folder = negatives.folder(run, name)
        if not (folder / negatives.SAMPLES_FILE).is_file():
            continue
        gathered = tables.samples(folder)
        judged = reviews.judgements(gathered, reviews.read(folder), accept_flags=True)
        for row in gathered.to_pylist():
            flags = [f"{flag['issue']}: {flag['reason']}" for flag in row["flags"]]
            found.append(Negative(jpeg_data_uri(row["thumbnail"]), flags, str(judged[row["negative_id"]])))
    return sorted(found, key=lambda sample: -len(sample.flags))[:24]
