"""The program runs in any terminal and any folder: nothing waits for a terminal, nobody's `model.py` replaces ours."""

from __future__ import annotations

import os
import pty
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from configs import schema
from curation import puppets
from pipeline.engine import worker_entry

ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, str(ROOT / "cli.py")]
HOSTILE = ("model", "configs", "pipeline", "curation", "queue")


def in_terminal(command: list[str], folder: Path, env: Mapping[str, str], seconds: float) -> tuple[int, str]:
    """Exit status and output of a command whose controlling terminal is a new pseudo-terminal; -1: it hung."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.chdir(folder)
            os.execvpe(command[0], command, {**env})
        finally:  # the child must never go on as a test run
            os._exit(127)
    output, deadline = b"", time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.5)[0]:
                try:
                    output += os.read(terminal, 65536)
                except OSError:  # the last process that had the terminal has ended
                    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), output.decode()
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return -1, output.decode()
    finally:
        os.close(terminal)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A working directory with modules and packages that are named like ours, or like Python's, and fail on import."""
    folder = tmp_path / "hostile"
    for name in ("configs", "train", "evaluation"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise ImportError('the wrong {name}/')")
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"raise ImportError('the wrong {name}.py')")
    return folder


@pytest.fixture
def ffmpeg(tmp_path: Path) -> dict[str, str]:
    """An environment with an ffmpeg that leaves a mark and waits for the terminal, as the real one does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("ffmpeg", "mkvmerge"):
        program = folder / name
        program.write_text(f"#!/bin/sh\ntouch '{folder}/{name}.ran'\nread line\n")
        program.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def _ran(env: Mapping[str, str]) -> list[Path]:
    return list(Path(env["PATH"].split(os.pathsep)[0]).glob("*.ran"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media") / "videos"
    puppets.make(folder, 1, 11, schema.load("tiny").curation.puppets, False)
    return folder


def test_the_cut_detector_starts_no_program(ffmpeg: dict[str, str], tmp_path: Path) -> None:
    # A child in the background of its terminal, as Ray's workers are.
    code = """
import subprocess, sys
child = "from curation.analysis.shots import _adaptive_detector as d; print(d().__module__)"
sys.exit(subprocess.run([sys.executable, "-c", child], process_group=0, check=False).returncode)
"""
    env = {**ffmpeg, "PYTHONPATH": str(ROOT)}
    status, output = in_terminal([sys.executable, "-c", code], tmp_path, env, 60)
    assert status == 0 and "scenedetect.detectors.adaptive_detector" in output, (status, output)
    assert not _ran(env)
    whole = (
        "import curation.analysis.shots as s; s._adaptive_detector(); import scenedetect; print(scenedetect.open_video)"
    )
    done = subprocess.run([sys.executable, "-c", whole], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "whoever imports the package later gets the whole of it: " + done.stderr


def test_workers_in_a_hostile_folder_import_our_packages_and_have_no_terminal(
    hostile: Path, ffmpeg: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "driver.py").write_text(
        f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from pathlib import Path
import workers
from pipeline.engine import runner
from pipeline.config import WorkerShare
from pipeline.engine.ledger import Ledger
from pipeline.engine.unit import Unit
from configs import schema
share = WorkerShare(count=1, cpus=1, gpus=0, memory_mb=800, memory_limit_mb=1500)
ledger = Ledger("ledger", workers.SAID, {{}})
runner.run([Unit("u", {{}})], workers.Where, ledger, share, schema.load("tiny").pipeline.execution)
"""
    )
    env = {**ffmpeg, "PYTHONPATH": str(Path(__file__).parent)}
    status, output = in_terminal([sys.executable, str(tmp_path / "driver.py")], hostile, env, 120)
    assert status == 0, output
    (part,) = hostile.glob("ledger/*/parts/*.parquet")
    said = [row["text"] for row in pq.read_table(part)["said"].to_pylist()[0]]
    assert said == [*(str(ROOT / name / "__init__.py") for name in worker_entry.OWN), os.devnull]


def _curated(command: list[str], hostile: Path, env: dict[str, str], videos: Path, *more: str) -> None:
    """Paths are relative to a folder that is not ours; the catalog holds them from the root on."""
    shutil.copytree(videos, hostile / "media" / "videos")
    arguments = ["curate", "media/videos", "--out", "out", "--set", "sync.required=false", *more]
    status, output = in_terminal([*command, *arguments], hostile, env, 240)
    assert status == 0, output
    rows = pq.read_table(hostile / "out" / "videos").to_pylist()
    assert [row["source_uri"] for row in rows] == [str(next((hostile / "media" / "videos").glob("*.mp4")))]
    assert rows[0]["verdict"] != "error" and not _ran(env)


