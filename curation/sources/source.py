"""One video to curate, and the stretches of it that are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from configs.errors import EchoForgeError

_LONGEST_S = 1e6  # eleven days: no span of a video ends later


@dataclass(frozen=True, slots=True)
class Source:
    """One video to curate. ``spans`` are seconds [start, end) to look at; none: all of it."""

    uri: str
    source: str = ""  # name of the collection it belongs to
    licence: str | None = None
    spans: tuple[tuple[float, float], ...] = ()
    caption: str | None = None
    speaker: str | None = None
    region: tuple[int, int, int, int, int] | None = None  # x, y, w, h where the speaker is, and for what height that is
    root: str = ""  # folder that was named and searched; empty: another kind of source
    fault: str | None = None  # why it cannot be looked at, where a manifest says so already


def span_of(start: Any, end: Any, where: str) -> tuple[float, float]:
    """Seconds [start, end), from text or numbers; ``where`` they stand, for the message.

    Raises:
        EchoForgeError: no two numbers in order, or beyond what a video lasts.
    """
    try:
        span = float(start), float(end)
    except (ValueError, TypeError, OverflowError) as error:
        raise EchoForgeError(f"{where} has the span {start!r:.40}–{end!r:.40}; start and end are seconds.") from error
    if not 0 <= span[0] < span[1] <= _LONGEST_S:
        raise EchoForgeError(
            f"{where} has the span {start!s:.40}–{end!s:.40}; the end must lie after the start, and before {_LONGEST_S:.0f} s."
        )
    return span
