"""Planning, resuming, deciding and scheduling as the corpus grows: `python -m benchmarks.scale [--rows 1000000]`.

Every figure is taken in a process of its own, so that its peak memory is its own, at a quarter, half and all of the
rows: the last column is cost per row against the smallest size (1.0: linear). Videos are real (empty) files, listed
from a manifest; the ledger and the tables are real files with synthetic rows. Sizes of scheduling: no-op units through
Ray, start of Ray left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs import schema
from curation.schema import CLIPS, VIDEOS
from pipeline import parquet
from pipeline.catalog import queries
from pipeline.config import WorkerShare
from pipeline.engine import runner
from pipeline.engine.ledger import Ledger
from pipeline.engine.unit import Finished, Result, Unit, unit_id

_PER_FILE = 50_000
_PAIRS = 26
"""Hash pairs of a clip: 5.4 s, as 1,500 h in 1,000,000 clips are, at 5 a second."""


Column: TypeAlias = "list[str] | np.ndarray | pa.Array"


@dataclass(frozen=True)
class Answer:
    """What a process of its own measured: seconds by what it did, and its peak memory."""

    seconds: dict[str, float] | None
    peak_mb: float


@dataclass(frozen=True)
class Figure:
    """Cost of one thing at one size; ``against_smallest``: per row, 1.0 is linear."""

    what: str
    size: int
    seconds: float
    peak_mb: float
    ms_per_row: float
    against_smallest: float = 1.0


def make_videos(folder: Path, rows: int) -> None:
    """Empty files, a thousand to a folder, and their manifest."""
    names = [f"{n // 1000:05d}/{n:08d}.mp4" for n in range(rows)]
    for number, name in enumerate(names):
        if number % 1000 == 0:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(folder / name, os.O_CREAT))
    pq.write_table(pa.table({"uri": names}), folder / "manifest.parquet")


def plan(folder: Path) -> dict[str, float]:
    """Manifest → units → what is left, when half is done."""
    from curation.caption_files import Beside
    from curation.sources.listing import expand
    from pipeline.catalog import curate
    from pipeline.catalog.units import plan as plan_units

    config = schema.load("tiny")
    clock = time.perf_counter
    ledger = Ledger(str(folder / "ledger"), curate.TABLES, {"op": "1"})
    t0 = clock()
    found = expand([str(folder / "manifest.parquet")], config.curation)
    t1 = clock()
    units = plan_units(found, config.pipeline, Beside(config.curation.captions))
    t2 = clock()
    done = ledger.done()
    left = [unit for unit in units if unit.id not in done]
    t3 = clock()
    assert 2 * len(left) == len(units), (len(left), len(units))
    return {"expand": t1 - t0, "plan": t2 - t1, "list what is left": t3 - t2}


def make_ledger(folder: Path) -> None:
    """Half of the units done, in merged parts."""
    from curation.sources.listing import expand
    from pipeline.catalog import curate
    from pipeline.catalog.units import plan as plan_units

    config = schema.load("tiny")
    units = plan_units(expand([str(folder / "manifest.parquet")], config.curation), config.pipeline)
    ledger = Ledger(str(folder / "ledger"), curate.TABLES, {"op": "1"})
    half = units[: len(units) // 2]
    for start in range(0, len(half), 5000):
        ledger.commit([Finished(unit, Result({}), 1.0) for unit in half[start : start + 5000]], "benchmark")


def make_catalog(folder: Path, rows: int) -> None:
    """Tables with one clip per video; scores around the thresholds, so that every rule has work."""
    chance = np.random.default_rng(0)
    for number, start in enumerate(range(0, rows, _PER_FILE)):
        count = min(_PER_FILE, rows - start)
        ids = [f"{n:016x}" for n in range(start, start + count)]
        uris = [f"videos/{n:08d}.mp4" for n in range(start, start + count)]
        videos = {"video_id": ids, "source_uri": uris, "duration_s": np.full(count, 5.4)}
        parquet.write(str(folder / f"videos/part-{number:05d}.parquet"), _filled(videos, count, VIDEOS))
        scores = {
            "clip_id": ids, "video_id": ids, "source_uri": uris, "start_frame": np.zeros(count, np.int32),
            "end_frame": np.full(count, 135, np.int32), "start_s": np.zeros(count), "end_s": np.full(count, 5.4),
            "width": np.full(count, 1920, np.int32), "height": np.full(count, 1080, np.int32),
            "face_frac": chance.uniform(0.5, 1, count), "face_px": chance.uniform(60, 400, count),
            "n_faces": np.ones(count, np.int16), "sync_c": chance.normal(5, 2, count),
            "av_offset_frames": chance.integers(-4, 4, count), "text_area": chance.exponential(0.01, count),
            "sharpness": chance.uniform(0, 1, count), "exposure": chance.uniform(0.1, 0.9, count),
            "motion": chance.exponential(3, count), "freeze_frac": chance.exponential(0.02, count),
            "speech_frac": chance.uniform(0.3, 1, count), "lufs": chance.normal(-22, 4, count),
            "clip_frac": chance.exponential(0.001, count), "fps": np.full(count, 25.0),
            "phash": _lists(chance.integers(1, 2**63, count * 2 * _PAIRS, dtype=np.uint64), 2 * _PAIRS, pa.uint64()),
            "tracks": _tracks(count, chance),
            "captions": pa.array([[{"text": "a person talks to the camera", "kind": "overall", "source": "x"}]] * count,
                                 CLIPS.field("captions").type),
        }  # fmt: skip
        parquet.write(str(folder / f"clips/part-{number:05d}.parquet"), _filled(scores, count, CLIPS))


def _lists(values: Any, size: int, kind: pa.DataType) -> pa.Array:
    offsets = np.arange(0, len(values) + 1, size, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values, kind) if isinstance(values, np.ndarray) else values)


def _tracks(count: int, chance: np.random.Generator) -> pa.Array:
    kind = CLIPS.field("tracks").type.value_type
    boxes = _lists(_lists(chance.uniform(0, 500, count * 34 * 4).astype(np.float32), 4, pa.float32()), 34, pa.float32())
    given = {"boxes": boxes, "mouth_boxes": boxes}
    fields = [given.get(f.name, pa.nulls(count, f.type)).cast(f.type) for f in kind]
    return _lists(pa.StructArray.from_arrays(fields, fields=list(kind)), 1, kind)


def _filled(columns: Mapping[str, Column], count: int, wanted: pa.Schema) -> pa.Table:
    empty = {"reasons": pa.array([[]] * count, pa.list_(pa.string()))}
    if "text_boxes" in wanted.names:
        empty["text_boxes"] = pa.array([[]] * count, wanted.field("text_boxes").type)
    arrays = []
    for field in wanted:
        value = columns.get(field.name, empty.get(field.name))
        arrays.append(pa.nulls(count, field.type) if value is None else pa.array(value).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=wanted)


def redecide(folder: Path) -> dict[str, float]:
    """New thresholds over the whole catalog, copies and report included."""
    config = schema.load("wan2.1-fun-1.3b", ["decide.min_sharpness=0.25"])
    start = time.perf_counter()
    summary = queries.redecide(str(folder), config)
    seconds = time.perf_counter() - start
    assert summary.clips.get("keep") and summary.clips.get("reject"), summary.clips
    return {"redecide": seconds}


class Nothing:
    """A worker whose units cost nothing."""

    def run(self, payload: Any) -> Result:
        """No rows."""
        return Result({})


def schedule(folder: Path, count: int) -> dict[str, float]:
    """No-op units through Ray actors, committed."""
    from pipeline.catalog import curate
    from pipeline.engine.ray_session import session

    execution = schema.load("tiny").pipeline.execution
    share = WorkerShare(2, 1, 0, 1000, 2000)
    ledger = Ledger(str(folder / f"noop-{count}"), curate.TABLES, {"op": "1"})
    units = [Unit(unit_id(n), n, key=str(n)) for n in range(count)]
    with session(None, share, execution.object_store_mb):
        start = time.perf_counter()
        outcome = runner.run(units, Nothing, ledger, share, execution)
        seconds = time.perf_counter() - start
    assert outcome.done == count and ledger.done() == {unit.id for unit in units}
    return {"units through Ray": seconds}


TASKS: dict[str, Callable[..., Any]] = {
    "videos": make_videos, "ledger": make_ledger, "plan": plan, "catalog": make_catalog, "redecide": redecide,
    "schedule": schedule,
}  # fmt: skip


def _apart(task: str, *arguments: Path | str | int) -> Answer:
    """Run a task in a process of its own; its answer and its peak memory."""
    command = [sys.executable, "-m", "benchmarks.scale", "--task", task, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return Answer(**json.loads(done.stdout.splitlines()[-1]))


def measure(rows: int, place: Path) -> Iterator[Figure]:
    """All figures at a quarter, half and all of ``rows``."""
    for size in (rows // 4, rows // 2, rows):
        with tempfile.TemporaryDirectory(dir=place) as name:
            _apart("videos", name, size)
            _apart("ledger", name)
            yield from _figures(_apart("plan", name), size)
        with tempfile.TemporaryDirectory(dir=place) as name:
            _apart("catalog", name, size)
            yield from _figures(_apart("redecide", name), size)
    for size in (1_000, 10_000, 50_000):
        with tempfile.TemporaryDirectory(dir=place) as name:
            yield from _figures(_apart("schedule", name, size), size)


def _figures(answer: Answer, size: int) -> Iterator[Figure]:
    for what, seconds in (answer.seconds or {}).items():
        yield Figure(what, size, seconds, answer.peak_mb, 1e3 * seconds / size)


def main() -> None:
    """Print the figures and write them to ``benchmarks/results/scale.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale.json"))
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task, folder, *rest = options.task
        seconds = TASKS[task](Path(folder), *map(int, rest))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(asdict(Answer(seconds, peak))))
        return
    first: dict[str, float] = {}
    figures = []
    for figure in measure(options.rows, options.place):
        smallest = first.setdefault(figure.what, figure.ms_per_row)
        figure = replace(figure, against_smallest=figure.ms_per_row / smallest)
        figures.append(figure)
        print(
            f"{figure.what:<20} {figure.size:>9,} {figure.seconds:8.1f} s {figure.ms_per_row:8.3f} ms a row "
            f"{figure.peak_mb:7.0f} MB  x{figure.against_smallest:.2f}",
            flush=True,
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps(
            {"command": "python -m benchmarks.scale", "figures": [asdict(figure) for figure in figures]}, indent=1
        )
    )


if __name__ == "__main__":
    main()