def test_curate_in_a_terminal_a_hostile_folder_and_with_an_ffmpeg(
    hostile: Path, ffmpeg: dict[str, str], videos: Path
) -> None:
    _curated(CLI, hostile, ffmpeg, videos)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["echoforge", "torchrun", "-m cli"])
def test_every_way_to_start_the_program_works_in_a_hostile_folder(
    way: str, hostile: Path, ffmpeg: dict[str, str], videos: Path
) -> None:
    program = Path(sys.executable).with_name(way)
    ffmpeg = {**ffmpeg, "PYTHONPATH": str(ROOT)}  # this checkout, where another is installed
    if way == "-m cli":  # Python itself puts the working directory before its own library then
        (hostile / "queue.py").unlink()
        command = [sys.executable, "-m", "cli"]
    elif not program.exists():
        pytest.skip(f"{way} is not installed beside this Python")
    elif way == "torchrun":
        command = [str(program), "--nproc-per-node=1", "--master-port=0", CLI[1]]
    else:
        command = [str(program)]
    _curated(command, hostile, ffmpeg, videos)


@pytest.fixture
def cluster(hostile: Path, ffmpeg: dict[str, str]) -> Iterator[str]:
    """A Ray of its own processes on this machine, started in a hostile folder."""
    ffmpeg |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = str(Path(sys.executable).with_name("ray"))
    folder = Path("/tmp") / f"ef-cluster-{os.getpid()}"  # socket paths end at 107 characters
    options = [f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--temp-dir={folder}"]
    command = [ray, "start", "--head", "--block", *options, "--num-cpus=1", "--object-store-memory=80000000"]
    process = subprocess.Popen(
        command, cwd=hostile, env=ffmpeg, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None, "ray start ended"
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()  # `--block` ends what it started
        try:
            process.wait(30)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_joined_cluster_works_and_one_of_another_ray_is_one_sentence(
    cluster: str, hostile: Path, ffmpeg: dict[str, str], videos: Path
) -> None:
    _curated(CLI, hostile, ffmpeg, videos, "--ray-address", cluster)
    pretend = f"""
import json
from ray._raylet import GcsClient
client = GcsClient({cluster!r})
data = json.loads(client.internal_kv_get(b"CLUSTER_METADATA", b"cluster"))
client.internal_kv_put(b"CLUSTER_METADATA", json.dumps(data | dict(ray_version="2.9.0")).encode(), True, b"cluster")
"""
    subprocess.run([sys.executable, "-c", pretend], check=True, cwd=ROOT, env=ffmpeg)
    command = [*CLI, "curate", "media/videos", "--out", "other", "--ray-address", cluster]
    for mode, said in (("token", "run the same Ray and Python"), ("disabled", "set RAY_AUTH_MODE=token")):
        env = {**ffmpeg, "RAY_AUTH_MODE": mode}
        done = subprocess.run(command, cwd=hostile, env=env, capture_output=True, text=True, check=False)
        words = " ".join(done.stderr.split())
        assert done.returncode == 4 and "Traceback" not in words and words.count("error: joining") == 1, done.stderr
        assert said in words, words


def test_a_node_without_our_code_or_with_other_code_is_one_sentence(tmp_path: Path) -> None:
    """What the actor does on a machine where the driver's folder does not exist."""
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("entry", {str(ROOT / "pipeline" / "engine" / "worker_entry.py")!r})
entry = importlib.util.module_from_spec(spec); spec.loader.exec_module(entry)
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(getattr(f, "__module__", f))]
sys.path[:] = [p for p in sys.path if p != {str(ROOT)!r}] + sys.argv[1:]
driver = entry.Driver("/elsewhere", {worker_entry.code_digest(str(ROOT))!r}, "9.9", ())
print(entry.Slot(driver, [], "/elsewhere/words", 0)._prepare("10.0.0.7"))
"""

    def said(*path: Path) -> str:
        command = [sys.executable, "-I", "-c", code, *map(str, path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    for name in worker_entry.OWN:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert said(tmp_path) == "None"
    with (tmp_path / "model" / "__init__.py").open("a") as file:
        file.write("\n# another version\n")
    other = said(tmp_path)
    assert other.startswith("the node 10.0.0.7") and "other code" in other and "9.9" in other
    assert "has no EchoForge; install 9.9 on every node" in said()
