"""Batches from shards: positioned reads by a few threads, straight into the (pinned) memory of the batch.

Promises, each held by a test: the global batches are a pure function of (seed, index digest, step), the same at any
world size and after any resume; the state is a few integers; every digest is checked; a bad sample is named and, by
policy, replaced in the same way on whatever rank meets it (its place gets the next good sample of the bucket, with
weight 0) or the run stops. There are no worker processes.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from configs.errors import EchoForgeError
from configs.members import BadMember
from train.config import LoaderConfig
from train.data.batch import Assembly, Batch
from train.data.index import BadSample, SampleIndex, SampleRecord, TensorRef, open_index
from train.data.order import GlobalBatch, Order, Position, rank_slice
from train.data.reader import open_source, read_tensor

log = logging.getLogger(__name__)

TaskOf = Callable[[int, int], str]
"""(global step, place in the global batch) → task. Pure, so that it says the same on every rank and after a resume."""


_Use = tuple[str, int, str]
"""(sample, caption, task): what is read of a sample. Whether a use is bad depends on the files alone."""


@dataclass
class _Pending:
    """A batch whose reads are under way."""

    batch: GlobalBatch
    after: Position
    places: range
    records: list[SampleRecord]
    captions: list[int]
    tasks: list[str]
    skipped: list[str]
    tensors: dict[str, Tensor]
    frame0: int
    reads: list[tuple[_Use, Future[None]]]


@dataclass(frozen=True)
class LoaderState:
    """Where a loader stands: a few integers, the same at any world size."""

    epoch: int
    cursor: int
    step: int
    seed: int
    digest: str  # of the index
    global_batch: int


class Loader(Iterator[Batch]):
    """Endless (``once`` off: training) or one pass (``once`` on: validation) over one split of a dataset.

    Args:
        dataset: folder or URL of a dataset.
        cfg: section ``loader``.
        seed: of the order and of the choice among captions.
        global_batch: samples of a step over all ranks; default ``cfg.global_batch``.
        tasks: the tasks that may occur; their conditions are in every batch.
        task_of: which of them a place of a step has; without it every sample is read for all of them.
        rank, world: this process's slice.
        pin: pinned memory; default where CUDA is available.
        index: already opened (then ``dataset`` and ``split`` are not looked at).

    Raises:
        EchoForgeError: no such dataset, nothing kept, a tensor that the tasks need is not in the dataset, a batch
            that the ranks cannot share, or (from iteration) a bad sample under the policy ``stop``, or too many.
    """

    def __init__(
        self,
        dataset: str | Path,
        cfg: LoaderConfig,
        *,
        seed: int,
        global_batch: int | None = None,
        tasks: Sequence[str] = ("i2v",),
        task_of: TaskOf | None = None,
        split: str = "train",
        rank: int = 0,
        world: int = 1,
        once: bool = False,
        pin: bool | None = None,
        index: SampleIndex | None = None,
    ):
        size = cfg.global_batch if global_batch is None else global_batch
        rank_slice(size, rank, world)
        self.index = index or open_index(dataset, split=split, keep=cfg.keep)
        self.order = Order(self.index.members, seed=seed, digest=self.index.digest, size=size, carry=not once)
        self.cfg, self.seed, self.once = cfg, seed, once
        self.bad: dict[str, str] = {}
        self._bad_uses: dict[_Use, str] = {}
        self._rank, self._world, self._task_of = rank, world, task_of
        pin = torch.cuda.is_available() if pin is None else pin
        self._assembly = {
            bucket: Assembly(self.index.layout(bucket), tasks, bucket=bucket, audio=cfg.audio, pin=pin)
            for bucket in self.index.members
        }
        self._source = open_source(self.index.root)
        self._sizes: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(cfg.threads, thread_name_prefix="loader")
        self._queue: deque[_Pending] = deque()
        self._next = self._planned = Position()

    def state(self) -> LoaderState:
        """The position of the next batch to be yielded, and what it is a position in."""
        at = self._next
        return LoaderState(at.epoch, at.cursor, at.step, self.seed, self.index.digest, self.order.size)

    def load_state(self, state: LoaderState) -> None:
        """Continue after the last batch that was yielded when ``state`` was taken, on any number of ranks.

        Raises:
            EchoForgeError: the state belongs to another selection of samples, seed or batch size.
        """
        mine = self.state()
        for key, remedy in (
            ("digest", "the samples differ (other dataset, keep-list or split); restore them or start a new run"),
            ("seed", "use the seed of the run, or start a new one"),
            ("global_batch", "keep the global batch within a stage; the number of ranks may change"),
        ):
            was, now = getattr(state, key), getattr(mine, key)
            if was != now:
                raise EchoForgeError(f"the loader cannot resume: {key} was {was} and is {now}; {remedy}.")
        self.seek(Position(state.epoch, state.cursor, state.step))

    def seek(self, position: Position) -> None:
        """Continue at ``position``; batches read ahead are dropped. O(1)."""
        self._drain()
        self._next = self._planned = position

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        while len(self._queue) <= self.cfg.prefetch and not self._ended():
            planned, after = self.order.at(self._planned)
            self._queue.append(self._start(planned, after))
            self._planned = after
        if not self._queue:
            raise StopIteration
        batch = self._finish(self._queue[0])
        self._next = self._queue.popleft().after
        return batch

    def __len__(self) -> int:
        """Batches of the first round; with ``once``, of the whole pass."""
        return self.order.batches_in(0)

    def close(self) -> None:
        """Stop reading and let go of files and threads."""
        self._drain()
        self._pool.shutdown(wait=True)
        self._source.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ended(self) -> bool:
        return self.once and (self._planned.epoch > 0 or self._planned.cursor >= len(self))

    def _drain(self) -> None:
        reads = [future for pending in self._queue for _, future in pending.reads]
        for future in reads:
            future.cancel()
        for future in reads:
            if not future.cancelled():
                future.exception()
        self._queue.clear()

    def _start(self, batch: GlobalBatch, after: Position) -> _Pending:
        assembly = self._assembly[batch.bucket]
        places = rank_slice(len(batch.slots), self._rank, self._world)
        tasks = [self._task_of(batch.step, place) if self._task_of else "" for place in places]
        records, captions, skipped, weights = [], [], [], []
        for place, task in zip(places, tasks, strict=True):
            slot = batch.slots[place]
            record, caption, why = self._usable(slot.row, batch.bucket, slot.epoch, task)
            records.append(record)
            captions.append(caption)
            skipped += why
            weights.append(0.0 if why else slot.weight)
        tensors, frame0 = assembly.allocate(records, captions)
        tensors["weight"] = torch.tensor(weights, dtype=torch.float32)
        reads = [
            ((record.sample_id, captions[k], tasks[k]), self._pool.submit(self._read, ref, out, record.sample_id))
            for k, record in enumerate(records)
            for ref, out in assembly.reads(record, captions[k], tasks[k], tensors, k, frame0)
        ]
        return _Pending(batch, after, places, records, captions, tasks, skipped, tensors, frame0, reads)

    def _finish(self, pending: _Pending) -> Batch:
        """Wait for the reads. When some fail, the batch starts anew with those samples known as bad."""
        while errors := _bad_uses(pending.reads):
            for use, error in errors.items():
                self._note(use, error)
            pending = self._start(pending.batch, pending.after)
        batch, first = pending.batch, pending.records[0]
        return Batch(
            step=batch.step,
            epoch=batch.epoch,
            bucket=batch.bucket,
            frames=first.frames,
            height=first.height,
            width=first.width,
            places=tuple(pending.places),
            sample_ids=tuple(record.sample_id for record in pending.records),
            tasks=tuple(pending.tasks),
            captions=tuple(pending.captions),
            audio_frame0=pending.frame0,
            tokens_per_frame=self._assembly[batch.bucket].tokens_per_frame(first),
            skipped=tuple(pending.skipped),
            tensors=pending.tensors,
        )

    def _usable(self, row: int, bucket: str, epoch: int, task: str) -> tuple[SampleRecord, int, list[str]]:
        """The record of ``row`` and its caption; or those of the next good row of the bucket, and why."""
        rows = self.index.members[bucket]
        start = int(rows.searchsorted(row))
        reasons: list[str] = []
        for turn in range(len(rows)):
            candidate = int(rows[(start + turn) % len(rows)])
            use = (self.index.sample_ids([candidate])[0], -1, task)
            try:
                record = self.index.record(candidate)
                use = (record.sample_id, self._caption(record, epoch), task)
                if use not in self._bad_uses:
                    self._assembly[bucket].check(record, use[1])
                    self._check_sizes(record, use)
                    return record, use[1], reasons
            except BadSample as error:
                self._note(use, error)
            reasons.append(self._bad_uses[use])
        raise EchoForgeError(f"no sample of bucket {bucket} can be read; the last reason: {reasons[-1]}")

    def _check_sizes(self, record: SampleRecord, use: _Use) -> None:
        """Before memory is set aside: the files must be as long as the index needs them to be."""
        for _, ref in self._assembly[record.bucket].wanted(record, use[1], use[2]):
            if ref.tar not in self._sizes:
                try:
                    self._sizes[ref.tar] = self._source.size(ref.tar)
                except OSError as error:
                    raise BadSample(record.sample_id, f": {ref.tar}: {error.strerror or error}.") from error
                except BadMember as error:
                    raise BadSample(record.sample_id, f": {error}") from error
            if ref.offset + ref.length > self._sizes[ref.tar]:
                raise BadSample(record.sample_id, f", tensor '{ref.name}': {ref.tar} ends before the tensor does.")

    def _caption(self, record: SampleRecord, epoch: int) -> int:
        if record.n_captions < 2 or self.cfg.captions == "first":
            return 0
        digest = hashlib.sha256(f"{self.seed}:caption:{record.sample_id}:{epoch}".encode()).digest()
        return int.from_bytes(digest[:8], "little") % record.n_captions

    def _note(self, use: _Use, error: BadSample) -> None:
        """Remember a bad sample, or stop, by policy."""
        sample = use[0]
        self._bad_uses[use] = str(error)
        if sample in self.bad:
            return
        self.bad[sample] = str(error)
        if self.cfg.bad_samples == "stop":
            raise EchoForgeError(
                f"{error} Run `shards verify`; then add {sample} to loader.keep.skip, or set loader.bad_samples=skip."
            ) from error
        log.warning("skipping a bad sample: %s", error)
        if len(self.bad) > self.cfg.max_bad:
            raise EchoForgeError(
                f"{len(self.bad)} bad samples, more than loader.max_bad = {self.cfg.max_bad}; the last: {error} "
                "Run `shards verify` on the dataset."
            ) from error

    def _read(self, ref: TensorRef, out: Tensor, sample: str) -> None:
        read_tensor(self._source, ref, out, sample=sample, digest=self.cfg.check_digests)
        floats = ref.dtype.is_floating_point and not ref.name.endswith("_boxes")  # a box that is absent is NaN
        if self.cfg.check_finite and floats and not bool(torch.isfinite(out).all()):
            raise BadSample(sample, f", tensor '{ref.name}' ({ref.tar}) holds NaN or infinite values.")


def _bad_uses(reads: list[tuple[_Use, Future[None]]]) -> dict[_Use, BadSample]:
    """Wait for all reads; those that failed because of a bad sample. Any other error is raised."""
    found: dict[_Use, BadSample] = {}
    for use, future in reads:
        error = future.exception()
        if isinstance(error, BadSample):
            found.setdefault(use, error)
        elif error is not None:
            raise error
    return found
