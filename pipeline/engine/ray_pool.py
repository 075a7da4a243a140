"""Workers as Ray actors: one per slot, one batch in flight each, replaced when they die, hang or grow.

Ray Core and not Ray Data, because a unit takes seconds to hours, pixels stay inside the actor that decodes them, and
the commit log is ours: a Dataset would add blocks in the object store and a second notion of progress.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import math
import os
import re
import resource
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from configs.errors import EchoForgeError
from configs.runtime import scratch, stopping
from pipeline.config import ExecutionConfig, WorkerShare
from pipeline.engine import worker_entry
from pipeline.engine.ledger import Ledger
from pipeline.engine.runner import EngineError, Receipt, Schedule, Worker, run_batch
from pipeline.engine.unit import Unit
from pipeline.engine.version import code_version

_GRACE_S = 30.0
"""The driver kills a worker that is so much over its budget: its own timer must have failed."""
_GROWN = 1.25
"""A worker above its memory share is replaced only when it grew so much: one that starts large would start so again."""
_RAY_FOLDER = 42
"""Longest path of Ray's folder: a socket's path ends at 107 characters (unix(7)), of which Ray's own
``/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store`` takes 65."""
_STARTS = 3
"""So many workers in a row that die while they start end the run."""


def run_on_ray(
    schedule: Schedule,
    make_worker: Callable[[], Worker],
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


@contextlib.contextmanager
def session(
    address: str | None, share: WorkerShare, object_store_mb: int, *, dashboard: bool = False
) -> Iterator[str | None]:
    """A Ray that is there already, the cluster at ``address``, or one started in this process and ended with it.

    Args:
        dashboard: of a Ray started here.

    Yields:
        The address of the dashboard, if one is on.

    Raises:
        EngineError: Ray does not start, or the cluster cannot be joined.
    """
    if dashboard and not address and find_spec("aiohttp_cors") is None:
        raise EngineError(
            "execution.dashboard is on, but Ray's dashboard is not installed: pip install 'ray[default]'."
        )
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray prints a paragraph about every dead worker into the middle of the progress; the ledger has the cause.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker died or was killed")
    import ray

    if ray.is_initialized():
        yield None
        return
    if address:
        check_address(address)
    else:
        _give_token()
    stopping.check()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    own = contextlib.ExitStack()
    try:
        if address:
            with _own_signals():
                context = ray.init(address=address, **quiet)
        else:
            folder = own.enter_context(scratch.folder(_RAY_FOLDER))  # Ray opens its folder to all; the one above is not
            with _for_itself(dashboard), _own_signals():
                context = ray.init(
                    address="local",
                    num_cpus=max(_cpus(), math.ceil(share.cpus * max(1, share.count))),
                    object_store_memory=object_store_mb * 2**20,
                    include_dashboard=dashboard,
                    _temp_dir=str(folder),
                    **quiet,
                )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        own.close()
        stopping.check()  # the signal may have reached Ray's processes, too
        place = f"joining the Ray cluster at '{address}'" if address else "starting Ray in this process"
        said = " ".join(str(error).split()).rstrip(".")
        if address and "ersion mismatch" in said:  # ray._private.utils.check_version_info
            remedy = "run the same Ray and Python here and on every node, or leave --ray-address out"
            raise EngineError(f"{place} failed: {said}; {remedy}.") from error
        if address and os.environ.get("RAY_AUTH_MODE") != "token":  # never sent to an address by itself: it is a secret
            said += "; if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as on its nodes"
        raise EngineError(f"{place} failed: {said}. --inline runs without Ray.") from error
    try:
        yield _dashboard(context.dashboard_url)
    finally:
        ray.shutdown()
        own.close()


@contextlib.contextmanager
def _for_itself(dashboard: bool) -> Iterator[None]:
    """Start Ray for this process alone: reached over loopback only, and asking nobody where it runs.

    Ray listens on the machine's address unless it takes itself for one that cannot form clusters. Without a dashboard
    its API server does nothing but report usage, and looks for the metadata services of three clouds before it reads
    that it must not (``ray.dashboard.modules.usage_stats``, 2.60).
    """
    from ray._private import node, ray_constants

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False))
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for Ray's other processes
        stack.callback(os.environ.pop, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
        if not dashboard:
            stack.enter_context(mock.patch.object(node.Node, "start_api_server", lambda *_, **__: None))
        yield


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this program's handlers while Ray starts, if it listens.

    Ray's handlers of SIGTERM end this process wherever it is, and that of its C++ core prints a stack and aborts.
    """
    if not stopping.listens():
        yield
        return
    from ray._private import utils

    theirs, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = theirs
        stopping.listen()


