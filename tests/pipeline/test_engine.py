"""The engine: the same results inline and on Ray, whatever breaks."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.errors import MissingWeights
from pipeline.config import ExecutionConfig, WorkerShare
from pipeline.engine import batch, runner
from pipeline.engine.ledger import Ledger
from pipeline.engine.rows import tables
from pipeline.engine.schedule import EngineError, Outcome
from pipeline.engine.unit import Result, Unit, unit_id

# Ray's workers must be able to import the workers of these tests by name.
_HERE = str(Path(__file__).parent)
sys.path.insert(0, _HERE)
_SPEC = importlib.util.spec_from_file_location("workers", Path(_HERE) / "workers.py")
assert _SPEC and _SPEC.loader
workers: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["workers"] = workers
_SPEC.loader.exec_module(workers)

SHARE = WorkerShare(count=2, cpus=1, gpus=0, memory_mb=800, memory_limit_mb=1500)
EXECUTION = ExecutionConfig(
    curate=SHARE, shard=SHARE, object_store_mb=80, budget_s=60, budget_per_mb=0, commit_s=0.2, commit_units=64,
    max_failures=50, node_losses=3, merge_parts=10_000, rows_per_file=1000,
)  # fmt: skip


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([_HERE, os.environ.get("PYTHONPATH", "")]))


def ledger(folder: Path, version: str = "1") -> Ledger:
    return Ledger(str(folder / "ledger"), workers.TABLES, {"square": version})


def units(count: int, **trouble: dict[str, Any]) -> list[Unit]:
    made = [Unit(unit_id(n), {"number": n}, key=f"n{n}") for n in range(count)]
    for name, extra in trouble.items():
        n = int(name[1:])
        budget = extra.pop("budget_s", 60.0)
        made[n] = dataclasses.replace(made[n], payload={"number": n, **extra}, budget_s=budget)
    return made


def run(where: Ledger, work: list[Unit], inline: bool, **more: Any) -> Outcome:
    return runner.run(work, workers.Squares, where, SHARE, EXECUTION, inline=inline, **more)


def squares(where: Ledger) -> list[tuple[int, int]]:
    return sorted((r["number"], r["square"]) for t in where.read("squares") for r in t.to_pylist())


def test_inline_runs_each_unit_once_and_resumes_with_what_is_missing(tmp_path: Path) -> None:
    where, marks = ledger(tmp_path), tmp_path / "marks"
    work = units(300, u7={"marks": str(marks)})
    first = run(where, work[:100], inline=True)
    second = run(where, work, inline=True)
    assert (first.done, second.before, second.done) == (100, 100, 200)
    assert squares(where) == [(n, n * n) for n in range(300)]
    assert marks.read_bytes() == b"x"
    assert len(list(Path(where.parts).iterdir())) < 60, "short units are committed together"


def test_a_failing_unit_is_retried_once_then_set_aside_with_its_cause(tmp_path: Path) -> None:
    where, marks = ledger(tmp_path), tmp_path / "marks"
    work = units(20, u3={"trouble": "raise", "marks": str(marks)}, u4={"trouble": "once", "marks": str(tmp_path / "m")})
    outcome = run(where, work, inline=True)
    assert [f.key for f in outcome.quarantined] == ["n3"]
    assert marks.read_bytes() == b"xx"
    failure = where.quarantined()[work[3].id]
    assert "no such luck" in failure.cause and "hunter2" not in failure.cause + failure.detail
    assert squares(where) == [(n, n * n) for n in range(20) if n != 3]
    assert run(where, work, inline=True).done == 0, "not tried again by itself"
    mended = units(20)
    again = run(where, mended, inline=True, retry_failed=True)
    assert (again.done, where.quarantined()) == (1, {})


def test_a_row_that_no_table_holds_fails_its_unit_alone(tmp_path: Path) -> None:
    """Whatever a commit has against one unit, the others of its batch are committed and the cause is named."""
    values = {3: 1j, 90: 2**40}  # no whole number; a square beyond 64 bits
    outcome = run(ledger(tmp_path), units(200, **{f"u{n}": {"number": v} for n, v in values.items()}), inline=True)
    causes = {f.key: f.cause for f in outcome.quarantined}
    assert set(causes) == {f"n{n}" for n in values} and outcome.done == 198
    assert all("cannot be written" in cause for cause in causes.values())
    assert len(squares(ledger(tmp_path))) == 198


def test_many_failures_in_a_row_stop_the_run(tmp_path: Path) -> None:
    work = units(60, **{f"u{n}": {"trouble": "raise"} for n in range(60)})
    with pytest.raises(EngineError, match="50 units failed in a row"):
        run(ledger(tmp_path), work, inline=True)


def test_poison_costs_one_unit_each_and_workers_that_cannot_start_end_the_run(
    tmp_path: Path, on_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One Ray for all of it: crash, kill, hang with the interpreter's lock held, memory, exception; equal results."""
    from pipeline.engine import ray_pool, worker_entry
    from pipeline.engine.ray_session import session

    where = ledger(tmp_path)
    work = units(
        200,
        u3={"trouble": "segfault"},
        u50={"trouble": "kill"},
        u90={"trouble": "hang", "budget_s": 1.5},
        u120={"trouble": "memory"},
        u150={"trouble": "raise"},
        u199={"trouble": "once", "marks": str(tmp_path / "m")},
    )
    with session(None, SHARE, EXECUTION.object_store_mb):
        outcome = run(where, work, inline=False)
        with pytest.raises(MissingWeights, match="fetch them"):
            runner.run(units(3), workers.NoWeights, ledger(tmp_path, "2"), SHARE, EXECUTION)
        elsewhere = worker_entry.Driver("/elsewhere", "0" * 16, "9.9", ())
        monkeypatch.setattr(ray_pool, "_this_code", lambda: elsewhere)  # as if the driver were another machine's
        with pytest.raises(EngineError, match=r"runs other code of EchoForge .* than this machine \(9\.9"):
            run(ledger(tmp_path, "3"), units(3), inline=False)
    bad = {3, 50, 90, 120, 150}
    assert squares(where) == [(n, n * n) for n in range(200) if n not in bad]
    causes = {f.key: f.cause for f in outcome.quarantined}
    assert set(causes) == {f"n{n}" for n in bad}
    assert "Segmentation fault" in causes["n3"]
    assert "without a word" in causes["n50"]
    assert "time budget of 1.5 s" in causes["n90"]
    assert "memory" in causes["n120"]
    assert "no such luck" in causes["n150"]


