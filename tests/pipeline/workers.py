"""Workers for the tests of the engine: what they do is said by the payload."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from configs.errors import MissingWeights
from pipeline.engine.rows import tables
from pipeline.engine.unit import Result

TABLES = {"squares": pa.schema([("number", pa.int64()), ("square", pa.int64())])}
SAID = {"said": pa.schema([("text", pa.string())])}


class Squares:
    """``{"number": n}`` → one row; other keys make trouble or take time."""

    def run(self, payload: dict[str, Any]) -> Result:
        if marks := payload.get("marks"):  # one byte per attempt
            with Path(marks).open("ab") as file:
                file.write(b"x")
        time.sleep(payload.get("sleep", 0))
        self._trouble(payload.get("trouble"), payload.get("marks"))
        number = payload["number"]
        found = tables({"squares": [{"number": number, "square": number**2}]}, TABLES)
        return Result(found, amount=1.0, timings={"square": 0.001})

    def _trouble(self, kind: str | None, marks: str | None) -> None:
        if kind == "raise":
            raise RuntimeError("no such luck with key secret=hunter2")
        if kind == "once" and marks and Path(marks).stat().st_size == 1:
            raise RuntimeError("only the first time")
        if kind == "segfault":
            ctypes.string_at(0)
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hang":
            # Native code that keeps the interpreter's lock: no Python thread can run any more.
            ctypes.PyDLL(None).sleep(10_000)
        if kind == "memory":
            hoard = [bytearray(50 << 20) for _ in range(200)]
            time.sleep(len(hoard))


class NoWeights:
    """A worker that cannot be built."""

    def __init__(self) -> None:
        raise MissingWeights("the weights are not here; fetch them.")


class Where:
    """Says from which files this process imports the packages of this program, and what its stdin is."""

    def run(self, payload: dict[str, Any]) -> Result:
        from pipeline.engine.worker_entry import OWN

        files = [str(importlib.import_module(name).__file__) for name in OWN]
        return Result({"said": pa.table({"text": [*files, Path("/dev/stdin").resolve().as_posix()]})})
