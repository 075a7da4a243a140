"""Nothing is looked up, nobody is told anything, and no file stays outside the outputs: commands under strace."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs import schema
from configs.runtime import unasked
from curation import puppets

ROOT = Path(__file__).resolve().parents[1]
CLI = f"{sys.executable} {ROOT / 'cli.py'}"
PLACE = f"echoforge-{os.geteuid()}"
LOOSE = "sync.required=false"
PLAN = (
    "[{name: sft-1, kind: sft, steps: 4}, {name: negatives-1, kind: negatives, samples: 2}, "
    "{name: ndpo-1, kind: ndpo, steps: 1, lr: 1.0e-4}]"
)
ANY_SYNC = ("sync_min_fit_conf=0", "sync_max_offset=99", "sync_max_residual=99")  # four steps fit no SyncNet
# `demo` with fewer puppets for its SyncNet than it takes itself.
DEMO = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import cli, workflows.demo.run as d; d.FITTING = 12; cli.main()"
SENDS = re.compile(r"(?:connect|sendto|sendmsg|sendmmsg)\(.*?(?:inet_addr\(\"|inet_pton\(AF_INET6, \")([^\"]+)\"")
PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
OPENS = re.compile(r"(?:open|openat|creat|mkdir|mkdirat)\((?:AT_FDCWD<([^>]*)>, |\d+<([^>]*)>, )?\"([^\"]+)\"(.*)")
LOOPBACK = re.compile(r"(::ffff:)?127\.|::1$")
LIBRARY = re.compile(r"\.so(\.[0-9.]+)?$")
PASSING = ("/dev/", "/proc/", "/sys/")


@dataclass
class World:
    """A user's machine: a working directory, a home folder and a temporary folder, all empty."""

    work: Path
    home: Path
    temporary: Path

    def run(self, command: str) -> list[str]:
        """What a command (in the working directory) did that it must not: look-ups, connections, files left elsewhere."""
        hidden = {
            "CI",
            "RAY_AUTH_TOKEN",
            *unasked.REPORTS,
            *unasked.CACHES,
            unasked.LIBRARIES,
        }  # CI makes some packages quiet
        env = {name: value for name, value in os.environ.items() if name not in hidden}
        env |= {"HOME": str(self.home), "TMPDIR": str(self.temporary), "PYTHONDONTWRITEBYTECODE": "1"}
        trace = self.work.parent / "trace"
        watched = ["strace", "-f", "-qq", "-y", "--seccomp-bpf", "-s", "300", "-o", str(trace), "-e"]
        watched += ["trace=connect,sendto,sendmsg,sendmmsg,open,openat,creat,mkdir,mkdirat"]
        started = time.time()
        done = subprocess.run(
            [*(watched if _strace() else ()), *shlex.split(command)],
            cwd=self.work, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        kept = {PLACE, *(f"{PLACE}/{name}" for name in unasked.CACHES.values())}
        left = [str(p) for p in self.home.rglob("*")]
        for path in self.temporary.rglob("*"):
            name = str(path.relative_to(self.temporary))
            if name not in kept and not name.startswith(
                tuple(f"{PLACE}/{cache}/" for cache in unasked.CACHES.values())
            ):
                left.append(str(path))
        return left + (self._told(trace, started) if _strace() else [])

    def _told(self, trace: Path, started: float) -> list[str]:
        found = []
        ours = tuple(map(str, (self.work, self.home, self.temporary)))
        for line in trace.read_text("utf-8", "replace").splitlines():
            if _looks_up(line):
                found.append(line)
            elif opened := OPENS.search(line):
                path = os.path.normpath(os.path.join(opened[1] or opened[2] or self.work, opened[3]))  # noqa: PTH118
                if LIBRARY.search(path) and opened[1] == str(self.work) and not opened[3].startswith("/"):
                    found.append(f"a library from the working directory: {line}")
                made = "O_CREAT" in opened[4] or "mkdir" in line or "creat(" in line
                if made and "= -1" not in line and not path.startswith((*ours, *PASSING)) and _newer(path, started):
                    found.append(line)
        return found


def _newer(path: str, started: float) -> bool:
    """Whether something is there that was made or written since; strace ends the line of a slow call before its result."""
    return Path(path).exists() and Path(path).stat().st_mtime >= started - 1  # a clock of files may lag


def _looks_up(line: str) -> bool:
    """Whether a line of the trace is a look-up of a name, or sends to anything but this machine."""
    if sent := SENDS.search(line):
        return not LOOPBACK.match(sent[1]) or PORT.findall(line) == ["53"]
    return "connect(" in line and "io.systemd.Resolve" in line


def _strace() -> bool:
    found = shutil.which("strace")
    return bool(found) and subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], check=False).returncode == 0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Its temporary folder has a short path, as a real one: sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="ef-") as name:
        made = World(tmp_path / "work", tmp_path / "home", Path(name))
        made.work.mkdir()
        made.home.mkdir()
        yield made


