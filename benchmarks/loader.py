"""The loader against reading the same bytes into the same buffers with the same threads: `python -m benchmarks.loader`.

Files are cold: their pages are dropped from the cache before every pass. Digests are checked. Both passes run in
turns in one process; the median ratio counts. Prints one line per figure and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.synthetic_shards import REAL, write_dataset
from train.config import KeepConfig, LoaderConfig
from train.data.loader import Loader
from train.data.reader import LocalSource, raw_bytes

BUCKET = "832x480x113"


def drop_pages(root: Path) -> None:
    """Ask the system to forget the files' pages."""
    for path in root.rglob("*.tar"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def config(threads: int, prefetch: int) -> LoaderConfig:
    return LoaderConfig(KeepConfig(), 1, "whisper", "first", threads, prefetch, True, False, "stop", 0)


def one_pass(root: Path, threads: int, prefetch: int, step_s: float = 0.0) -> tuple[float, float, int]:
    """Seconds, seconds waited for data (after the first batch) and bytes of one pass over the dataset."""
    total, waited = 0, 0.0
    with Loader(root, config(threads, prefetch), seed=0, tasks=("i2v", "flf2v"), once=True, pin=False) as loader:
        begin = time.perf_counter()
        for number in range(len(loader)):
            before = time.perf_counter()
            batch = next(loader)
            waited += time.perf_counter() - before if number else 0.0
            total += sum(t.numel() * t.element_size() for t in batch.tensors.values())
            if step_s:
                time.sleep(step_s)
        return time.perf_counter() - begin, waited, total


def raw_pass(root: Path, threads: int) -> tuple[float, int]:
    """The same tensors in the same order into fresh buffers, nothing checked."""
    with Loader(root, config(threads, 0), seed=0, tasks=("i2v", "flf2v"), once=True, pin=False) as loader:
        plan, position = [], loader.order.position_of(0)
        for _ in range(len(loader)):
            batch, position = loader.order.at(position)
            record = loader.index.record(batch.slots[0].row)
            wanted = loader._assembly[batch.bucket].wanted(record, 0, "")
            plan.append([ref for _, ref in wanted])
    source, total = LocalSource(str(root)), 0

    def read(ref: Any) -> int:
        out = torch.empty(ref.shape, dtype=ref.dtype)
        source.read_into(ref.tar, ref.offset, raw_bytes(out))
        return int(ref.length)

    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(read, [ref for refs in plan for ref in refs]))
    seconds = time.perf_counter() - begin
    source.close()
    return seconds, total


def passes_of(root: Path) -> int:
    """Batches of one pass (of one sample each)."""
    with Loader(root, config(1, 0), seed=0, tasks=("i2v", "flf2v"), once=True, pin=False) as loader:
        return len(loader)


def _resident_mb() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


@dataclass(frozen=True)
class Passes:
    """The loader against bare reading; ``ratio_to_raw`` and ``mb_per_s`` are medians of the rounds."""

    ratio_to_raw: float
    mb_per_s: float
    rounds: list[float]


@dataclass(frozen=True)
class Figures:
    """Everything; ``resident_mb``: of one batch, after one pass, after the other rounds."""

    bytes_per_sample: int
    threads: int
    prefetch: int
    bucket: str
    cold: Passes
    cached: Passes
    resident_mb: dict[str, float]
    wait_share: float  # of the time of steps of 0.5 s


def compare(root: Path, threads: int, prefetch: int, rounds: int, prepare: Callable[[Path], None]) -> Passes:
    """The loader and bare reading in turns, ``prepare`` before each pass."""
    ratios, speeds = [], []
    for number in range(rounds):
        for way in ("raw", "loader") if number % 2 else ("loader", "raw"):  # neither is always the second
            prepare(root)
            if way == "raw":
                raw_s, raw_total = raw_pass(root, threads)
            else:
                seconds, _, total = one_pass(root, threads, prefetch)
        ratios.append((total / seconds) / (raw_total / raw_s))
        speeds.append(total / seconds / 1e6)
    return Passes(
        round(statistics.median(ratios), 3), round(statistics.median(speeds), 1), [round(r, 3) for r in ratios]
    )


def measure(root: Path, threads: int, prefetch: int, rounds: int, bytes_per_sample: int) -> Figures:
    """All figures."""
    cold = compare(root, threads, prefetch, rounds, drop_pages)
    cached = compare(root, threads, prefetch, rounds, lambda _: None)
    before = _resident_mb()
    for _ in range(rounds):
        _, _, total = one_pass(root, threads, prefetch)
    batch = round(total / 1e6 / passes_of(root), 1)
    resident = {"batch": batch, "after_one_pass": before, f"after_{rounds}_more": _resident_mb()}
    drop_pages(root)
    seconds, waited, _ = one_pass(root, threads, prefetch, step_s=0.5)
    return Figures(
        bytes_per_sample, threads, prefetch, BUCKET, cold, cached, resident, wait_share=round(waited / seconds, 5)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--prefetch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        root = Path(folder)
        index = write_dataset(root, {BUCKET: args.samples}, sizes=REAL, per_tar=8)
        size = sum(member["length"] for member in index["members"][0].as_py())
        figures = measure(root, args.threads, args.prefetch, args.rounds, size)
    found = asdict(figures)
    found["wait_share_of_0.5s_steps"] = found.pop("wait_share")
    text = json.dumps(found, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
