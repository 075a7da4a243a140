"""Runs units of work and commits what comes out: on Ray actors, or in this process with equal results.

A stage gives units (`pipeline.engine.unit.Unit`), a function that makes its worker, and a ledger; the engine does the
rest::

    outcome = run(units, functools.partial(MyWorker, config), ledger, share, execution)

* The worker is built once per process (networks load once); its ``run(payload)`` returns tables (`unit.Result`).
  A stage with large outputs writes them itself, atomically and under names that depend on the unit alone
  (`storage.writing`), and returns only small rows about them.
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

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from configs.runtime import stopping
from pipeline.config import ExecutionConfig, WorkerShare
from pipeline.engine.batch import Worker, run_batch
from pipeline.engine.ledger import Ledger
from pipeline.engine.schedule import Outcome, Schedule, Watcher
from pipeline.engine.unit import Unit
from pipeline.engine.version import code_version

Payload = TypeVar("Payload")


def run(
    units: Sequence[Unit[Payload]],
    make_worker: Callable[[], Worker[Payload]],
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


def _run_inline(schedule: Schedule, make_worker: Callable[[], Worker[Payload]], ledger: Ledger) -> None:
    worker, code = make_worker(), code_version()
    while not stopping.requested() and (batch := schedule.take(in_flight=0, workers=1)):
        schedule.settle(batch, run_batch(worker, batch, ledger, code))
        schedule.tick(0, 1)
