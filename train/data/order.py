"""The order of the data as a pure function: (seed, index digest, bucket, pass) → permutation, step → samples.

Every bucket is an endless stream: its samples in a fresh permutation, again and again. Global batches are cut from
the stream, all of one bucket; a batch may straddle two passes, so each sample comes exactly once a pass and nothing
is dropped or padded. Round ``e`` holds the batches that complete inside pass ``e`` of their bucket, the buckets'
batches shuffled together. A rank takes its slice of a global batch, so the batches are the same at any world size,
and the state of a run is a few integers.

Permutations are the stable argsort of raw Philox words (Salmon et al. 2011), whose bit stream numpy guarantees,
unlike that of its shuffling methods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from configs.errors import EchoForgeError


def permutation(n: int, *parts: object) -> np.ndarray:
    """A permutation int64 [n] that depends on ``n`` and on the text of ``parts`` alone."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    words = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8")).random_raw(n)
    return np.argsort(words, kind="stable")


@dataclass(frozen=True)
class Position:
    """The next global batch: batch ``cursor`` of round ``epoch``; ``step`` counts batches since the start."""

    epoch: int = 0
    cursor: int = 0
    step: int = 0


@dataclass(frozen=True)
class Slot:
    """One place of a global batch. ``weight`` 0 marks the filling of a last, short batch (``carry`` off)."""

    row: int  # of the index
    epoch: int  # the pass over its bucket that this use belongs to
    weight: float = 1.0


@dataclass(frozen=True)
class GlobalBatch:
    """One step's samples for all ranks together; ``slots`` has the same length whatever the world size."""

    step: int
    epoch: int
    bucket: str
    slots: tuple[Slot, ...]


class Order:
    """The order of global batches of ``size`` samples over the buckets ``members`` (name → row numbers).

    With ``carry`` (training) batches straddle passes. Without it (validation) every pass ends with a batch filled
    up by samples of weight 0, so one round is exactly one pass.

    Raises:
        EchoForgeError: ``size`` is not positive, or there is no sample at all.
    """

    def __init__(self, members: Mapping[str, np.ndarray], *, seed: int, digest: str, size: int, carry: bool = True):
        if size < 1:
            raise EchoForgeError(f"loader.global_batch must be at least 1, got {size}.")
        self.members = {name: rows for name, rows in sorted(members.items()) if len(rows)}
        if not self.members:
            raise EchoForgeError("there is no sample to put in order.")
        self.seed, self.digest, self.size, self.carry = seed, digest, size, carry
        self._perm = lru_cache(maxsize=2 * len(self.members) + 2)(self._permutation)
        self._round = lru_cache(maxsize=2)(self._schedule)

    def batches_in(self, epoch: int) -> int:
        """How many global batches round ``epoch`` has (may be 0 when there are fewer samples than ``size``)."""
        return len(self._round(epoch))

    def at(self, position: Position) -> tuple[GlobalBatch, Position]:
        """The batch at ``position`` and the position after it. O(1) in the steps already done."""
        epoch, cursor = position.epoch, position.cursor
        while cursor >= self.batches_in(epoch):
            cursor -= self.batches_in(epoch)
            epoch += 1
        bucket, number = self._round(epoch)[cursor]
        batch = GlobalBatch(position.step, epoch, bucket, self._slots(bucket, number, epoch))
        return batch, Position(epoch, cursor + 1, position.step + 1)

    def position_of(self, step: int) -> Position:
        """The position of global step ``step`` counted from the start; walks over rounds, not over batches."""
        epoch, left = 0, step
        while left >= (batches := self._count(epoch)):
            left -= batches
            epoch += 1
        return Position(epoch, left, step)

    def _count(self, epoch: int) -> int:
        return sum(high - low for low, high in (self._range(len(r), epoch) for r in self.members.values()))

    def _range(self, n: int, epoch: int) -> tuple[int, int]:
        if self.carry:
            return epoch * n // self.size, (epoch + 1) * n // self.size
        return 0, -(-n // self.size)

    def _schedule(self, epoch: int) -> list[tuple[str, int]]:
        batches = [(b, k) for b, rows in self.members.items() for k in range(*self._range(len(rows), epoch))]
        return [batches[i] for i in permutation(len(batches), self.seed, self.digest, "schedule", epoch)]

    def _permutation(self, bucket: str, epoch: int) -> np.ndarray:
        rows = self.members[bucket]
        return rows[permutation(len(rows), self.seed, self.digest, "samples", bucket, epoch)]

    def _slots(self, bucket: str, number: int, epoch: int) -> tuple[Slot, ...]:
        n, first = len(self.members[bucket]), number * self.size
        slots = []
        for place in range(first, first + self.size):
            turn, item = divmod(place, n)
            if self.carry:
                slots.append(Slot(int(self._perm(bucket, turn)[item]), turn))
            else:
                slots.append(Slot(int(self._perm(bucket, epoch)[item]), epoch, 1.0 if turn == 0 else 0.0))
        return tuple(slots)


def rank_slice(size: int, rank: int, world: int) -> range:
    """The places of a global batch of ``size`` that belong to ``rank``: a contiguous slice, equal for every rank.

    Raises:
        EchoForgeError: there is no such rank, or the batch does not divide by the number of ranks.
    """
    if not 0 <= rank < world:
        raise EchoForgeError(f"rank {rank} does not exist in a world of {world}.")
    if size % world:
        raise EchoForgeError(
            f"a global batch of {size} samples cannot be dealt to {world} ranks evenly: "
            "set loader.global_batch to a multiple of the number of ranks."
        )
    share = size // world
    return range(rank * share, (rank + 1) * share)