def test_ray_starts_where_no_home_folder_can_be_written() -> None:
    """As in a container under a number for a user. In a process of its own: Ray remembers its token for good."""
    code = (
        "import ray; from pipeline.engine.ray_session import session; from pipeline.config import WorkerShare\n"
        "with session(None, WorkerShare(1, 1, 0, 400, 1500), 80):\n"
        " print(ray.get(ray.remote(lambda: 'answered').remote()))\n"
    )
    command = [sys.executable, "-c", code]
    env = os.environ | {"HOME": "/proc/no-home"}
    done = subprocess.run(command, env=env, cwd=Path(_HERE).parents[1], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "answered", done.stderr[-2000:]


def test_what_travels_between_processes_is_small_whatever_the_rows_weigh(tmp_path: Path) -> None:
    """Ray keeps answers below 100 kB out of its object store; rows go from the worker's process to the part file."""
    where = ledger(tmp_path)
    where.prepare()

    class Heavy:
        def run(self, payload: object) -> Result:
            return Result(
                tables({"squares": [{"number": n, "square": n} for n in range(100_000)]}, workers.TABLES),
                timings={"op": 1.0},
            )

    receipt = batch.run_batch(Heavy(), units(8), where, "v")
    assert len(receipt.done) == 8 and len(pickle.dumps(receipt)) < 20_000
    assert sum(table.num_rows for table in where.read("squares")) == 800_000


def test_a_cluster_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no Ray cluster answers"):
        run(ledger(tmp_path), units(3), inline=False, ray_address="127.0.0.1:9")


def test_shares_say_how_many_workers_fit_and_a_fraction_lies_on_one_gpu() -> None:
    from pipeline.engine.ray_pool import places

    machine = {"CPU": 8.0, "GPU": 2.0, "memory": 64.0 * 2**30}
    for cpus, gpus, memory_mb, fit in (
        (1, 0, 1000, 8), (0.1, 0, 100, 80), (1, 0.1, 1000, 8), (0.1, 0.1, 100, 20), (1, 0.6, 1000, 2), (0, 1, 1000, 2),
        (1, 0, 40_000, 1), (1, 4, 1000, 0), (3, 0, 1000, 2),
    ):  # fmt: skip
        assert places(machine, WorkerShare(0, cpus, gpus, memory_mb, 2 * memory_mb)) == fit, (cpus, gpus, memory_mb)


@pytest.fixture(autouse=True)
def _no_ray_left() -> Iterator[None]:
    yield
    if "ray" in sys.modules:
        import ray

        assert not ray.is_initialized()


def test_the_cluster_files_of_the_documentation_name_commands_that_exist() -> None:
    import shlex

    import yaml
    from typer.testing import CliRunner

    import cli

    folder = Path(__file__).resolve().parents[2] / "docs" / "cluster"
    cluster = yaml.safe_load((folder / "ray-cluster.yaml").read_text())
    assert cluster["head_node_type"] in cluster["available_node_types"]
    job = yaml.safe_load((folder / "kuberay-job.yaml").read_text())
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "echoforge"
    assert CliRunner().invoke(cli.app, [*arguments, "--help"]).exit_code == 0
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        for container in group["template"]["spec"]["containers"]:
            assert container["resources"]["limits"]["memory"].endswith("Gi")
