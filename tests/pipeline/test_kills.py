"""Killed at any moment: the next run continues, and the result is that of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from configs import schema
from configs.runtime import unasked
from curation import puppets
from pipeline.config import ExecutionConfig, WorkerShare
from pipeline.engine import runner
from pipeline.engine.ledger import Ledger
from pipeline.engine.schedule import Receipt
from pipeline.engine.unit import Unit, unit_id

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT, HERE = Path(__file__).resolve().parents[2], Path(__file__).resolve().parent
COUNT = 150
MOMENTS = 20

DRIVER = """
import json, sys
sys.path[:0] = [{root!r}, {here!r}]
import workers
from configs import schema
from configs.runtime import unasked
from curation import puppets
from pipeline.engine import runner
from pipeline.config import ExecutionConfig, WorkerShare
from pipeline.engine.ledger import Ledger
from pipeline.engine.unit import Unit, unit_id
share = WorkerShare(2, 1, 0, 800, 1500)
cfg = ExecutionConfig(share, share, 80, 60, 0, 0.3, 64, 50, 3, 20, 1000)
marks = sys.argv[2]
units = [Unit(unit_id(n), {{"number": n, "sleep": 0.03, "marks": f"{{marks}}/{{n}}"}}) for n in range({count})]
outcome = runner.run(units, workers.Squares, Ledger(sys.argv[1], workers.TABLES, {{"square": "1"}}), share, cfg)
print(json.dumps({{"done": outcome.done, "before": outcome.before, "aside": len(outcome.quarantined)}}))
"""


def _driver(ledger: Path, marks: Path) -> subprocess.Popen[str]:
    code = DRIVER.format(root=str(ROOT), here=str(HERE), count=COUNT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
    command = [sys.executable, "-c", code, str(ledger), str(marks)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _descendants(pid: int) -> dict[int, str]:
    """Pid → command line of everything below a process."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, queue = {}, [pid]
    while queue:
        for child in parents.get(queue.pop(), []):
            found[child] = _command(child)
            queue.append(child)
    return found


def _schema() -> dict[str, Any]:
    import pyarrow as pa

    return {"squares": pa.schema([("number", pa.int64()), ("square", pa.int64())])}


def _rows(ledger: Path) -> list[int]:
    where = Ledger(str(ledger), _schema(), {"square": "1"})
    return sorted(n for table in where.read("squares") for n in table["number"].to_pylist())


def test_twenty_random_kills_lose_only_what_was_in_flight(tmp_path: Path) -> None:
    """Driver, raylet or worker, kill -9, at random moments; then one undisturbed run."""
    chance = random.Random(7)
    marks = tmp_path / "marks"
    marks.mkdir()
    victims: Counter[str] = Counter()
    agents: dict[int, str] = {}
    ledger = tmp_path / "ledger-0"
    for moment in range(MOMENTS):
        if moment and len(_rows(ledger)) > 0.9 * COUNT:
            ledger = tmp_path / f"ledger-{moment}"
        process = _driver(ledger, marks)
        kind = ("driver", "raylet", "worker")[moment % 3]
        deadline = time.monotonic() + 30  # Ray takes some seconds to start; the moment counts from its first worker
        while time.monotonic() < deadline and not any("ray::Slot" in c for c in _descendants(process.pid).values()):
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 2.0))
        tree = _descendants(process.pid)
        choice = {
            "driver": [process.pid],
            "raylet": [p for p, c in tree.items() if "raylet/raylet" in c],
            "worker": [p for p, c in tree.items() if "ray::Slot" in c],
        }[kind]
        before = set(_rows(ledger))
        if choice:
            victims[kind] += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(choice), signal.SIGKILL)
        if kind == "worker":
            assert process.wait(timeout=120) == 0, "a dead worker does not end the run"
            assert _rows(ledger) == list(range(COUNT))
        else:
            process.wait(timeout=120)
            _gone({p: c for p, c in tree.items() if "ray::Slot" in c or "raylet/raylet" in c}, 60)
            agents |= {p: c for p, c in tree.items() if "Agent" in c}
        assert before <= set(_rows(ledger)), "what was committed stays"
    process = _driver(ledger, marks)
    out, _ = process.communicate(timeout=120)
    assert json.loads(out.splitlines()[-1])["aside"] == 0
    for path in tmp_path.glob("ledger-*"):
        rows = _rows(path)
        assert len(rows) == len(set(rows))
        assert not [p for p in path.rglob("*.tmp") if path == ledger]
    assert _rows(ledger) == list(range(COUNT))
    _gone(agents, 180)  # Ray's helpers notice later that their raylet is gone
    assert victims["driver"] >= 5 and victims["raylet"] >= 5 and victims["worker"] >= 4, victims


