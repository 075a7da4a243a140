"""What a person sees while units run: one live line with a rate and an ETA, plain lines where there is no terminal.

The same numbers go to ``status.json`` for other programs.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline import store
from pipeline.engine import Receipt
from pipeline.ledger import Failure

_PLAIN_EVERY_S = 10.0
_STATUS_EVERY_S = 5.0


class Progress:
    """An `engine.Watcher`. ``noun`` names the units; ``status`` is where ``status.json`` goes (None: nowhere)."""

    def __init__(self, title: str, noun: str, status: str | None = None, console: Console | None = None) -> None:
        self._title, self._noun, self._status = title, noun, status
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._total = self._before = self._done = 0
        self._failures: list[Failure] = []
        self._amount = 0.0  # seconds of video
        self._memory: dict[str, int] = {"peak": 0}
        self._timings: dict[str, float] = {}
        self._running = (0, 0)
        self._started = self._told = self._wrote = time.monotonic()

    @property
    def timings(self) -> dict[str, float]:
        """Seconds per operator, over all units of this run."""
        return dict(self._timings)

    def begin(self, total: int, done: int) -> None:
        """Before the first unit."""
        self._total, self._before = total, done
        self._started = time.monotonic()
        if done:
            self._console.print(f"{self._title}: {done} of {total} {self._noun} were done before.", highlight=False)
        if self._console.is_terminal and total > done:
            self._live = Live(self._table(), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()

    def update(self, receipt: Receipt | None, in_flight: int, workers: int) -> None:
        """After every receipt, and about once a second."""
        self._running = (in_flight, workers)
        if receipt is not None:
            self._done += len(receipt.done)
            self._memory["peak"] = max(self._memory["peak"], receipt.memory)
            for done in receipt.done:
                self._amount += done.amount
                for name, seconds in done.timings.items():
                    self._timings[name] = self._timings.get(name, 0.0) + seconds
        now = time.monotonic()
        if self._live is not None:
            self._live.update(self._table())
        elif now - self._told >= _PLAIN_EVERY_S:
            self._told = now
            self._console.print(self._line(), highlight=False)
        if self._status and now - self._wrote >= _STATUS_EVERY_S:
            self._wrote = now
            self._write()

    def failed(self, failure: Failure) -> None:
        """A unit went into quarantine."""
        self._failures.append(failure)
        self._console.print(f"set aside: {failure.key}: {failure.cause}", highlight=False, markup=False)

    def end(self) -> None:
        """No more units."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._done:
            self._console.print(self._line(), highlight=False)
        if self._status:
            self._write()

    def _facts(self) -> dict[str, Any]:
        seconds = max(time.monotonic() - self._started, 1e-9)
        left = self._total - self._before - self._done - len(self._failures)
        rate = self._done / seconds
        return {
            "done": self._before + self._done,
            "total": self._total,
            "left": left,
            "failed": len(self._failures),
            "units_per_s": rate,
            "video_hours_per_hour": self._amount / seconds,
            "eta_s": left / rate if rate else None,
            "elapsed_s": seconds,
            "peak_worker_mb": self._memory["peak"] / 2**20,
            "running": self._running[0],
            "workers": self._running[1],
        }

    def _line(self) -> str:
        f = self._facts()
        eta = "?" if f["eta_s"] is None else _clock(f["eta_s"])
        failed = f", {f['failed']} set aside" if f["failed"] else ""
        return (
            f"{self._title}: {f['done']}/{f['total']} {self._noun}{failed}, {f['units_per_s']:.2f}/s, "
            f"{f['video_hours_per_hour']:.1f} video hours an hour, {eta} left"
        )

    def _table(self) -> Table:
        f = self._facts()
        table = Table(title=self._title, title_justify="left", show_header=True, header_style="bold")
        for name in (self._noun, "left", "set aside", "video h / h", "ETA", "workers", "peak memory"):
            table.add_column(name, justify="right")
        eta = "?" if f["eta_s"] is None else _clock(f["eta_s"])
        table.add_row(
            f"{f['done']}/{f['total']}", str(f["left"]), str(f["failed"]), f"{f['video_hours_per_hour']:.1f}", eta,
            str(f["workers"]), f"{f['peak_worker_mb']:.0f} MB",
        )  # fmt: skip
        return table

    def _write(self) -> None:
        assert self._status is not None
        store.write_bytes(self._status, json.dumps(self._facts(), indent=1).encode())


def plain_console() -> Console:
    """Where progress goes: standard error, so that results can be piped."""
    return Console(file=sys.stderr)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
