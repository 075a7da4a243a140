"""Ctrl-C and SIGTERM as a request to stop: noted when they come, honoured where nothing is left half done.

The command line listens; whoever works for long asks between two pieces of work::

    for video in videos:
        check()          # raises Stopped once a stop was requested

A handler that raises would be simpler, and wrong: its exception appears at any line, so in a callback of native code it
ends the process with a C++ dump, and in an import it becomes a missing module. The second signal ends the process at
once; what that leaves is what ``kill -9`` leaves, and every command goes on from there.

In processes that do not listen (Ray's workers, programs that import these packages) nothing is ever requested.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 20.0
"""So long may work that was begun go on: Kubernetes kills 30 s after SIGTERM, and Ray takes some seconds to end."""
_ECHO_S = 1.0
"""What comes so soon after the first signal is the same request: timeout(1) signals its child and then the child's group."""
_HEARD = b"stopping: what has begun may end first; once more ends at once.\n"


class Stopped(BaseException):
    """A stop was requested, and this is a safe place for it. The message says what was done and stays ('' if nothing).

    Not an `Exception`: what handles the failure of a unit must not take a stop for one.
    """


class _State:
    """``first``: the signal that asked, and when (monotonic). ``listening``: handlers of this module are installed."""

    first: tuple[signal.Signals, float] | None = None
    listening = False


def launched() -> bool:
    """Whether a launcher such as torchrun started this process as one of several ranks."""
    return "RANK" in os.environ


def requested() -> signal.Signals | None:
    """The signal that asked for a stop, if one did."""
    return _State.first[0] if _State.first else None


def check(kept: str = "") -> None:
    """A safe place to stop. Ranks of a launcher stop together at the end of a step instead (`train.trainer`).

    Args:
        kept: what was done and stays, for the sentence that is printed.

    Raises:
        Stopped: a stop was requested.
    """
    if _State.first and not launched():
        raise Stopped(kept)


def sentence(stop: Stopped, command: str) -> str:
    """What a person is told at the end; ``command`` goes on with the work."""
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[requested() or signal.SIGINT]
    kept = f": {stop}" if str(stop) else ""
    return f"stopped by {name}{kept}; continue with: {command}"


def leave() -> NoReturn:
    """End this process as a shell counts: with 130 after SIGINT, 143 after SIGTERM.

    At once: Python's own end waits for threads of libraries, and some crash while it takes them down.
    """
    sys.stdout.flush()
    os._exit(128 + (requested() or signal.SIGINT))


def listen() -> None:
    """Note signals from now on; again where a library has put its own handlers. A signal that is ignored stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # what a shell starts in the background ignores Ctrl-C
            signal.signal(number, _note)
    _State.listening = True


def listens() -> bool:
    """Whether this process notes signals."""
    return _State.listening


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Note signals inside the block. Inside another one, or outside the main thread, where Python allows no handlers,
    nothing changes."""
    if _State.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _State.listening, _State.first = False, None


def _note(number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if _State.first is None:
        _State.first = signal.Signals(number), now
        if os.environ.get("RANK", "0") == "0":
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, _HEARD)
    elif now - _State.first[1] > _ECHO_S and not launched():  # a launcher repeats it, and kills when it loses patience
        os._exit(128 + number)
