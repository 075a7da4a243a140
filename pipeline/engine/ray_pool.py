"""Workers as Ray actors: one per slot, one batch in flight each, replaced when they die, hang or grow.

Ray Core and not Ray Data, because a unit takes seconds to hours, pixels stay inside the actor that decodes them, and
the commit log is ours: a Dataset would add blocks in the object store and a second notion of progress.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.runtime import scratch, stopping
from pipeline.config import ExecutionConfig, WorkerShare
from pipeline.engine import worker_entry
from pipeline.engine.batch import Worker
from pipeline.engine.ledger import Ledger
from pipeline.engine.ray_session import session
from pipeline.engine.schedule import EngineError, Receipt, Schedule
from pipeline.engine.unit import Unit
from pipeline.engine.version import code_version

_GRACE_S = 30.0
"""The driver kills a worker that is so much over its budget: its own timer must have failed."""
_GROWN = 1.25
"""A worker above its memory share is replaced only when it grew so much: one that starts large would start so again."""
_STARTS = 3
"""So many workers in a row that die while they start end the run."""


def run_on_ray(
    schedule: Schedule,
    make_worker: Callable[[], Worker[Any]],
    ledger: Ledger,
    share: WorkerShare,
    cfg: ExecutionConfig,
    address: str | None,
) -> None:
    """Work through ``schedule`` on Ray actors.

    Raises:
        EngineError: no node has room for one worker, or workers cannot start.
        EchoForgeError: what the worker's start or a commit raised.
    """
    with (
        session(address, share, cfg.object_store_mb, dashboard=cfg.dashboard) as dashboard,
        scratch.folder() as words,
    ):
        schedule.linked(dashboard)
        pool = _Pool(schedule, make_worker, ledger, share, words)
        try:
            pool.work()
        except pool.ray.exceptions.RayError:
            if not stopping.requested():  # the signal may have ended Ray's processes, too
                raise
        finally:
            pool.close()


def _this_code() -> worker_entry.Driver:
    """What a worker must know of this process's code."""
    root = str(Path(__file__).resolve().parents[2])
    mine = {os.path.realpath(place or os.curdir) for place in sys.path}
    given = str(Path.cwd())  # Ray puts it on the workers' module path, whether it is on the driver's or not
    strangers = () if os.path.realpath(given) in mine else (given,)
    return worker_entry.Driver(root, worker_entry.code_digest(root), code_version(), strangers)


@dataclass
class _Running:
    """One actor and what it is doing."""

    actor: Any
    words: Path
    ref: Any
    node: str = ""
    batch: list[Unit[Any]] = field(default_factory=list)
    since: float = 0.0
    first: int = 0  # resident bytes after its first batch
    killed: bool = False  # by the driver, for exceeding its budget

    @property
    def allowed(self) -> float:
        return sum(unit.budget_s for unit in self.batch) + _GRACE_S


