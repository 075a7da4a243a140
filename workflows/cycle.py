"""The SFT–NDPO cycle: train until a `negatives` stage, gather, let people review or accept the flags, train on."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from configs import reviews
from configs.folders import check_out
from configs.runtime import stopping
from configs.runtime.locks import locked
from configs.runtime.program import command
from configs.schema import PRESETS, Config
from curation.review import tables
from train.data import negatives
from train.trainer import TrainOutcome, train
from workflows.gather import gather


@dataclass(frozen=True)
class CycleSummary:
    """Where the run stands, and what to do next."""

    outcome: TrainOutcome
    gathered: list[str]
    next_step: str | None

    def __str__(self) -> str:
        o = self.outcome
        words = {"finished": "finished", "paused": "paused", "needs_negatives": f"waiting at stage '{o.stage}'"}[
            o.status
        ]
        lines = [*self.gathered, f"run {o.checkpoint.parent}: {words} at step {o.step}; checkpoint {o.checkpoint.name}"]
        return "\n".join(lines + ([self.next_step] if self.next_step else []))


def run_cycle(
    dataset: str,
    out: Path,
    config: Config,
    *,
    max_steps: int | None = None,
    review: bool = False,
    ray_address: str | None = None,
) -> CycleSummary:
    """Train through all stages, gathering negatives where the configuration has a stage for it.

    Args:
        max_steps: stop after so many steps in all; the same command continues.
        review: at a `negatives` stage stop until every gathered sample has been reviewed (or `negatives` decided).

    A launcher such as torchrun gets an ordinary end when a stop was requested, so that it starts nothing again.

    Under torchrun ranks never start Ray: the run stops at a `negatives` stage and says which command gathers.
    """
    check_out(out, "run")
    # Under torchrun nothing is gathered here, and rank 0 locks the run while it trains.
    with nullcontext() if "RANK" in os.environ else locked(out, "run", "train"):
        return _cycle(dataset, out, config, max_steps, review, ray_address)


def _cycle(
    dataset: str, out: Path, config: Config, max_steps: int | None, review: bool, ray_address: str | None
) -> CycleSummary:
    """:func:`run_cycle` with the run locked."""
    notes: list[str] = []
    while True:
        outcome = train(
            dataset, out, config.model, config.train, seed=config.seed, max_steps=max_steps, accept_flags=not review,
            preset=config.preset,
        )  # fmt: skip
        if outcome.status == "paused":
            stopping.check(f"{outcome.checkpoint.name} is committed")
            if stopping.requested():  # a rank of a launcher: `check` lets it end as if nothing were
                return CycleSummary(outcome, notes, "stopped as asked; the same command goes on from there")
        if outcome.status != "needs_negatives":
            return CycleSummary(outcome, notes, None)
        assert outcome.stage is not None
        if "RANK" in os.environ:
            preset = config.preset if config.preset in PRESETS else "FILE"
            again = command("negatives", "gather", out, dataset, "--preset", preset)
            step = f"next: {again} (and this run's --set options), then run the same command again"
            return CycleSummary(outcome, notes, step)
        on_gpu = torch.cuda.is_available()
        notes.append(str(gather(out, dataset, outcome.stage, config, inline=not on_gpu, ray_address=ray_address)))
        folder = negatives.folder(out, outcome.stage)
        if review and not _reviewed(folder):
            review_it = command("negatives", "review", out, "--stage", outcome.stage)
            step = f"next: {review_it}, then run the same command again"
            return CycleSummary(outcome, notes, step)


def _reviewed(folder: Path) -> bool:
    """Whether every sample has a review (a `skip` is one)."""
    judged = reviews.judgements(tables.samples(folder), reviews.read(folder), accept_flags=False)
    return all(judgement.verdict is not None for judgement in judged.values())
