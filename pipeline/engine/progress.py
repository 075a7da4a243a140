"""What a person sees while units run: one live table with a rate and an ETA, plain lines where there is no terminal.

The same numbers go to ``status.json`` for other programs.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass

from rich.live import Live
from rich.table import Table
from rich.text import Text

from configs.runtime.console import Terminal
from configs.runtime.shown import one_line
from pipeline import storage
from pipeline.engine.schedule import Receipt
from pipeline.engine.unit import Failure

_PLAIN_EVERY_S = 10.0
_STATUS_EVERY_S = 5.0
_OPERATORS = 8  # shown, the dearest first


@dataclass(frozen=True)
class SetAside:
    """A unit that was given up."""

    key: str
    cause: str


@dataclass(frozen=True)
class RunStatus:
    """How far a run is, as ``status.json`` holds it."""

    state: str  # starting | running | ended
    done: int  # those done before this run included
    total: int
    left: int
    failed: int
    failures: tuple[SetAside, ...]  # the last 20
    units_per_s: float
    video_hours_per_hour: float
    eta_s: float | None
    elapsed_s: float
    peak_worker_mb: float
    running: int  # batches at work
    workers: int
    operators: dict[str, float]  # share of the time, 0..1
    dashboard: str | None  # address of Ray's
    pid: int
    time: float  # Unix time


class Progress:
    """An `engine.Watcher`. ``noun`` names the units; ``status`` is where ``status.json`` goes (None: nowhere)."""

    def __init__(self, title: str, noun: str, status: str | None = None, console: Terminal | None = None) -> None:
        self._title, self._noun, self._status = title, noun, status
        self._console = console or Terminal(stderr=True)
        self._live: Live | None = None
        self._total = self._before = self._done = 0
        self._share = 0.0  # of the work that was missing
        self._failures: list[Failure] = []
        self._amount = 0.0  # seconds of video
        self._memory = 0
        self._timings: dict[str, float] = {}
        self._running = (0, 0)
        self._dashboard: str | None = None
        self._state = "starting"
        self._started = self._told = self._wrote = time.monotonic()
        self._at_work: float | None = None  # when the first unit began: Ray and the networks had started

    @property
    def timings(self) -> dict[str, float]:
        """Seconds per operator, over all units of this run."""
        return dict(self._timings)

    def begin(self, total: int, done: int) -> None:
        """Before the first unit."""
        self._total, self._before, self._state = total, done, "running"
        self._started = time.monotonic()
        if done:
            self._print(f"{self._title}: {done} of {total} {self._noun} were done before.")
        if not self._console.is_terminal and total > done:
            self._print(f"{self._title}: {total - done} {self._noun} to do")
        if self._console.is_terminal and total > done:
            self._live = Live(self._table(), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        self._write()

    def linked(self, dashboard: str) -> None:
        """Ray's dashboard is at this address."""
        self._dashboard = dashboard
        self._print(f"Ray's dashboard: {dashboard}")

    def update(self, receipt: Receipt | None, in_flight: int, workers: int) -> None:
        """After every receipt, and about once a second."""
        self._running = (in_flight, workers)
        if self._at_work is None and (in_flight or receipt):
            self._at_work = self._started if receipt else time.monotonic()
        if receipt is not None:
            self._done += len(receipt.done)
            self._memory = max(self._memory, receipt.memory)
            for done in receipt.done:
                self._amount += done.amount
                self._share += done.share
                for name, seconds in done.timings.items():
                    self._timings[name] = self._timings.get(name, 0.0) + seconds
        now = time.monotonic()
        if self._live is None and now - self._told >= _PLAIN_EVERY_S:
            self._told = now
            self._print(self._line())
        if now - self._wrote >= _STATUS_EVERY_S:
            self._wrote = now
            self._write()
        if self._live is not None:
            self._live.update(self._table())

    def failed(self, failure: Failure) -> None:
        """A unit went into quarantine."""
        self._failures.append(failure)
        self._print(f"set aside: {one_line(failure.key)}: {one_line(failure.cause)}")

    def end(self) -> None:
        """No more units."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._done:
            self._print(self._line(), wrap=True)
            if shares := self._shares():
                self._print(f"{self._title}: time went to {shares}", wrap=True)
        self._state = "ended"
        self._write()

    def now(self) -> RunStatus:
        """The numbers of this moment."""
        now = time.monotonic()
        seconds = max(now - self._started, 1e-9)
        worked = now - (self._at_work or self._started)
        whole = sum(self._timings.values())
        ended = self._state == "ended"
        return RunStatus(
            state=self._state,
            done=self._before + self._done,
            total=self._total,
            left=self._total - self._before - self._done - len(self._failures),
            failed=len(self._failures),
            failures=tuple(SetAside(f.key, f.cause) for f in self._failures[-20:]),
            units_per_s=self._done / seconds,
            video_hours_per_hour=self._amount / seconds,
            eta_s=None if ended or not self._share else worked * max(0.0, 1.0 - self._share) / self._share,
            elapsed_s=seconds,
            peak_worker_mb=self._memory / 2**20,
            running=self._running[0],
            workers=self._running[1],
            operators={name: value / whole for name, value in self._timings.items()} if whole else {},
            dashboard=self._dashboard,
            pid=os.getpid(),
            time=time.time(),
        )

    def _line(self) -> str:
        f = self.now()
        if not self._done and self._state == "running":
            return f"{self._title}: {f.done}/{f.total} {self._noun}, {f.running} at work, none has ended yet"
        eta = f"{_clock(f.eta_s)} left, " if f.eta_s else ""
        failed = f", {f.failed} set aside" if f.failed else ""
        return (
            f"{self._title}: {f.done}/{f.total} {self._noun}{failed}, {f.units_per_s:.2f}/s, "
            f"{f.video_hours_per_hour:.1f} video hours an hour, {eta}{f.peak_worker_mb:.0f} MB a worker"
        )

    def _shares(self) -> str:
        shares = self.now().operators
        dearest = sorted(shares, key=lambda name: -shares[name])[:_OPERATORS]
        return " · ".join(f"{name} {shares[name]:.0%}" for name in dearest)

    def _table(self) -> Table:
        f = self.now()
        notes = [f"time: {shares}"] if (shares := self._shares()) else []
        notes += [f"dashboard: {self._dashboard}"] if self._dashboard else []
        table = Table(title=self._title, title_justify="left", caption_justify="left", header_style="bold")
        table.caption = Text("\n".join(notes)) if notes else None
        for name in (self._noun, "left", "set aside", "video h/h", "ETA", "at work", "memory"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_row(
            f"{f.done}/{f.total}", str(f.left), str(f.failed), f"{f.video_hours_per_hour:.1f}",
            "…" if f.eta_s is None else _clock(f.eta_s), f"{f.running} of {f.workers}",
            f"{f.peak_worker_mb:.0f} MB",
        )  # fmt: skip
        return table

    def _print(self, text: str, wrap: bool = False) -> None:
        """``wrap``: between words at the terminal's width; what names files stays whole, to be copied."""
        whole = not (wrap and self._console.is_terminal)
        self._console.print(text, soft_wrap=whole)

    def _write(self) -> None:
        if self._status:
            storage.write_bytes(self._status, json.dumps(asdict(self.now()), indent=1).encode())


def say(line: str) -> None:
    """A line, where progress goes."""
    Terminal(stderr=True).say(line)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
