"""Runs units of work and commits what comes out: on Ray actors, or in this process with equal results.

A stage gives units (`pipeline.engine.unit.Unit`), a function that makes its worker, and a ledger; the engine does the
rest::

    outcome = run(units, functools.partial(MyWorker, config), ledger, share, execution)

* The worker is built once per process (networks load once); its ``run(payload)`` returns tables (`unit.Result`).
  A stage with large outputs writes them itself, atomically and under names that depend on the unit alone
  (`store.writing`), and returns only small rows about them.
* The process that computed the rows commits them; only receipts travel to the driver, never pixels or tables.
* Units that the ledger knows are not run again. Short units are committed together, so that a disk sees a few files
  a second and not thousands.
* A unit that raises, crashes its process or exceeds its time budget is retried once by itself, after the others;
  when it fails again it is put into quarantine with its cause, and the run goes on.
* What is not a unit's fault stops the run with one sentence: missing weights, a full disk, failures in a row.
* A requested stop (`configs.runtime.stopping`) begins nothing new. What is at work may end for `stopping.GRACE_S`; then its
  processes are killed. What was committed counts; the stage's tables are made by a run that ends.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from configs.errors import EchoForgeError, MissingWeights
from configs.runtime import stopping
from configs.runtime.disk import Refused
from configs.runtime.redaction import redact
from pipeline import storage
from pipeline.config import ExecutionConfig, WorkerShare
from pipeline.engine.ledger import Ledger
from pipeline.engine.unit import Failure, Finished, Result, Unit
from pipeline.engine.version import code_version


class EngineError(EchoForgeError):
    """The run as a whole cannot go on."""

    exit_code = 4


class Worker(Protocol):
    """Does the units of one stage. Built once per process by the stage's ``make_worker``."""

    def run(self, payload: Any) -> Result:
        """The rows of one unit. Whatever it raises is the unit's failure, `MissingWeights` aside."""


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


def run(
    units: Sequence[Unit],
    make_worker: Callable[[], Worker],
    ledger: Ledger,
    share: WorkerShare,
    cfg: ExecutionConfig,
    *,
    inline: bool = False,
    ray_address: str | None = None,
    retry_failed: bool = False,
    watcher: Watcher | None = None,
) -> Outcome:
    """Do what is missing of ``units`` and commit it to ``ledger``.

    Args:
        make_worker: called once in every worker process; must be picklable (a class, a function of a module, or
            ``functools.partial`` of one with small arguments) and importable there.
        share: CPUs, GPUs and memory of one worker, and how many workers.
        inline: everything in this process, one unit after the other, for a debugger; budgets are not enforced.
        ray_address: a running cluster to join; without one, Ray starts inside this process.
        retry_failed: try the units in quarantine again.

    Raises:
        EngineError: the run as a whole cannot go on; what was committed stays.
        Stopped: a stop was requested; what was committed stays.
        MissingWeights: the worker needs a file that is not here.
        StoreError: results cannot be written.
    """
    ledger.prepare()
    done = ledger.done()
    aside = ledger.quarantined()
    missing = [u for u in units if u.id not in done and (retry_failed or u.id not in aside)]
    if len({u.id for u in missing}) != len(missing):
        raise ValueError("two units have the same id")
    outcome = Outcome(total=len(units), before=len(units) - len(missing))
    schedule = Schedule(missing, ledger, cfg, outcome, watcher, released=set(aside))
    started = time.monotonic()
    if watcher:
        watcher.begin(len(units), outcome.before)
    try:
        if missing and inline:
            _run_inline(schedule, make_worker, ledger)
        elif missing:
            from pipeline.engine.ray_pool import run_on_ray

            run_on_ray(schedule, make_worker, ledger, share, cfg, ray_address)
        done_now = outcome.before + outcome.done
        stopping.check(f"{done_now} of {outcome.total} pieces of work are done and recorded, the result is as it was")
        ledger.merge(fewer_than=cfg.merge_parts)
    finally:
        outcome.seconds = time.monotonic() - started
        if watcher:
            watcher.end()
    return outcome


