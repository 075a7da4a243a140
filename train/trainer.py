"""A run: build, resume, go through the stages, commit, and stop where somebody else has to work.

    outcome = train(dataset, out, config.model, config.train)

`needs_negatives` means that a `negatives` stage was reached: its checkpoint is pinned, and the samples that it makes
are to be gathered into RUN/negatives/<stage>/ (`train/` generates nothing). Calling again continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs import folders
from configs.errors import EchoForgeError
from configs.runtime import disk, locks, stopping
from model.config import ModelConfig
from train import builders, parallel, stages
from train.checkpoints import loading, retention, saving
from train.config import TrainConfig
from train.data import negatives
from train.data.index import open_index
from train.log import Log, Pace
from train.loop import Loop, StepReport
from train.objectives.base import Method, Reference, Setup
from train.objectives.registry import OBJECTIVES
from train.policy import StagePolicy
from train.stages import Stage

_PACE_STEPS = 50
"""The mean behind the time that is left is over at least so many steps: enough that one slow batch hardly shows."""

Status = Literal["finished", "needs_negatives", "paused"]


@dataclass(frozen=True)
class TrainOutcome:
    """Why :func:`train` returned: at the end, at a `negatives` stage, or because it was asked to stop."""

    status: Status
    step: int
    stage: str | None
    checkpoint: Path


def train(
    dataset: str | Path,
    out: Path,
    model_cfg: ModelConfig,
    cfg: TrainConfig,
    *,
    seed: int = 0,
    resume: bool = True,
    max_steps: int | None = None,
    accept_flags: bool = True,
    say: Callable[[str], None] | None = print,
    device: str | None = None,
    preset: str | None = None,
) -> TrainOutcome:
    """Train through the stages, from the last committed checkpoint on. A requested stop (`configs.runtime.stopping`) pauses the
    run at the end of a step, with a checkpoint: all ranks at the same one.

    Args:
        resume: continue a run in ``out``; otherwise ``out`` must hold none.
        max_steps: commit and return when the run has done so many steps in all.
        accept_flags: a flagged negative counts although nobody reviewed it.
        say: takes a line of progress now and then.
        preset: name of the preset that the configuration comes from, for checkpoints and messages.

    Raises:
        EchoForgeError: the dataset does not serve the configuration, the run in ``out`` is another one, training diverged,
            another process works on the run.
    """
    folders.check_out(out, "run")
    with ExitStack() as stack:
        stack.enter_context(stopping.listening())
        world = parallel.start(cfg.optim, device)
        stack.callback(parallel.stop)
        parallel.on_main(lambda: stack.enter_context(locks.locked(out, "run", "train")), "locking the run")
        trainer = stack.enter_context(
            Trainer(dataset, out, model_cfg, cfg, seed, resume, accept_flags, say, world, preset)
        )
        return trainer.run(max_steps)


@dataclass(frozen=True)
class StageEnd:
    """Why the steps of a stage ended: they are done; ``early``, for this reason; or the run is to pause."""

    paused: bool = False
    early: str | None = None


class Trainer:
    """The parts of a run and the walk through its stages."""

    def __init__(
        self,
        dataset: str | Path,
        out: Path,
        model_cfg: ModelConfig,
        cfg: TrainConfig,
        seed: int,
        resume: bool,
        accept_flags: bool,
        say: Callable[[str], None] | None,
        world: parallel.World,
        preset: str | None,
    ) -> None:
        self.dataset, self.out, self.model_cfg, self.cfg, self.world = dataset, out, model_cfg, cfg, world
        self.accept_flags = accept_flags
        self.stages = stages.plan(cfg)
        parallel.on_main(lambda: retention.clean(out), "cleaning up after an interrupted checkpoint")
        found = retention.latest(out)
        if found is not None and not resume:
            raise EchoForgeError(f"{out} already holds a run; continue it, or name another folder.")
        index = open_index(dataset, split="train", keep=cfg.loader.keep)
        builders.check_dataset(index, cfg, model_cfg)
        self.loader = builders.build_loader(dataset, cfg, self.stages, index, seed, world)
        self.info = builders.run_info(dataset, index.digest, model_cfg, cfg, seed, world, preset)
        if found is not None:
            loading.read_info(found).check_same_run(self.info, model_cfg.transformer, out)
        self.state = builders.build_state(model_cfg, cfg, seed, world, new=found is None)
        disk.check_room(out, self.state.checkpoint_bytes(), "the next checkpoint")
        if found is not None:
            loading.load(found, self.state)
        out.mkdir(parents=True, exist_ok=True)
        self.log = Log(out if world.main else None, say)
        self._new = found is None
        parallel.on_all(lambda: self.log.rewind(None if self._new else self.state.progress.step))
        self.context = builders.build_context(dataset, model_cfg, cfg, self.state, seed, world)
        self.validation = builders.build_validation(dataset, self.context, world)

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.loader.close()

    def run(self, max_steps: int | None) -> TrainOutcome:
        """Every stage that is left."""
        progress = self.state.progress
        if self._new:
            stopping.check()
            if self.validation is not None:
                self.log.say("measuring the held-out loss before the first step")
            self._validate("start")
        for stage in self.stages[progress.stage :]:
            if max_steps is not None and progress.step >= max_steps:  # of negatives none is gathered either
                return self._outcome("paused", stage, retention.latest(self.out) or self._commit(None))
            if progress.stage != stage.index:
                progress.stage, progress.method = stage.index, {}
            if stage.cfg.kind == "negatives":
                if not negatives.gathered(self.out, stage.name):
                    return self._outcome("needs_negatives", stage, self._pinned(stage))
                continue
            if not self._do_stage(stage, max_steps):
                return self._outcome("paused", stage, self._commit(None))
        return self._outcome("finished", None, retention.latest(self.out) or self._commit("end"))

    def _do_stage(self, stage: Stage, max_steps: int | None) -> bool:
        """Do one stage; False when the run is to pause before its end."""
        progress = self.state.progress
        if progress.step >= stage.last:
            return True
        self.loader.seek(self.loader.order.position_of(progress.step))
        until = stage.last if max_steps is None else min(stage.last, max_steps)
        with OBJECTIVES[stage.cfg.kind](self._setup(stage)) as method:
            end = self._do_steps(stage, method, StagePolicy(self.cfg, stage.last, until))
        if end.paused:
            return False
        if end.early is not None:
            self.log.say(f"stage '{stage.name}' ends early at step {progress.step}: {end.early}")
            self.log.write("early_end", progress.step, {"stage": stage.name, "reason": end.early})
            progress.step = stage.last
        progress.stage, progress.method = stage.index + 1, {}
        self._validate(stage.name)
        self._commit(stage.name)
        return True

    def _do_steps(self, stage: Stage, method: Method, policy: StagePolicy) -> StageEnd:
        """The steps that are left; after each log, validate, commit, and stop where asked."""
        before = None
        if stage.cfg.kind == "ndpo" and self.validation is not None:
            before = self.validation.losses()["loss"]
        # The window holds a whole round of held-out losses and checkpoints, so that the time left does not jump.
        pace = Pace(max(_PACE_STEPS, self.cfg.log.validate_every, self.cfg.checkpoint.every))
        ended = 0.0  # when the step before was
        for report in Loop(self.state, self.cfg.optim).steps(stage, method):
            done, now = report.step + 1, time.perf_counter()
            pace.add(now - ended if ended else report.seconds)
            ended = now
            if policy.logs(done):
                self._log_step(stage, report, policy.until, pace)
            if policy.validates(done):
                loss = self._validate(stage.name)
                if loss is not None and (reason := policy.harms(loss, before)):
                    return StageEnd(early=reason)
            asked = parallel.any_of(stopping.requested() is not None)  # a launcher signals ranks one after the other
            if policy.pauses(done, asked):
                return StageEnd(paused=True)
            if policy.commits(done):
                self._commit(None)
            if (reason := method.stop_reason()) is not None:
                return StageEnd(early=reason)
        return StageEnd()

    def _log_step(self, stage: Stage, report: StepReport, until: int, pace: Pace) -> None:
        step = report.step + 1
        values = {name: parallel.mean(value) for name, value in self.context.tally.means().items()}
        self.log.write("step", step, {
            "stage": stage.name, "taken": report.applied, **values, "lr": report.lr, "grad_norm": report.grad_norm,
            "seconds": report.seconds, "waited": report.data_time,
        })  # fmt: skip
        self.log.progress(step, until, stage.name, values.get("loss", float("nan")), pace)

    def _validate(self, stage: str) -> float | None:
        """Log the held-out losses; that of the weights themselves, None where none is taken."""
        if self.validation is None:
            return None
        losses = self.validation.losses()
        with self.state.ema.swapped():
            averaged = self.validation.losses()["loss"]
        step = self.state.progress.step
        self.log.write("validation", step, {"stage": stage, **losses, "loss_ema": averaged})
        self.log.say(f"held-out loss {losses['loss']:.4f} (average of weights: {averaged:.4f}) at step {step}")
        return losses["loss"]

    def _setup(self, stage: Stage) -> Setup:
        """What the stage's objective is built from."""
        origin = next((s for s in self.stages if s.name == stage.source), None)
        reference = Reference(self._pinned(origin), origin.cfg.weights) if origin is not None else None
        return Setup(
            self.context, stage, self.loader, self.dataset, self.out, self.model_cfg.transformer, self.world,
            self.state.progress, self.accept_flags, reference,
        )  # fmt: skip

    def _pinned(self, stage: Stage) -> Path:
        """The pinned checkpoint that stands before ``stage``; committed now when it is not there."""
        for path in reversed(retention.committed(self.out)):
            if retention.is_pinned(path) and path.name == f"step-{stage.first:06d}":
                return path
        return self._commit(stage.name)

    def _commit(self, pin: str | None) -> Path:
        parallel.on_main(lambda: locks.check(self.out), "committing a checkpoint")
        try:
            with disk.refused(self.out / f"step-{self.state.progress.step:06d}"):
                return saving.save(self.out, self.state, self.info, keep_last=self.cfg.checkpoint.keep_last, pin=pin)
        except disk.Refused:
            if self.world.main:
                retention.clean(self.out)  # the half takes the room that the others need
            raise

    def _outcome(self, status: Status, stage: Stage | None, path: Path) -> TrainOutcome:
        return TrainOutcome(status, self.state.progress.step, stage.name if stage else None, path)