def _give_token() -> None:
    """Give Ray a token of this process; it would leave one in the home folder, for every later Ray of this user."""
    if not (Path(os.environ.get("HOME") or "/") / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def check_address(address: str) -> None:
    """Check that something answers at ``address``; Ray itself would try for minutes.

    Raises:
        EngineError: it is no address, or nothing answers.
    """
    if address in ("auto", "local"):
        return  # Ray knows where to look
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise EngineError(f"Ray address '{address}' is not of the form HOST:PORT, ray://HOST:PORT or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise EngineError(
            f"no Ray cluster answers at '{address}' ({error}); start one with `ray start --head`, or leave "
            "--ray-address out to run on this machine."
        ) from error


def _this_code() -> dict[str, Any]:
    """What `worker_entry.Slot` must know of the driver's code."""
    root = str(Path(__file__).resolve().parents[2])
    mine = {os.path.realpath(place or os.curdir) for place in sys.path}
    given = str(Path.cwd())  # Ray puts it on the workers' module path, whether it is on the driver's or not
    return {
        "root": root,
        "digest": worker_entry.code_digest(root),
        "version": code_version(),
        "strangers": [] if os.path.realpath(given) in mine else [given],
    }


def _dashboard(url: str | None) -> str | None:
    return url and (url if "://" in url else f"http://{url}")


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Resident bytes of this process (its peak where the system does not tell)."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --------------------------------------------------------------------------------------------- in the worker


class WorkerProcess:
    """Builds its worker once, runs batches, and ends its process rather than hang or use up the machine's memory."""

    def __init__(self, shared: tuple[Callable[[], Worker], Ledger], code: str, words: str, limit: int) -> None:
        self._make, self._ledger = shared
        self._code, self._limit = code, limit
        self._worker: Worker | None = None
        # Last words go to a file of this machine that the driver reads when it runs on the same one.
        here = Path(words).parent.is_dir()
        self._words = (Path(words) if here else Path(os.devnull)).open("w", encoding="utf-8")
        faulthandler.enable(self._words)

    def start(self) -> EchoForgeError | None:
        """Build the worker. Returns what went wrong."""
        threading.Thread(target=self._watch_memory, daemon=True).start()
        try:
            self._worker = self._make()
        except EchoForgeError as error:
            return error
        except Exception as error:
            return EngineError(f"a worker could not be built: {type(error).__name__}: {error}.")
        return None

    def run(self, units: list[Unit]) -> Receipt:
        """Run and commit a batch."""
        assert self._worker is not None
        receipt = run_batch(self._worker, units, self._ledger, self._code, self._guard)
        receipt.memory = memory()
        return receipt

    @contextlib.contextmanager
    def _guard(self, unit: Unit) -> Iterator[None]:
        # A C thread, so it fires even when native code hangs while it holds the interpreter's lock.
        faulthandler.dump_traceback_later(unit.budget_s, exit=True, file=self._words)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _watch_memory(self) -> None:
        while True:
            if (used := memory()) > self._limit:
                self._words.write(f"memory: {used >> 20} MB used, {self._limit >> 20} MB allowed\n")
                self._words.flush()
                os._exit(1)
            time.sleep(0.25)


# --------------------------------------------------------------------------------------------- in the driver


@dataclass
class _Running:
    """One actor and what it is doing."""

    actor: Any
    words: Path
    ref: Any
    node: str = ""
    batch: list[Unit] = field(default_factory=list)
    since: float = 0.0
    first: int = 0  # resident bytes after its first batch
    killed: bool = False  # by the driver, for exceeding its budget

    @property
    def allowed(self) -> float:
        return sum(unit.budget_s for unit in self.batch) + _GRACE_S


class _Pool:
    def __init__(
        self, schedule: Schedule, make_worker: Callable[[], Worker], ledger: Ledger, share: WorkerShare, words: Path
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
