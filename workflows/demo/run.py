"""The whole loop on a puppet world, offline: puppets → curate → shard → train → negatives → NDPO → generate → one page.

What it shows is that the loop works and that its outcome can be measured. The puppets are drawn, the encoders are
weight-free stand-ins and the network starts from random weights, so nothing here says anything of a real model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from configs.errors import EchoForgeError
from configs.folders import check_out
from configs.runtime import stopping
from configs.runtime.console import Terminal
from configs.schema import Config
from curation import puppets
from curation.sync import fitted
from curation.sync.fit import fit_from_clips
from curation.sync.gather import puppet_clip
from pipeline.catalog.curate import curate
from pipeline.dataset.shard import shard
from pipeline.engine import lease
from pipeline.engine.progress import Progress
from workflows.cycle import run_cycle
from workflows.demo import animation
from workflows.demo.content import content, loss_check
from workflows.demo.page import Check, write
from workflows.demo.world import draw_world

PUPPETS = 220  # enough people that a network of 6 M parameters copies the face it is given instead of remembering one
FITTING = 48  # puppets that only the small SyncNet sees
FITTING_SEED = 1_000_003  # another world than the demo's corpus


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
        world = draw_world(videos, puppets or PUPPETS, config)
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
        generated, measured = animation.animate(out, run, dataset, catalog, world, config)
    checks = [loss_check(run), *animation.checks(measured)]
    page = out / "index.html"
    write(content(out, config, curated, card, world, generated, checks, clock.timings), page)
    return DemoSummary(page, checks, clock.timings)


def _fitted(path: Path, config: Config) -> tuple[Config, str]:
    """The configuration with a SyncNet fitted on puppets of another seed, and that file's card in words."""
    if not path.is_file():
        cfg = config.curation.puppets
        clips = (puppet_clip(f"fit-{i}", puppets.sample(FITTING_SEED + config.seed, i, cfg)) for i in range(FITTING))
        fit_from_clips(clips, path, config.curation.sync, domain="puppets of the procedural corpus", seed=config.seed)
    sync = replace(config.curation.sync, backend="fitted", fitted=str(path))
    card = ", ".join(f"{k} {v}" for k, v in vars(fitted.read(path)[1]).items())
    return replace(config, curation=replace(config.curation, sync=sync)), card[:300]
