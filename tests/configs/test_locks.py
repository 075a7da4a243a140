"""One process at a time: the second is told who the first is, the dead hold nothing, and lock files harm nobody."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from configs import folders
from configs.errors import EchoForgeError
from configs.runtime import leases, locks, processes

HOLD = """
import errno, os, subprocess, sys
from configs.runtime import leases, locks
def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")
if sys.argv[2] == "lease":
    locks.fcntl.flock = no_locks
with locks.locked(sys.argv[1], "run", "train"):
    if sys.argv[2] == "fork" and os.fork() == 0:
        print(os.getpid(), flush=True)
        os.pause() if hasattr(os, "pause") else __import__("signal").pause()
    if sys.argv[2] == "exec":
        print(subprocess.Popen(["sleep", "100"], close_fds=False).pid, flush=True)
    if sys.argv[2] in ("plain", "lease"):
        print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, kind: str = "plain") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lock of ``folder``, and the id that it printed: its own, or its child's."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    try:
        yield process, pid
    finally:
        for number in {process.pid, pid}:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()


@contextmanager
def take(folder: Path) -> Iterator[locks.Lock]:
    with locks.locked(folder, "run", "train") as lock:
        yield lock


def refused(folder: Path) -> str:
    with pytest.raises(locks.Locked) as caught, take(folder):
        pass
    return str(caught.value)


def test_the_second_is_told_who_the_first_is_and_writes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    with holder(run) as (process, _):
        before = {p: p.read_bytes() for p in run.rglob("*")}
        began = time.monotonic()
        sentence = refused(run)
        assert time.monotonic() - began < 1
        assert (
            f"process {process.pid} on {processes.host()}" in sentence and "`train`" in sentence and "wait" in sentence
        )
        assert time.strftime("since %Y-%m-%d") in sentence and "\n" not in sentence
        assert {p: p.read_bytes() for p in run.rglob("*")} == before
        assert folders.kinds(run) == []
        process.communicate()
    assert not (tmp_path / "new").exists(), "nothing was put into it: what was made for the lock goes with it"


@pytest.mark.parametrize("kind", ["plain", "fork", "exec"])
def test_a_killed_holder_holds_nothing_even_if_its_children_live(tmp_path: Path, kind: str) -> None:
    with holder(tmp_path, kind) as (process, pid):
        refused(tmp_path)
        process.kill()
        process.wait()
        assert kind == "plain" or processes.exists(pid)
        with take(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_command_inside_a_command_holds_the_same_lock_and_another_thread_does_not(tmp_path: Path) -> None:
    seen: list[str] = []
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "run")
    with take(tmp_path / "run"):
        with take(link):
            pass
        thread = threading.Thread(target=lambda: seen.append(refused(tmp_path / "run")))
        thread.start()
        thread.join()
    assert str(os.getpid()) in seen[0]
    with take(tmp_path / "run"):
        pass


