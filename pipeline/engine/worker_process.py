"""A Ray worker once it has chosen its packages (`worker_entry`): it builds its worker, runs batches, and watches itself."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from configs.errors import EchoForgeError
from pipeline.engine.batch import Worker, run_batch
from pipeline.engine.ledger import Ledger
from pipeline.engine.schedule import EngineError, Receipt
from pipeline.engine.unit import Unit


def memory() -> int:
    """Resident bytes of this process (its peak where the system does not tell)."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class WorkerProcess:
    """Builds its worker once, runs batches, and ends its process rather than hang or use up the machine's memory."""

    def __init__(self, shared: tuple[Callable[[], Worker[Any]], Ledger], code: str, words: str, limit: int) -> None:
        self._make, self._ledger = shared
        self._code, self._limit = code, limit
        self._worker: Worker[Any] | None = None
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

    def run(self, units: list[Unit[Any]]) -> Receipt:
        """Run and commit a batch."""
        assert self._worker is not None
        receipt = run_batch(self._worker, units, self._ledger, self._code, self._guard)
        receipt.memory = memory()
        return receipt

    @contextlib.contextmanager
    def _guard(self, unit: Unit[Any]) -> Iterator[None]:
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
