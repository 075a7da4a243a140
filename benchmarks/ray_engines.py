"""Ray Core or Ray Data for long mixed videos: `python -m benchmarks.ray_engines`.

The same work three ways on one machine: every frame is decoded and looked at (mean brightness).

* `core`: this project's engine; a unit is a video, pixels stay in the actor that decodes them.
* `data, rows`: Ray Data mapping a stateful class over names of videos; pixels stay too.
* `data, pixels`: Ray Data as its guides show it; one step gives frames, the next looks at them, so pixels travel.

Reported: seconds with and without the start of Ray, peak memory of all processes together, the share of shared memory
in it, and what is left after one worker is killed outright in the middle.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.runtime import scratch
from pipeline.config import WorkerShare
from pipeline.engine.ledger import Ledger
from pipeline.engine.unit import Result, Unit, unit_id

LENGTHS = (5,) * 16 + (30,) * 4 + (240,)  # seconds: clips, scenes, one long take
SIZE = (640, 360)
TABLES = {"brightness": pa.schema([("uri", pa.string()), ("frames", pa.int64()), ("mean", pa.float64())])}
WAYS = ("core", "data, rows", "data, pixels")


def make(folder: Path) -> list[str]:
    """Videos of :data:`LENGTHS`, H.264, moving stripes."""
    x, y = np.arange(SIZE[0]), np.arange(SIZE[1])[:, None]
    made = []
    for number, seconds in enumerate(LENGTHS):
        path = folder / f"{number:03d}.mp4"
        with av.open(str(path), "w") as out:
            stream = out.add_stream("libx264", 25, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            for t in range(25 * seconds):
                gray = ((x * 2 + y + 5 * t) % 256).astype(np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack([gray] * 3, -1), "rgb24")))
            out.mux(stream.encode(None))
        made.append(str(path))
    return made


def frames(uri: str) -> Iterator[np.ndarray]:
    """uint8 [h, w, 3], one after the other."""
    with av.open(uri) as file:
        for frame in file.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


class Brightness:
    """The work, as a worker of the engine and as a class for Ray Data."""

    def run(self, payload: str) -> Result:
        """One row."""
        means = [float(f.mean()) for f in frames(payload)]
        row = {"uri": payload, "frames": len(means), "mean": float(np.mean(means))}
        return Result({"brightness": pa.Table.from_pylist([row], TABLES["brightness"])}, amount=len(means) / 25)

    def __call__(self, row: dict[str, str]) -> dict[str, str | int | float]:
        """One row of Ray Data."""
        return self.run(row["item"]).tables["brightness"].to_pylist()[0]


def core(uris: list[str], out: Path) -> int:
    """The engine. Returns the rows that there are at the end."""
    from configs import schema
    from pipeline.engine import runner

    share = WorkerShare(2, 1, 0, 1000, 3000)
    cost = {u: Path(u).stat().st_size for u in uris}
    units = [Unit(unit_id(u), u, key=u, cost=float(cost[u])) for u in uris]
    ledger = Ledger(str(out), TABLES, {"brightness": "1"})
    runner.run(units, Brightness, ledger, share, schema.load("tiny").pipeline.execution)
    return sum(t.num_rows for t in ledger.read("brightness"))


def data_rows(uris: list[str], out: Path) -> int:
    """Ray Data over names."""
    import ray.data

    work: Any = Brightness
    found = ray.data.from_items(uris, override_num_blocks=len(uris)).map(work, concurrency=2, num_cpus=1)
    found.write_parquet(str(out))
    return sum(pq.read_metadata(f).num_rows for f in out.glob("*.parquet"))


def data_pixels(uris: list[str], out: Path) -> int:
    """Ray Data over frames."""
    import ray.data

    def decode(row: dict[str, str]) -> Iterator[dict[str, str | np.ndarray]]:
        for frame in frames(row["item"]):
            yield {"uri": row["item"], "frame": frame}

    def look(batch: Any) -> Any:
        return {"uri": batch["uri"], "mean": np.array([f.mean() for f in batch["frame"]])}

    shown = ray.data.from_items(uris, override_num_blocks=len(uris)).flat_map(decode)
    rows = shown.map_batches(look, batch_size=64).groupby("uri").mean("mean")
    rows.write_parquet(str(out))
    return sum(pq.read_metadata(f).num_rows for f in out.glob("*.parquet"))


@dataclass(frozen=True)
class Figure:
    """What one way cost; ``ended``: the name of the error that ended it, and then there are no rows."""

    way: str
    start_s: float  # of Ray
    seconds: float
    peak_mb: float
    shared_mb: float
    rows: int | None
    ended: str | None
    one_killed: bool


class Memory:
    """Peak memory of this process and all below it, in MB; shared memory counted once."""

    def __init__(self) -> None:
        self.peak = self.shared = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        page = resource.getpagesize()
        while not self.ended.wait(0.25):
            own = shared = 0.0
            for pid in [os.getpid(), *_below(os.getpid())]:
                with contextlib.suppress(OSError):
                    _, resident, common, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
                    own += page * (resident - common)
                    shared = max(shared, page * common)
            if own + shared > self.peak:
                self.peak, self.shared = own + shared, shared


def _below(pid: int) -> dict[int, int]:
    """Processes below ``pid``, and the ticks of the processor that each has used."""
    parents: dict[int, list[tuple[int, int]]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            parents.setdefault(int(fields[1]), []).append((int(stat.parent.name), int(fields[11]) + int(fields[12])))
    found: dict[int, int] = {}
    queue = [pid]
    while queue:
        for child, ticks in parents.get(queue.pop(), []):
            found[child] = ticks
            queue.append(child)
    return found


def measure(way: str, folder: Path, kill_after: float) -> Figure:
    """One way in this process."""
    import ray

    from pipeline.engine.ray_session import session

    uris = [str(p) for p in sorted(folder.glob("*.mp4"))]
    run = {"core": core, "data, rows": data_rows, "data, pixels": data_pixels}[way]
    rows: int | None = None
    ended: str | None = None
    begin = time.perf_counter()
    with scratch.folder() as out, Memory() as memory, session(None, WorkerShare(2, 1, 0, 1, 1), 500):
        start_s = time.perf_counter() - begin
        assert ray.is_initialized()
        if kill_after:
            threading.Timer(kill_after, _kill_one).start()
        try:
            rows = run(uris, out)
        except Exception as error:
            ended = type(error).__name__
        seconds = time.perf_counter() - begin - start_s
    return Figure(
        way, start_s, seconds, memory.peak / 2**20, memory.shared / 2**20, rows, ended, one_killed=bool(kill_after)
    )


def _kill_one() -> None:
    """Kill the Ray worker that has worked most."""
    found = {}
    for pid, ticks in _below(os.getpid()).items():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith((b"ray::Slot", b"ray::Map", b"ray::_MapWorker")):
                found[pid] = ticks
    if found:
        os.kill(max(found, key=lambda pid: found[pid]), 9)


def main() -> None:
    """Print the figures and write them to ``benchmarks/results/ray_engines.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ray_engines.json"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, folder, kill_after = options.one
        print(json.dumps(asdict(measure(way, Path(folder), float(kill_after)))))
        return
    figures = []
    with scratch.folder() as name:
        make(name)
        for kill_after in (0.0, 6.0):
            for way in WAYS:
                command = [sys.executable, "-m", "benchmarks.ray_engines", "--one", way, str(name), str(kill_after)]
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
                if done.returncode:
                    raise SystemExit(done.stderr[-3000:])
                figures.append(json.loads(done.stdout.splitlines()[-1]))
                print(figures[-1], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"seconds_of_video": sum(LENGTHS), "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