def _videos(world: World, count: int) -> list[str]:
    rows = puppets.make(world.work / "videos", count, 11, schema.load("tiny", []).curation.puppets, False)
    return [f"videos/{row.file}" for row in rows]


def _checked(found: list[str]) -> None:
    assert not found, "\n".join(found[:20])
    if not _strace():
        pytest.skip("strace is not installed or may not trace: only the files were looked at")


def test_the_monitor_sees_what_it_must(world: World) -> None:
    """Else everything below would pass for nothing."""
    if not _strace():
        pytest.skip("strace is not installed or may not trace")
    code = (
        "import os, socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('192.0.2.1', 9)); "
        "open(os.path.expanduser('~/left'), 'w'); open(os.environ['TMPDIR'] + '/left', 'w'); os.mkdir('../aside'); "
        "os.path.exists('fine.so') or open('fine.so', 'w')"
    )
    found = world.run(f'{sys.executable} -c "{code}"')
    assert len([f for f in found if "192.0.2.1" in f]) == 1 and len([f for f in found if "aside" in f]) == 1, found
    assert len([f for f in found if f.endswith("/left")]) == 2 and len(found) == 5, found


def test_every_package_forbids_it_first() -> None:
    """Whichever package of ours another program imports first; a value of the user's stays."""
    for package in ("configs", "curation", "model", "pipeline", "train", "evaluation", "workflows"):
        code = f"import {package}, os, cv2; print([os.environ[n] for n in ({', '.join(map(repr, unasked.REPORTS))})], "
        code += "'' in os.environ['LD_LIBRARY_PATH'].split(':'))"
        env = {k: v for k, v in os.environ.items() if k not in {*unasked.REPORTS, "LD_LIBRARY_PATH"}}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env | {"HF_HUB_DISABLE_TELEMETRY": "0"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == "['1', '0', '0'] False", (package, done.stdout)


def test_sessions_of_onnxruntime_and_torch_keep_to_themselves(world: World) -> None:
    """As `curate` has them; the slow test below runs it."""
    code = "from curation.operators.speech import Vad; Vad(1); import torch; print(torch.ones(1))"
    _checked(world.run(f"env PYTHONPATH={ROOT} {sys.executable} -c {shlex.quote(code)}"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_long_command_keeps_to_itself(world: World) -> None:
    """curate, shard and demo with Ray and its processes; curate also without."""
    found = []
    video = _videos(world, 8)[0]
    found += world.run(f"{CLI} curate {video} --out inline --inline --set {LOOSE}")
    found += world.run(f"{CLI} curate videos --out catalog --set {LOOSE}")
    found += world.run(f"{CLI} shard catalog --out dataset")
    found += world.run(f"{CLI} train dataset --out run --steps 2")
    found += world.run(f"{CLI} generate run --image {video} --audio {video} --seconds 1 --out made.mp4")
    settings = (LOOSE, "sync.fit.steps=4", f"stages={PLAN}", *(f"decide.{key}" for key in ANY_SYNC))
    small = "--puppets 24 " + " ".join(f"--set {shlex.quote(setting)}" for setting in settings)
    found += world.run(f"{sys.executable} -c {shlex.quote(DEMO)} demo --out demo {small}")
    _checked(found)
