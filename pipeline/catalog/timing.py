"""Seconds per operator, without the operators knowing: what a worker loaded is wrapped so that its calls are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from curation.analysis.registry import Backends

REST = "decode and cuts"
"""What no operator accounts for: decoding, scaling, the search for shots, reading."""


class Stopwatch:
    """CPU seconds of this process by name. Not for calls inside timed calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begin = time.process_time()

    def reset(self) -> None:
        """Start again from nothing."""
        self.seconds.clear()
        self._begin = time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds by name since the last reset, those of no name as :data:`REST`."""
        total = time.process_time() - self._begin
        return self.seconds | {REST: max(0.0, total - sum(self.seconds.values()))}

    def timing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begin

        return timed


class _Timed:
    """Stands for ``inner``; every method is timed, every other attribute is its own."""

    def __init__(self, inner: Any, name: str, watch: Stopwatch) -> None:
        self.__dict__.update(_inner=inner, _name=name, _watch=watch)

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._inner, attribute)
        if not callable(value):
            return value
        timed = self._watch.timing(self._name, value)
        self.__dict__[attribute] = timed  # looked up once
        return timed


def timed(backends: Backends, watch: Stopwatch) -> Backends:
    """The same backends; ``watch`` sums the CPU seconds of each operator under its name."""

    def made(make: Callable[[], Any], name: str) -> Callable[[], Any]:
        return lambda: _Timed(make(), name, watch)

    sync: Any = backends.sync and _Timed(backends.sync, "sync", watch)
    detector: Any = _Timed(backends.detector, "faces", watch)
    return replace(
        backends,
        detector=detector,
        sync=sync,
        frame_operators={name: made(make, name) for name, make in backends.frame_operators.items()},
        sound_operators={name: made(make, name) for name, make in backends.sound_operators.items()},
    )