def test_many_at_once_and_again_and_again_are_never_two(tmp_path: Path) -> None:
    """The file is taken away and made anew all the time; who is inside counts itself."""
    code = """
import os, sys, time
from pathlib import Path
from configs.runtime import locks
folder, inside = Path(sys.argv[1]) / "run", Path(sys.argv[1]) / "inside"
end, got = time.monotonic() + 1.5, 0
while time.monotonic() < end:
    try:
        with locks.locked(folder, "run", "x"):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            got += 1
            inside.unlink()
    except locks.Locked:
        pass
print(got)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in several:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert int(out) > 10


@pytest.mark.parametrize("text", ["[" * 4096, "5", "[]", "\0", "Infinity", None], ids=lambda text: str(text)[:9])
def test_a_note_that_nobody_wrote_has_an_unknown_owner(text: str | None) -> None:
    if text is None:  # ours, but for one number
        about = json.loads(locks.note("train"))
        text = json.dumps(about | {"pid": float("inf"), "since": float("nan")})
    assert not locks.dead(text)
    assert "by another process" in locks.refusal("run", "run", text)


def test_a_strangers_lock_file_is_not_followed_and_not_obeyed(tmp_path: Path) -> None:
    precious, folder = tmp_path / "precious", tmp_path / "run"
    precious.write_text("mine")
    folder.mkdir()
    lock = folder / locks.LOCK_FILE
    hostile: list[Callable[[], object]] = [
        lambda: lock.symlink_to(precious), lambda: lock.hardlink_to(precious), lambda: os.mkfifo(lock), lock.mkdir,
    ]  # fmt: skip
    for make in hostile:
        make()
        with pytest.raises(EchoForgeError, match="cannot be locked"), take(folder):
            pass
        assert precious.read_text() == "mine"
        lock.rmdir() if lock.is_dir() and not lock.is_symlink() else lock.unlink()
    for text in (
        "",
        "{",
        "[1]",
        '{"since": 1e999}',
        json.dumps({"since": 0, "command": "\x1b[2J", "pid": 1, "host": "a\nb"}),
    ):
        lock.write_text(text)
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            sentence = refused(folder)
        assert sentence.isprintable() and sentence.startswith("the run '")
        with take(folder):
            pass


# ------------------------------------------------------------------------------------------------------ leases


@pytest.fixture
def no_kernel_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system without locks; leases are renewed often, and lost soon."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    for name, seconds in (("SAFE_S", 2.0), ("RENEW_S", 0.1)):
        monkeypatch.setattr(leases, name, seconds)


@pytest.mark.usefixtures("no_kernel_locks")
def test_without_kernel_locks_a_lease_does_the_same(tmp_path: Path) -> None:
    with holder(tmp_path, "lease") as (process, _):
        assert f"process {process.pid}" in refused(tmp_path)
        process.kill()
        process.wait()
        with take(tmp_path) as lock:  # a dead process of this machine: no need to wait for its term
            board = leases.FolderBoard(tmp_path)
            (name,) = board.names()
            began, deadline = board.written(name), time.monotonic() + 20
            while board.written(name) < began + 0.5:  # it is renewed
                assert time.monotonic() < deadline
                time.sleep(0.02)
            lock.check()
            assert "process" in refused_elsewhere(tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.name != locks.LOCK_FILE] == [leases.FOLDER]


def refused_elsewhere(folder: Path) -> str:
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(refused(folder)))
    thread.start()
    thread.join()
    return said[0]


def strangers_note(folder: Path) -> leases.FolderBoard:
    """The note of a process of another machine."""
    board = leases.FolderBoard(folder)
    about = json.loads(locks.note("train")) | {"host": "elsewhere", "pid": 7}
    assert board.create("00000007", json.dumps(about))
    return board


def age(folder: Path, name: str, seconds: float) -> None:
    when = time.time() - seconds
    os.utime(folder / leases.FOLDER / name, (when, when))


@pytest.mark.usefixtures("no_kernel_locks")
def test_a_lease_of_another_machine_is_taken_over_after_its_term_and_not_before(tmp_path: Path) -> None:
    board = strangers_note(tmp_path)
    age(tmp_path, "00000007", leases.TERM_S - 10)
    assert "process 7 on elsewhere" in refused(tmp_path)
    age(tmp_path, "00000007", leases.TERM_S + 1)
    with take(tmp_path):
        assert board.names() == ["00000008"]
    assert board.names() == []


@pytest.mark.usefixtures("no_kernel_locks")
def test_who_could_not_renew_stops_before_others_may_begin_and_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that does not answer for a while, then does; and a note that somebody else put up meanwhile."""
    with take(tmp_path) as lock:
        lock.check()
        with monkeypatch.context() as broken:
            broken.setattr(leases.FolderBoard, "write", _no_answer)
            time.sleep(leases.SAFE_S + 0.2)
            with pytest.raises(locks.LockLost, match="could not be renewed"):
                locks.check(tmp_path)
        time.sleep(0.3)
        with pytest.raises(locks.LockLost):
            lock.check()
        assert leases.FolderBoard(tmp_path).names() == ["00000001"], "left alone: it may be another's by now"
    age(tmp_path, "00000001", leases.TERM_S + 1)
    with take(tmp_path) as lock:
        strangers_note(tmp_path)
        deadline = time.monotonic() + 5
        with pytest.raises(locks.LockLost, match="took it over"):
            while time.monotonic() < deadline:
                lock.check()
                time.sleep(0.02)
    assert sorted(leases.FolderBoard(tmp_path).names()) == ["00000002", "00000007"]


def _no_answer(*_: object) -> None:
    raise OSError(errno.EIO, "no answer")


@pytest.mark.usefixtures("no_kernel_locks")
def test_of_many_who_find_a_stale_lease_one_takes_it(tmp_path: Path) -> None:
    strangers_note(tmp_path)
    age(tmp_path, "00000007", leases.TERM_S + 1)
    barrier, answered = threading.Barrier(8), threading.Barrier(8)

    def race(_: int) -> int:
        barrier.wait()
        try:
            with take(tmp_path):
                answered.wait()
                return 1
        except locks.Locked:
            answered.wait()
            return 0

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(race, range(8))) == 1
