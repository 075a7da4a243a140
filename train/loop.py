"""Method × state × callbacks. The loop knows when a step happens and what makes it safe; it knows no objective."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from train import parallel
from train.checkpoints.checkpoint import State
from train.config import OptimConfig
from train.guard import Guard
from train.objectives.base import Method
from train.stages import Stage, learning_rate


@dataclass(frozen=True)
class StepReport:
    """One step: its number, gradient norm before clipping, rate, whether the optimizer took it, and its seconds.

    ``waited`` are those spent on the batch before the first forward (reading, masks), part of ``seconds``.
    """

    step: int
    grad_norm: float
    lr: float
    taken: bool
    seconds: float
    waited: float


class Callback(Protocol):
    """Called after every step, in order, on every rank."""

    def __call__(self, stage: Stage, report: StepReport) -> None:
        """Look at the step; the state is the loop's."""


class Loop:
    """Runs the steps of a stage on one state."""

    def __init__(self, state: State, cfg: OptimConfig, callbacks: Sequence[Callback]) -> None:
        self.state, self.cfg, self.callbacks = state, cfg, callbacks
        self.guard = Guard(cfg)
        if state.progress.guard:
            self.guard.load(state.progress.guard)

    def run(self, stage: Stage, method: Method) -> str | None:
        """Do the stage's remaining steps; returns why it ended early, or None.

        Raises:
            EchoForgeError: too many unsafe steps in a row.
        """
        self.state.network.train()
        progress = self.state.progress
        while progress.step < stage.last:
            report = self._step(stage, method, progress.step)
            progress.step += 1
            progress.guard, progress.method = self.guard.state(), method.state()
            for callback in self.callbacks:
                callback(stage, report)
            if (reason := method.stop_reason()) is not None:
                return reason
        return None

    def _step(self, stage: Stage, method: Method, step: int) -> StepReport:
        started = time.perf_counter()
        state = self.state
        rate = learning_rate(stage, step, self.cfg)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        shares = method.micro_steps(step)
        waited = time.perf_counter() - started
        for number, share in enumerate(shares, 1):
            parallel.sync_gradients(state.network, number == len(shares))
            share().backward()
        norm = self._clip()
        taken = self.guard.admit(norm, step)
        if taken:
            state.optimizer.step()
            state.ema.update(state.progress.updates, stage.cfg.ema_decay)
            state.progress.updates += 1
        return StepReport(step, norm, rate, taken, time.perf_counter() - started, waited)

    def _clip(self) -> float:
        """Clip to the global norm and return what it was before."""
        parameters = [p for p in self.state.network.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        full = norm.full_tensor() if isinstance(norm, DTensor) else norm
        clip_grads_with_norm_(parameters, self.cfg.grad_clip, full)
        return float(full)
