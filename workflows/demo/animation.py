"""Puppets that speak with the voices of others: videos of the trained network, and how well they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import EchoForgeError
from configs.schema import Config
from curation.media.clip_reader import read_clip
from curation.puppets import measure
from workflows.demo.page import Check, Generated, strip
from workflows.demo.world import World
from workflows.generate import generate

PICTURES = 4  # puppets of the training split that are animated from their first frame
DUBBED = 2  # held-out puppets that get another one's voice


@dataclass(frozen=True)
class Measured:
    """One generated video against the truth."""

    task: str
    own: float  # correlation of the mouth with its own sound's truth
    others: float  # mean correlation with other puppets' truth
    nearest_is_reference: bool


def animate(
    out: Path, run: Path, dataset: str, catalog: str, world: World, config: Config
) -> tuple[list[Generated], list[Measured]]:
    """Animate puppets that training saw with voices that it never heard; dub held-out puppets with another one's voice.

    A network that trained for minutes on two hundred puppets cannot be asked for faces that it never saw: of held-out
    puppets it generates the mouth alone.
    """
    held = world.clean(dataset, catalog, ("test", "val", "negatives"))
    seen = world.clean(dataset, catalog, ("train",))
    if len(held) < 2:
        raise EchoForgeError("fewer than two clean held-out puppets; make more with --puppets.")
    length = max(config.pipeline.buckets.lengths)
    corpus = world.first_frames(length, config.curation.puppets.size)
    folder = out / "generated"
    folder.mkdir(exist_ok=True)
    cards: list[Generated] = []
    measured: list[Measured] = []
    jobs = [("i2v", name, held[i % len(held)]) for i, name in enumerate(seen[:PICTURES])]
    jobs += [("lip_sync", name, held[(i + 1) % len(held)]) for i, name in enumerate(held[-DUBBED:])]
    for number, (task, person, voice) in enumerate(jobs):
        source, target = world.path(person), folder / f"{task}-{Path(person).stem}.mp4"
        generate(
            run, config, audio=world.path(voice), out=target, image=source, video=source, task=task,
            prompt=world.puppets[person].caption, seconds=length / 25, seed=config.seed + number,
        )  # fmt: skip
        made = read_clip(str(target), 0, length, width=corpus[person].shape[2], height=corpus[person].shape[1]).frames
        measured.append(_measure(task, made, person, voice, world, corpus))
        if task not in [card.title.split(":")[0] for card in cards]:
            cards.append(_card(task, person, voice, target, out, made, corpus[person], measured[-1]))
    return cards, measured


def _measure(
    task: str,
    made: np.ndarray,
    person: str,
    voice: str,
    world: World,
    corpus: dict[str, np.ndarray],
) -> Measured:
    """Whether the mouth in ``made`` (uint8 [F, S, S, 3]) follows ``voice``, and who of all puppets looks most like it."""
    count, truth = len(made), world.puppets
    boxes = truth[person].mouth_boxes[:count]

    def follows(name: str) -> float:
        return measure.follows(made, boxes, truth[name].mouth_px[:count])

    others = [follows(n) for n, p in truth.items() if n not in (person, voice) and n in corpus and not p.fault]
    distance = {
        n: float(np.abs(made.astype(np.int16) - frames.astype(np.int16)).mean()) for n, frames in corpus.items()
    }
    best = min(distance, key=lambda n: distance[n])
    same = {person, *(n for n, p in truth.items() if p.duplicate_of == truth[person].name)}
    return Measured(task, follows(voice), float(np.nanmean(others)), best in same)


def _card(
    task: str, person: str, voice: str, target: Path, out: Path, made: np.ndarray, real: np.ndarray, found: Measured
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


def checks(measured: Sequence[Measured]) -> list[Check]:
    """The bars for the generated videos."""
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
