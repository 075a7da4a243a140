"""Method × state. The loop knows how a step is done and what makes it safe; it knows no objective."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from train import parallel
from train.config import OptimConfig
from train.guard import Guard
from train.objectives.base import Method
from train.stages import Stage, learning_rate
from train.state import State


@dataclass(frozen=True)
class StepReport:
    """One step: its number, gradient norm before clipping, rate, whether the optimizer applied it, and its seconds.

    ``data_time`` are those spent on the batch before the first forward (reading, masks), part of ``seconds``.
    """

    step: int
    grad_norm: float
    lr: float
    applied: bool
    seconds: float
    data_time: float


class Loop:
    """Runs the steps of a stage on one state."""

    def __init__(self, state: State, cfg: OptimConfig) -> None:
        self.state, self.cfg = state, cfg
        self.guard = Guard(cfg)
        if state.progress.guard:
            self.guard.load(state.progress.guard)

    def steps(self, stage: Stage, method: Method) -> Iterator[StepReport]:
        """Do the stage's remaining steps, one for each report; the state is whole whenever one is given.

        Raises:
            EchoForgeError: too many unsafe steps in a row.
        """
        self.state.network.train()
        progress = self.state.progress
        while progress.step < stage.last:
            report = self._step(stage, method, progress.step)
            progress.step += 1
            progress.guard, progress.method = self.guard.state(), method.state()
            yield report

    def _step(self, stage: Stage, method: Method, step: int) -> StepReport:
        started = time.perf_counter()
        state = self.state
        rate = learning_rate(stage, step, self.cfg)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.zero_grad(set_to_none=True)
        shares = method.micro_steps(step)
        data_time = time.perf_counter() - started
        for number, share in enumerate(shares, 1):
            parallel.sync_gradients(state.network, number == len(shares))
            share().backward()
        norm = self._clip()
        applied = self.guard.admit(norm, step)
        if applied:
            state.optimizer.step()
            state.ema.update(state.progress.updates, stage.cfg.ema_decay)
            state.progress.updates += 1
        return StepReport(step, norm, rate, applied, time.perf_counter() - started, data_time)

    def _clip(self) -> float:
        """Clip to the global norm and return what it was before."""
        parameters = [p for p in self.state.network.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        full = norm.full_tensor() if isinstance(norm, DTensor) else norm
        clip_grads_with_norm_(parameters, self.cfg.grad_clip, full)
        return float(full)
