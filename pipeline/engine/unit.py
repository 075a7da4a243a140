"""What the engine and a stage exchange: a unit of work, what a worker made of it, and why it was given up."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import pyarrow as pa

Payload_co = TypeVar("Payload_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Unit(Generic[Payload_co]):
    """A piece of work.

    ``id`` must be a pure function of the input (source, span, fingerprint) and be usable as a file name; ``payload`` is
    a small frozen dataclass of the stage that travels to the worker, and the engine does not look into it; ``cost``
    orders units, dearest first, in any consistent measure.
    """

    id: str
    payload: Payload_co
    key: str = ""
    fingerprint: str = ""
    cost: float = 1.0
    budget_s: float = 600.0


@dataclass(frozen=True)
class Result:
    """What a worker made of a unit: tables by name, seconds of video seen, seconds per operator.

    A table has columns of the schema that the stage declared under its name; those that it lacks are null, and a table
    that is left out is empty.
    """

    tables: Mapping[str, pa.Table]
    amount: float = 0.0
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A unit with its result, ready to be committed."""

    unit: Unit[object]
    result: Result
    seconds: float


@dataclass(frozen=True)
class Failure:
    """A unit given up."""

    unit: str
    key: str
    fingerprint: str
    cause: str  # one sentence
    detail: str  # traceback or last words of the process
    attempts: int
    time: float  # Unix time, for people
    run: int = 0  # number of the run, as in the ledger's records; 0: of an older version

    def __post_init__(self) -> None:
        """Raises TypeError: a value of the wrong type, as a damaged file has."""
        for name in ("unit", "key", "fingerprint", "cause", "detail"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"'{name}' is no text")
        if not all(isinstance(getattr(self, name), (int, float)) for name in ("attempts", "time", "run")):
            raise TypeError("a number is none")


def unit_id(*parts: object) -> str:
    """Deterministic id of a unit from what it depends on: 20 hex digits."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:20]