def test_the_next_command_sweeps_what_a_killed_curate_left(tmp_path: Path) -> None:
    """Ray's session folder and the workers' last words, once Ray's own processes have noticed and ended."""
    puppets.make(tmp_path / "videos", 2, 3, schema.load("tiny", []).curation.puppets, False)
    cli = [sys.executable, str(ROOT / "cli.py")]
    with tempfile.TemporaryDirectory(prefix="ef-") as temporary:  # short: sockets lie in it
        env = os.environ | {"TMPDIR": temporary}
        command = [*cli, "curate", str(tmp_path / "videos"), "--out", str(tmp_path / "catalog")]
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        tree: dict[int, str] = {}
        while not any("ray::Slot" in command for command in tree.values()):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
            tree = _descendants(process.pid)
        process.kill()
        process.wait(30)
        place = Path(temporary) / f"echoforge-{os.geteuid()}"
        assert list(place.glob("*/session_*")) and len(list(place.glob("*.lock"))) == 2
        _gone({p: c for p, c in tree.items() if "ray" in c}, 180)
        subprocess.run([*cli, "--help"], env=env, check=True, stdout=subprocess.DEVNULL)
        assert {p.name for p in place.iterdir()} <= set(unasked.CACHES.values())


def _gone(tree: dict[int, str], seconds: float) -> None:
    """Every process of a dead run ends by itself."""
    deadline = time.monotonic() + seconds
    while alive := {p: c for p, c in tree.items() if _command(p)}:
        assert time.monotonic() < deadline, f"left running: {alive}"
        time.sleep(0.2)


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def test_a_node_that_dies_in_mid_run_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three nodes on one machine; one goes away, another joins, the result is complete and nothing is set aside."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(HERE)]))
    sys.path.insert(0, str(HERE))
    import ray
    import workers
    from ray.cluster_utils import Cluster

    share = WorkerShare(0, 1, 0, 400, 1500)
    cfg = ExecutionConfig(share, share, 80, 60, 0, 0.3, 64, 50, 3, 10_000, 1000)
    node = {"num_cpus": 1, "memory": 500 * 2**20, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    victim = cluster.add_node(**node)
    cluster.add_node(**node)
    work = [Unit(unit_id(n), {"number": n, "sleep": 0.1}) for n in range(300)]
    ledger = Ledger(str(tmp_path / "ledger"), workers.TABLES, {"square": "1"})
    seen: list[int] = []

    class Killer:
        """Takes a node away once 40 units are done, and adds another at 120."""

        done = 0

        def begin(self, total: int, done: int) -> None: ...

        def linked(self, dashboard: str) -> None: ...

        def update(self, receipt: Receipt | None, in_flight: int, workers: int) -> None:
            seen.append(workers)
            before, self.done = self.done, self.done + (len(receipt.done) if receipt else 0)
            if before < 40 <= self.done:
                cluster.remove_node(victim, allow_graceful=False)
            if before < 120 <= self.done:
                cluster.add_node(**node)

        def failed(self, failure: object) -> None: ...

        def end(self) -> None: ...

    try:
        outcome = runner.run(work, workers.Squares, ledger, share, cfg, ray_address=cluster.address, watcher=Killer())
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert outcome.quarantined == [] and max(seen) >= 3
    rows = sorted(n for table in ledger.read("squares") for n in table["number"].to_pylist())
    assert rows == list(range(300))


FULL = """
import os, subprocess, sys
mount, marks, source = sys.argv[1:4]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", mount], check=True)
driver = [sys.executable, "-c", source, mount + "/ledger", marks]
first = subprocess.run(driver, capture_output=True, text=True, check=False)
left = subprocess.run(["find", mount, "-name", "*.tmp"], capture_output=True, text=True, check=True).stdout
subprocess.run(["mount", "-o", "remount,size=50m", mount], check=True)
second = subprocess.run(driver, capture_output=True, text=True, check=False)
print(first.returncode, repr(first.stderr.strip().splitlines()[-1:]), repr(left), second.stdout.splitlines()[-1])
from pathlib import Path
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
import workers
from pipeline.engine.ledger import Ledger
ledger = Ledger(mount + "/ledger", workers.TABLES, {"square": "1"})
print(sorted(n for t in ledger.read("squares") for n in t["number"].to_pylist()) == list(range(COUNT)))
"""


def test_a_disk_that_is_full_ends_the_run_in_one_sentence_and_the_next_one_continues(tmp_path: Path) -> None:
    """A real small file system, in a name space of its own."""
    mount, marks = tmp_path / "small", tmp_path / "marks"
    mount.mkdir()
    marks.mkdir()
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a file system of his own")
    source = DRIVER.format(root=str(ROOT), here=str(HERE), count=COUNT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
    command = [
        "unshare",
        "-rm",
        sys.executable,
        "-c",
        FULL.replace("COUNT", str(COUNT)),
        str(mount),
        str(marks),
        source,
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    first, equal = done.stdout.splitlines()
    assert "no space is left; free some and run again" in first and first.startswith("1 "), first
    assert '"aside": 0' in first and '"before": 0' not in first, first
    assert equal == "True"
