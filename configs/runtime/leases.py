"""A lease: a lock for places where the kernel keeps none (object stores, some network file systems).

The holder hangs up a note with a number and writes it anew every few seconds. A note that was not written anew for
:data:`TERM_S` is stale: whoever comes next hangs up the next number and takes the first one's away. All times are told
by the clock that dates the notes (the store's), never by another machine's. A holder that could not renew for
:data:`SAFE_S` stops by itself before others may take over: it has lost the lease, for good.

What is asked of a place: a note is created by one maker only (`Board.create`). Numbers never go back while anybody may
still act on an older note, so that nobody takes the lease of a successor.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

FOLDER = ".echoforge.lease"
"""Below the folder that is locked."""
TERM_S = 120.0
"""So long waits who comes after a crash on another machine."""
SAFE_S = TERM_S / 2
"""Time for a store that lets requests hang: s3fs waits 15 s for an answer, then asks again. The other half of the term is
for uploads that have begun, and for the whole seconds in which stores tell time."""
RENEW_S = TERM_S / 8
"""Four tries before the lease is lost; at three requests each, 17,000 requests a day."""
_TURNS = 5  # to take a lease where others come and go meanwhile


class Board(Protocol):
    """Where the notes of one folder hang. Whatever goes wrong is an OSError, or a sentence for the user."""

    def names(self) -> list[str]:
        """All notes."""

    def create(self, name: str, text: str) -> bool:
        """Hang up a new note; False where one of that name hangs already."""

    def write(self, name: str, text: str) -> None:
        """Write a note anew."""

    def read(self, name: str) -> str:
        """Raises FileNotFoundError: it is gone."""

    def remove(self, name: str) -> None:
        """It may be gone."""

    def written(self, name: str) -> float:
        """When it was last written, in seconds of the board's clock. Raises FileNotFoundError: it is gone."""


class Taken(Exception):
    """Somebody else holds the lease. The argument is the text of their note."""


class Lease:
    """Held from construction to :meth:`release`, unless it is lost.

    Args:
        text: what the note says; must differ from that of every other process.
        dead: whether the maker of a note is known to be dead; its lease is taken over at once.

    Raises:
        Taken: somebody else holds it.
    """

    def __init__(self, board: Board, text: str, dead: Callable[[str], bool] = lambda _: False) -> None:
        self._board, self._text, self._dead = board, text, dead
        self.lost = ""
        """Why the lease is lost; '' while it is held."""
        self._renewed = _clock()
        self._name = self._take()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renewing, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> bool:
        """Whether the lease is held now. Once it is lost it stays lost."""
        if not self.lost and _clock() - self._renewed > SAFE_S:
            self.lost = f"it could not be renewed for {SAFE_S:.0f} s"
        return not self.lost

    def release(self) -> None:
        """Give the lease back. A lost one is left to its new holder."""
        self._over.set()
        self._thread.join(SAFE_S)
        if self.check() and not self._thread.is_alive():
            with contextlib.suppress(OSError):
                self._board.remove(self._name)

    def _take(self) -> str:
        for _ in range(_TURNS):
            newest = max(self._numbers(), default=None)
            if newest is not None and (text := self._holder(newest)) is not None:
                raise Taken(text)
            name = f"{int(newest or 0) + 1:08d}"
            self._renewed = _clock()
            if not self._board.create(name, self._text) and not self._mine(name):
                continue
            older = self._numbers()
            if (
                newest is not None and newest not in older
            ):  # somebody took the stale lease, and gave it back: begin again
                self._board.remove(name)
                continue
            for old in older:
                if old < name:
                    self._board.remove(old)
            return name
        raise Taken("")

    def _numbers(self) -> list[str]:
        return [name for name in self._board.names() if name.isdigit()]

    def _holder(self, name: str) -> str | None:
        """The text of a note whose maker may be at work; None: it is stale, or gone."""
        try:
            text = self._board.read(name)
            if self._dead(text):
                return None
            return None if self._now() - self._board.written(name) > TERM_S else text
        except FileNotFoundError:
            return None

    def _now(self) -> float:
        """The board's clock: the time of a note that is written for this."""
        probe = f"probe-{os.getpid()}-{threading.get_ident()}-{time.time_ns()}"
        self._board.write(probe, "")
        try:
            return self._board.written(probe)
        finally:
            self._board.remove(probe)

    def _mine(self, name: str) -> bool:
        """A store may create a note and its answer be lost; then a second try finds the first one's."""
        try:
            return self._board.read(name) == self._text
        except FileNotFoundError:
            return False

    def _renewing(self) -> None:
        while not self._over.wait(RENEW_S) and self.check():
            with contextlib.suppress(Exception):  # what fails is tried again, until the lease is lost
                self._renew()

    def _renew(self) -> None:
        # Read first: a store that knows no conditional write may have let somebody write over the note.
        if not self._mine(self._name) or max(self._numbers(), default="") > self._name:
            self.lost = "another process took it over"
        elif self.check():
            began = _clock()
            self._board.write(self._name, self._text)
            self._renewed = began


class FolderBoard:
    """Notes as files of a local folder, for file systems without locks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        return [path.name for path in self._folder.iterdir()]

    def create(self, name: str, text: str) -> bool:
        try:
            with (self._folder / name).open("x") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)

    def read(self, name: str) -> str:
        return (self._folder / name).read_text(errors="replace")

    def remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def written(self, name: str) -> float:
        return (self._folder / name).stat().st_mtime


def _clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