class _Pool:
    def __init__(
        self,
        schedule: Schedule,
        make_worker: Callable[[], Worker[Any]],
        ledger: Ledger,
        share: WorkerShare,
        words: Path,
    ) -> None:
        import ray

        self.ray, self.schedule, self.share, self.words = ray, schedule, share, words
        self.shared = ray.put((make_worker, ledger))
        ray.cloudpickle.register_pickle_by_value(worker_entry)
        self.actor_class: Any = ray.remote(worker_entry.Slot)
        self.code = _this_code()
        self.busy: dict[Any, _Running] = {}
        self.idle: list[_Running] = []
        self.bad_starts = 0
        self.made = 0
        self.target, self.counted = 0, -math.inf

    def work(self) -> None:
        while len(self.schedule) or self._in_flight():  # a worker that is only starting is not waited for
            if stopping.requested():
                self._drain()
                return
            self._grow()
            self._dispatch()
            ready, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=1.0)
            if ready and len(self.busy) > 1:
                ready, _ = self.ray.wait(list(self.busy), num_returns=len(self.busy), timeout=0)
            for ref in ready:
                self._receive(self.busy.pop(ref))
            self._enforce_budgets()
            self.schedule.tick(self._in_flight(), len(self.busy) + len(self.idle))

    def _drain(self) -> None:
        """Let the batches at work end, for a bounded time. The signal may have ended parts of Ray as well."""
        until = time.monotonic() + stopping.GRACE_S
        while self._in_flight() and (left := until - time.monotonic()) > 0:
            working = [ref for ref, running in self.busy.items() if running.batch]
            ready, _ = self.ray.wait(working, num_returns=1, timeout=min(1.0, left))
            for ref in ready:
                self._receive(self.busy.pop(ref))
            self.schedule.tick(self._in_flight(), len(self.busy) + len(self.idle))

    def close(self) -> None:
        for running in [*self.busy.values(), *self.idle]:
            with contextlib.suppress(self.ray.exceptions.RayError):  # it is gone already
                self.ray.kill(running.actor, no_restart=True)

    def _in_flight(self) -> int:
        return sum(bool(running.batch) for running in self.busy.values())

    def _grow(self) -> None:
        if time.monotonic() - self.counted > 5.0:
            self.target, self.counted = self._room(), time.monotonic()
        wanted = min(self.target, len(self.schedule))
        while len(self.busy) + len(self.idle) < wanted:
            self.made += 1
            words = self.words / str(self.made)
            share = self.share
            actor = self.actor_class.options(
                num_cpus=share.cpus,
                num_gpus=share.gpus,
                memory=share.memory_mb * 2**20,
                max_restarts=0,
                scheduling_strategy="SPREAD",
            ).remote(self.code, [self.shared], str(words), share.memory_limit_mb * 2**20)
            ref = actor.start.remote()
            self.busy[ref] = _Running(actor, words, ref, since=time.monotonic())

    def _room(self) -> int:
        """How many workers the living nodes can hold, at most ``share.count``."""
        share = self.share
        room = sum(places(node["Resources"], share) for node in self.ray.nodes() if node["Alive"])
        if room == 0 and not self.busy and not self.idle:
            raise EngineError(
                f"no machine has room for one worker of {share.cpus:g} CPUs, {share.gpus:g} GPUs and "
                f"{share.memory_mb} MB: lower them (keys execution.curate, execution.shard or gather.share), or join a larger cluster."
            )
        return min(room, share.count) if share.count else room

    def _dispatch(self) -> None:
        while self.idle:
            batch = self.schedule.take(self._in_flight(), max(1, self.target))
            if not batch:
                return
            running = self.idle.pop()
            running.batch, running.since = batch, time.monotonic()
            running.ref = running.actor.run.remote(batch)
            self.busy[running.ref] = running

    def _receive(self, running: _Running) -> None:
        try:
            answer = self.ray.get(running.ref)
        except self.ray.exceptions.RayError as error:
            self._bury(running, error)
            return
        if isinstance(answer, Receipt):
            batch, running.batch = running.batch, []
            running.first = running.first or answer.memory
            if answer.memory > max(self.share.memory_mb * 2**20, _GROWN * running.first):
                self.ray.kill(running.actor, no_restart=True)  # it grew: the next one starts small
            else:
                self.idle.append(running)
            self.schedule.settle(batch, answer)
            return
        running.node, trouble = answer
        if trouble:
            raise EngineError(trouble) if isinstance(trouble, str) else trouble
        self.bad_starts = 0
        self.idle.append(running)

    def _bury(self, running: _Running, error: Exception) -> None:
        if stopping.requested():
            return  # the signal may have reached it, too: no fault of a unit
        lost = bool(running.node) and running.node not in {n["NodeID"] for n in self.ray.nodes() if n["Alive"]}
        if not running.batch:
            self.bad_starts += not lost
            if self.bad_starts >= _STARTS:
                raise EngineError(f"workers die while they start: {_last_words(running, error)[0]}") from error
        elif lost:
            self.counted = -math.inf
            self.schedule.lost_node(running.batch)
        else:
            cause, detail, crashed = _last_words(running, error)
            self.schedule.died(running.batch, cause, detail, crashed=crashed)

    def _enforce_budgets(self) -> None:
        now = time.monotonic()
        for running in self.busy.values():
            if running.batch and not running.killed and now - running.since > running.allowed:
                running.killed = True
                self.ray.kill(running.actor, no_restart=True)


def places(has: Mapping[str, float], share: WorkerShare) -> int:
    """How many workers fit a machine with these Ray resources. A fraction of a GPU lies on one GPU."""
    nearly = 1e-6  # 1 // 0.1 is 9
    limits = [has.get("memory", 0.0) / (share.memory_mb * 2**20)]
    if share.cpus:
        limits.append(has.get("CPU", 0.0) / share.cpus)
    if 0 < share.gpus < 1:
        limits.append(int(has.get("GPU", 0.0)) * int(1 / share.gpus + nearly))
    elif share.gpus:
        limits.append(has.get("GPU", 0.0) / share.gpus)
    return int(min(limits) + nearly)


def _last_words(running: _Running, error: Exception) -> tuple[str, str, bool]:
    """One sentence on why a worker died, the detail, and whether it crashed by itself."""
    words = running.words.read_text("utf-8", "replace") if running.words.is_file() else ""
    elapsed = time.monotonic() - running.since
    detail = words or str(error)
    budget = max((unit.budget_s for unit in running.batch), default=math.inf)
    if running.killed or "Timeout (" in words or (not words and elapsed >= budget):
        return f"it hung: still not done after its time budget of {budget:g} s.", detail, False
    if match := re.match(r"memory: (.*)", words):
        return f"it ran out of memory: {match[1]}.", detail, True
    if match := re.search(r"Fatal Python error: (.*)", words):
        return f"it crashed its process: {match[1]}.", detail, True
    if "OutOfMemory" in type(error).__name__ or "running low on memory" in str(error):
        return "it ran out of memory: the machine was nearly full and Ray ended the process.", detail, True
    return "it ended its process without a word (killed from outside, or native code called exit).", detail, True
