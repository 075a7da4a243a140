"""metrics.jsonl: one JSON object per line, and one printed line with rate and remaining time.

Lines have ``kind``: `step` (means over the steps since the last line), `validation`, `early_end`. After a resume the
lines of steps that will be done again are dropped, so a reader never meets a step twice.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from configs.errors import EchoForgeError
from configs.runtime import disk
from configs.runtime.shown import visible
from train.checkpoints import files

METRICS_FILE = "metrics.jsonl"
_MAX_LINE = 2**20  # bytes; a real line has hundreds


Value = str | float | bool


@dataclass(frozen=True)
class LogLine:
    """One line of the file.

    Attributes:
        step: steps done.
        time: seconds since 1970.
        values: what was measured, by name.
    """

    kind: str
    step: int
    time: float
    values: Mapping[str, Value]

    def number(self, name: str) -> float:
        """The number under ``name``. Raises KeyError where the line has none."""
        return float(self.values[name])

    def to_json(self) -> str:
        """Floats that are not finite are written as text, so that the line stays JSON."""
        clean = {k: (str(v) if isinstance(v, float) and v - v != 0 else v) for k, v in self.values.items()}
        return json.dumps({"kind": self.kind, "step": self.step, "time": self.time} | clean)

    @classmethod
    def from_json(cls, text: bytes) -> LogLine | None:
        """What :meth:`to_json` wrote; None where ``text`` is no such line."""
        try:
            values = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError):
            return None
        if not isinstance(values, dict) or type(step := values.pop("step", 0)) is not int:
            return None
        return cls(values.pop("kind", ""), step, values.pop("time", 0.0), values)


class Tally:
    """Means of named per-sample values; tensors are kept as they are until :meth:`means`, so adding never waits."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, values: Tensor) -> None:
        """Add one value per sample, float [n]."""
        self._values[name].append(values.detach().float().reshape(-1))

    def add_by(self, name: str, labels: Sequence[str], values: Tensor) -> None:
        """Add value i under ``name/labels[i]``."""
        for label in sorted(set(labels)):
            picked = [i for i, other in enumerate(labels) if other == label]
            self.add(f"{name}/{label}", values.detach()[picked])

    def means(self) -> dict[str, float]:
        """Mean over the samples of all ranks, by name; then empty."""
        sums = {n: [float(t.double().sum()), t.numel()] for n, v in self._values.items() for t in [torch.cat(v)]}
        self._values.clear()
        if dist.is_initialized() and dist.get_world_size() > 1:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, sums)
            sums = {}
            for part in gathered:
                for name, (total, count) in part.items():
                    entry = sums.setdefault(name, [0.0, 0])
                    entry[0] += total
                    entry[1] += count
        return {name: total / count for name, (total, count) in sorted(sums.items()) if count}


def sigma_bins(sigma: Tensor, bins: int) -> list[str]:
    """The label of each sigma's bin of equal width over [0, 1], e.g. ``t0.2-0.4``."""
    index = (sigma.clamp(0, 1) * bins).long().clamp(max=bins - 1).tolist()
    return [f"t{i / bins:.2g}-{(i + 1) / bins:.2g}" for i in index]


class Pace:
    """Seconds per step, as a running mean over the last ``window`` steps, and the time that is left.

    The first step is left out: it compiles and warms up, and is no measure of the others.
    """

    def __init__(self, window: int) -> None:
        self._steps: deque[float] = deque(maxlen=window)
        self._first = True

    def add(self, seconds: float) -> None:
        """A step took so long, with the held-out loss and the checkpoint before it."""
        if not self._first:
            self._steps.append(seconds)
        self._first = False

    @property
    def step_seconds(self) -> float | None:
        """The mean; None until the second step."""
        return sum(self._steps) / len(self._steps) if self._steps else None

    def left(self, steps: int) -> float | None:
        """Seconds that ``steps`` more will take; None until the second step."""
        return None if self.step_seconds is None else steps * self.step_seconds


class Log:
    """Appends to ``RUN/metrics.jsonl`` (rank 0 only; others pass ``out=None``) and tells ``say`` what happens."""

    def __init__(self, out: Path | None, say: Callable[[str], None] | None = None) -> None:
        self.path = out / METRICS_FILE if out is not None else None
        self.say = (lambda line: say(visible(line))) if say is not None and out is not None else (lambda _: None)

    def rewind(self, step: int | None) -> None:
        """Drop the lines of steps after ``step``, which will be done again; all of them where nothing was committed.

        Raises:
            EchoForgeError: the file is damaged.
        """
        if self.path is None or not os.path.lexists(self.path):
            return
        kept = [] if step is None else [text for text, line in _lines(self.path) if line.step <= step]
        part = self.path.with_suffix(".part")
        with disk.refused(self.path):
            files.write_new(part, "".join(f"{text}\n" for text in kept))
            part.replace(self.path)

    def write(self, kind: str, step: int, values: Mapping[str, Value]) -> None:
        """Append one line."""
        if self.path is None:
            return
        line = LogLine(kind, step, round(time.time(), 3), values)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with disk.refused(self.path), os.fdopen(os.open(self.path, flags, 0o666), "a", encoding="utf-8") as file:
            file.write(line.to_json() + "\n")

    def progress(self, step: int, until: int, stage: str, loss: float, pace: Pace) -> None:
        """Print the state of a stage that goes on to step ``until``, its end or that of ``--steps``."""
        state = f"{stage}  step {step}/{until}  loss {loss:.4f}"
        mean, left = pace.step_seconds, pace.left(until - step)
        if mean and left is not None:
            state += f"  {1 / mean:.2f} steps/s  {_clock(left)} left"
        self.say(state)


def read_metrics(path: Path) -> list[LogLine]:
    """All whole lines of a metrics file; a last line that was cut off by a kill is left out.

    Raises:
        EchoForgeError: another line is damaged.
    """
    return [line for _, line in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[str, LogLine]]:
    """Each whole line, as it stands there and as it reads."""
    try:
        with files.open_binary(path) as file:
            for number in itertools.count(1):
                text = file.readline(_MAX_LINE)
                if not text:
                    return
                line = LogLine.from_json(text)
                if line is not None:
                    yield text.decode().rstrip("\n"), line
                elif file.read(1) or len(text) == _MAX_LINE:
                    raise EchoForgeError(f"{path} is damaged in line {number}; delete that line, or the whole file.")
    except OSError as error:
        raise EchoForgeError(
            f"{path} cannot be read: {files.reason(error)}; put the file there, or delete it."
        ) from error


def of_kind(lines: Iterable[LogLine], kind: str) -> list[LogLine]:
    """The lines of one kind, in order."""
    return [line for line in lines if line.kind == kind]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
