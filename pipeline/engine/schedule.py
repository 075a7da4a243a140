"""Which units run next and in what batches, what became of each batch, and what a failure means."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from configs.errors import EchoForgeError
from configs.runtime.redaction import redact
from pipeline import storage
from pipeline.config import ExecutionConfig
from pipeline.engine.ledger import Ledger
from pipeline.engine.unit import Failure, Unit


class EngineError(EchoForgeError):
    """The run as a whole cannot go on."""

    exit_code = 4


class Watcher(Protocol):
    """Is told what happens; `pipeline.engine.progress.Progress` is one."""

    def begin(self, total: int, done: int) -> None:
        """Before the first unit: how many there are, and how many of them were done before."""

    def linked(self, dashboard: str) -> None:
        """Ray's dashboard is at this address."""

    def update(self, receipt: Receipt | None, in_flight: int, workers: int) -> None:
        """After every receipt, and about once a second without one."""

    def failed(self, failure: Failure) -> None:
        """A unit went into quarantine."""

    def end(self) -> None:
        """No more units."""


@dataclass(frozen=True)
class Done:
    """What the driver learns of a committed unit."""

    unit: str
    seconds: float
    amount: float
    timings: dict[str, float]
    share: float = 0.0  # of the cost of all units that were missing, 0..1


@dataclass(frozen=True)
class Trouble:
    """Why a unit failed once."""

    unit: str
    cause: str
    detail: str


@dataclass
class Receipt:
    """What became of a batch: committed units, failed units, or an error that ends the run."""

    done: list[Done] = field(default_factory=list)
    failed: list[Trouble] = field(default_factory=list)
    fatal: EchoForgeError | None = None
    memory: int = 0  # resident bytes of the worker's process afterwards


@dataclass
class Outcome:
    """What a run did."""

    total: int
    before: int  # units that were done already
    done: int = 0
    quarantined: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    amount: float = 0.0  # seconds of video


class Schedule:
    """Which units run next, in what batches, and what their failures mean.

    Dearest units come first, so that the end of a run does not wait for one long video. Batches grow until one takes
    about ``commit_s``. Suspects wait until the queue is empty and run by themselves; those that took their process
    down with them run with nothing else beside them.
    """

    def __init__(
        self,
        units: Iterable[Unit[Any]],
        ledger: Ledger,
        cfg: ExecutionConfig,
        outcome: Outcome,
        watcher: Watcher | None = None,
        released: set[str] | None = None,
    ) -> None:
        self.queue = deque(sorted(units, key=lambda u: -u.cost))
        self.ledger, self.cfg, self.outcome, self.watcher = ledger, cfg, outcome, watcher
        self.suspects: deque[Unit[Any]] = deque()
        self.crashers: deque[Unit[Any]] = deque()
        self._released = released or set()
        self._losses: dict[str, int] = {}
        self._tried: set[str] = set()
        self._running = 0, 0
        self._in_a_row = 0
        self._cap = 1
        self._seconds = self._cost = 0.0
        self._whole = sum(max(unit.cost, 1e-9) for unit in self.queue)

    def __len__(self) -> int:
        return len(self.queue) + len(self.suspects) + len(self.crashers)

    def take(self, in_flight: int, workers: int) -> list[Unit[Any]]:
        """The next batch; empty when there is none, or none that may run beside ``in_flight`` batches."""
        if not self.queue:
            if self.suspects:
                return [self.suspects.popleft()]
            return [self.crashers.popleft()] if self.crashers and in_flight == 0 else []
        most = min(self._cap, self.cfg.commit_units, max(1, len(self.queue) // (2 * workers)))
        pace = self._seconds / self._cost if self._cost else float("inf")
        batch, expected = [self.queue.popleft()], 0.0
        expected += batch[0].cost * pace
        while self.queue and len(batch) < most and expected + self.queue[0].cost * pace <= self.cfg.commit_s:
            batch.append(self.queue.popleft())
            expected += batch[-1].cost * pace
        return batch

    def settle(self, batch: list[Unit[Any]], receipt: Receipt) -> None:
        """Account for a batch that came back.

        Raises:
            EchoForgeError: the receipt says that the run cannot go on, or too many units failed in a row.
        """
        if receipt.fatal:
            raise receipt.fatal
        by_id = {unit.id: unit for unit in batch}
        receipt.done = [replace(d, share=max(by_id[d.unit].cost, 1e-9) / self._whole) for d in receipt.done]
        for item in receipt.done:
            self._seconds += item.seconds
            self._cost += max(by_id[item.unit].cost, 1e-9)
            self.outcome.amount += item.amount
            if item.unit in self._released:
                self.ledger.release(item.unit)
        self.outcome.done += len(receipt.done)
        if receipt.done:
            self._in_a_row = 0
            self._cap = min(4 * self._cap, self.cfg.commit_units)
        for trouble in receipt.failed:
            self._fail(by_id[trouble.unit], trouble, self.suspects)
        if self.watcher:
            self.watcher.update(receipt, *self._running)

    def died(self, batch: list[Unit[Any]], cause: str, detail: str, *, crashed: bool) -> None:
        """The process of ``batch`` is gone. ``crashed``: by itself, not by its time budget."""
        if self.ledger.committed(unit.id for unit in batch):
            self.settle(batch, Receipt(done=[Done(unit.id, 0.0, 0.0, {}) for unit in batch]))
            return
        for unit in batch:
            where = self.crashers if crashed else self.suspects
            if len(batch) > 1:  # one of several: not known which
                where.append(unit)
            else:
                self._fail(unit, Trouble(unit.id, redact(cause), redact(detail)), where)

    def lost_node(self, batch: list[Unit[Any]]) -> None:
        """The machine of ``batch`` is gone: run it again elsewhere, unless that keeps happening."""
        if self.ledger.committed(unit.id for unit in batch):
            self.settle(batch, Receipt(done=[Done(unit.id, 0.0, 0.0, {}) for unit in batch]))
            return
        for unit in batch:
            self._losses[unit.id] = self._losses.get(unit.id, 0) + 1
            if self._losses[unit.id] > self.cfg.node_losses:
                self.died([unit], f"lost its machine {self._losses[unit.id]} times", "", crashed=True)
            else:
                self.queue.appendleft(unit)

    def linked(self, dashboard: str | None) -> None:
        """Tell the watcher where Ray's dashboard is, if there is one."""
        if dashboard and self.watcher:
            self.watcher.linked(dashboard)

    def tick(self, in_flight: int, workers: int) -> None:
        """Let the watcher look; stop when another process may be changing what this run writes (`lease`)."""
        storage.check_guards()
        self._running = in_flight, workers
        if self.watcher:
            self.watcher.update(None, in_flight, workers)

    def _fail(self, unit: Unit[Any], trouble: Trouble, again: deque[Unit[Any]]) -> None:
        if unit.id not in self._tried:
            self._tried.add(unit.id)
            again.append(unit)
            self._in_a_row += 1
            if self._in_a_row >= self.cfg.max_failures:
                raise EngineError(
                    f"stopped: {self._in_a_row} units failed in a row, the last with: {trouble.cause} "
                    "Nothing that was done is lost; mend the cause and run the same command again."
                )
            return
        failure = Failure(unit.id, unit.key, unit.fingerprint, trouble.cause, trouble.detail[-4000:], 2, time.time())
        self.ledger.quarantine(failure)
        self.outcome.quarantined.append(failure)
        if self.watcher:
            self.watcher.failed(failure)