def _run_inline(schedule: Schedule, make_worker: Callable[[], Worker], ledger: Ledger) -> None:
    worker, code = make_worker(), code_version()
    while not stopping.requested() and (batch := schedule.take(in_flight=0, workers=1)):
        schedule.settle(batch, run_batch(worker, batch, ledger, code))
        schedule.tick(0, 1)


def run_batch(
    worker: Worker,
    units: list[Unit],
    ledger: Ledger,
    code: str,
    guard: Callable[[Unit], AbstractContextManager[Any]] = lambda _: contextlib.nullcontext(),
) -> Receipt:
    """Run ``units`` one after the other and commit them together. ``guard`` watches over each.

    A requested stop leaves out those that had not ended: they are neither done nor failed.
    """
    receipt, finished = Receipt(), []
    for unit in units:
        begin = time.monotonic()
        try:
            stopping.check()
            with guard(unit):
                result = worker.run(unit.payload)
        except stopping.Stopped:
            break
        except (MissingWeights, Refused) as error:  # no fault of this unit
            receipt.fatal = error
            break
        except Exception as error:
            receipt.failed.append(Trouble(unit.id, _sentence(error), redact(traceback.format_exc(limit=-12))))
            continue
        finished.append(Finished(unit, result, time.monotonic() - begin))
    try:
        finished = _commit(finished, ledger, code, receipt)
    except EchoForgeError as error:
        return Receipt(fatal=receipt.fatal or error)
    receipt.done = [Done(f.unit.id, f.seconds, f.result.amount, dict(f.result.timings)) for f in finished]
    return receipt


def _commit(finished: list[Finished], ledger: Ledger, code: str, receipt: Receipt) -> list[Finished]:
    """Commit what can be committed, and return it; a unit whose rows no table holds has failed, alone.

    Raises:
        EchoForgeError: the place cannot be written, or another run has it: no fault of a unit.
    """
    if not finished:
        return []
    try:
        ledger.commit(finished, code)
        return finished
    except EchoForgeError:
        raise
    except Exception as error:  # of a value in a row: wrong type, too large, half a character
        if len(finished) > 1:
            return [item for one in finished for item in _commit([one], ledger, code, receipt)]
        detail = redact(traceback.format_exc(limit=-12))
        receipt.failed.append(Trouble(finished[0].unit.id, f"its rows cannot be written: {_sentence(error)}", detail))
        return []


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return redact(text if isinstance(error, EchoForgeError) else f"{type(error).__name__}: {text}")[:500]


class Schedule:
    """Which units run next, in what batches, and what their failures mean.

    Dearest units come first, so that the end of a run does not wait for one long video. Batches grow until one takes
    about ``commit_s``. Suspects wait until the queue is empty and run by themselves; those that took their process
    down with them run with nothing else beside them.
    """

    def __init__(
        self,
        units: Iterable[Unit],
        ledger: Ledger,
        cfg: ExecutionConfig,
        outcome: Outcome,
        watcher: Watcher | None = None,
        released: set[str] | None = None,
    ) -> None:
        self.queue = deque(sorted(units, key=lambda u: -u.cost))
        self.ledger, self.cfg, self.outcome, self.watcher = ledger, cfg, outcome, watcher
        self.suspects: deque[Unit] = deque()
        self.crashers: deque[Unit] = deque()
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

    def take(self, in_flight: int, workers: int) -> list[Unit]:
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

    def settle(self, batch: list[Unit], receipt: Receipt) -> None:
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

    def died(self, batch: list[Unit], cause: str, detail: str, *, crashed: bool) -> None:
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

    def lost_node(self, batch: list[Unit]) -> None:
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

    def _fail(self, unit: Unit, trouble: Trouble, again: deque[Unit]) -> None:
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
