"""Temporary folders: ours go when their owner is dead, and nobody else's ever."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.runtime import processes, scratch

ROOT = Path(__file__).resolve().parents[2]
NAME = f"echoforge-{os.geteuid()}"
HOLDER = """
import os, signal, subprocess, sys
from configs.runtime import scratch
with scratch.folder() as path:
    (path / "deep").mkdir()
    (path / "deep" / "file").write_bytes(b"x" * 1000)
    # A program that outlives its owner does not hold the owner's lock.
    subprocess.Popen(["sleep", "30"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    print(path, flush=True)
    sys.stdin.read()
"""
MEASURED = {f"benchmarks/{name}.py" for name in ("loader", "loader_peers", "scale")}  # the disk that one names
ENDED = processes.current()
ENDED = replace(ENDED, started=ENDED.started + 1)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The system's temporary folder, empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for remembered in (scratch._usable, scratch._sweep_once):
        remembered.cache_clear()
    yield tmp_path
    for remembered in (scratch._usable, scratch._sweep_once):
        remembered.cache_clear()


def _left(place: Path, name: str, owner: processes.Process | None, mark: str = scratch._MARK) -> Path:
    """A folder with a file, as a process leaves it; without a lock file if it has no ``owner``."""
    folder = place / name
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text("x")
    if owner:
        (place / f"{name}.lock").write_text(json.dumps({"mark": mark, **asdict(owner)}))
    return folder


def _tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_a_folder_is_private_and_gone_at_the_end_and_while_it_is_there_no_sweep_takes_it(temporary: Path) -> None:
    with scratch.folder() as path, scratch.folder() as other:
        assert path.parent == other.parent == temporary / NAME and path != other
        (path / "a").mkdir()
        assert {p.stat().st_mode & 0o777 for p in (path, path.parent)} == {0o700}
        command = [sys.executable, "-c", "from configs.runtime import scratch; print(scratch.sweep())"]
        swept = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=_env(temporary))
        assert swept.stdout == "0\n" and (path / "a").is_dir() and other.is_dir()
    assert not list((temporary / NAME).iterdir())


def test_what_a_killed_process_left_is_swept_though_a_program_that_it_started_lives(temporary: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=_env(temporary), start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        assert path.parent == temporary / NAME and scratch.sweep() == 0 and (path / "deep" / "file").is_file()
        process.kill()
        process.wait(30)
        assert scratch.sweep() == 1 and not list((temporary / NAME).iterdir())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _env(temporary: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(temporary)}


KINDS = st.sampled_from(["dead", "alive", "locked", "other mark", "no lock", "elsewhere", "nonsense", "strange name"])


@settings(max_examples=40)
@given(st.lists(KINDS, max_size=8))
def test_the_sweep_deletes_exactly_what_is_ours_and_dead(kinds: list[str]) -> None:
    me = processes.current()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", name)
        place = Path(name) / NAME
        place.mkdir(mode=0o700)
        _left(Path(name), "ef-123-x", ENDED)
        gone: set[str] = set()
        locks = []
        for number, kind in enumerate(kinds):
            folder = f"{number:08x}" if kind != "strange name" else f"..{number}"
            match kind:
                case "alive":
                    _left(place, folder, me)
                case "other mark":
                    _left(place, folder, ENDED, "another program")
                case "no lock":
                    _left(place, folder, None)
                case "elsewhere":
                    _left(place, folder, replace(ENDED, host="elsewhere"))
                case "nonsense":
                    _left(place, folder, None)
                    (place / f"{folder}.lock").write_text('[{"mark": 1}' if number % 2 else "[" * 4096)
                case _:
                    _left(place, folder, ENDED)
            if kind == "locked":
                locks.append((place / f"{folder}.lock").open())
                fcntl.flock(locks[-1], fcntl.LOCK_EX)
            if kind == "dead":
                gone |= {part for part in _tree(place) if part.startswith(folder)}
        before = _tree(Path(name))
        assert scratch.sweep() == kinds.count("dead")
        assert before - _tree(Path(name)) == {f"{NAME}/{part}" for part in gone}
        for lock in locks:
            lock.close()


def test_links_are_neither_followed_nor_taken_for_ours(temporary: Path) -> None:
    victim = temporary / "victim"
    inside = _left(victim, "0123abcd", ENDED)
    place = temporary / NAME
    place.symlink_to(victim)  # the whole place is a link to a folder with forged marks
    assert scratch.sweep() == 0 and (inside / "deep" / "file").is_file()
    place.unlink()
    swept = _left(place, "00000001", ENDED)
    place.chmod(0o700)
    (swept / "out").symlink_to(victim)  # a link in what is swept
    (place / "00000002").symlink_to(inside)  # the folder itself is a link
    (place / "00000002.lock").write_text(json.dumps({"mark": scratch._MARK, **asdict(ENDED)}))
    (place / "00000003.lock").symlink_to(victim / "0123abcd.lock")  # the lock file is a link
    (place / "00000003").mkdir()
    for name in ("..lock", "...lock", ".lock"):  # a name that would mean a folder above
        (place / name).write_text(json.dumps({"mark": scratch._MARK, **asdict(ENDED)}))
    assert scratch.sweep() == 1 and not swept.exists()
    assert (inside / "deep" / "file").is_file() and (place / "00000003").is_dir() and (place / "00000002").is_symlink()


@pytest.mark.parametrize("taken", ["link", "file", "open to all", "another user's"])
def test_a_place_that_is_not_ours_alone_is_not_used(
    temporary: Path, taken: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, other = temporary / NAME, temporary / "other"
    other.mkdir(mode=0o700)
    match taken:
        case "link":
            place.symlink_to(other)
        case "file":
            place.write_text("")
        case "open to all":
            place.mkdir()
            place.chmod(0o777)
        case _ if os.geteuid() == 0:
            place.mkdir(mode=0o700)
            os.chown(place, 12345, -1)
        case _:
            pytest.skip("only root can give a folder away")
    with scratch.folder() as path, scratch.folder(42) as short:
        assert path.parent.parent == temporary and path.parent != place and path.is_dir()
        assert path.parent.stat().st_mode & 0o777 == 0o700 and short.parent.parent in (temporary, Path("/tmp"))
        assert not list(other.iterdir()) and (not place.is_dir() or not list(place.iterdir()))
    said = capsys.readouterr().err
    assert said.count(f"'{place}' is not a folder that this user alone may enter") == 1, said


def test_a_short_path_is_short(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = temporary / ("long" * 20)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with scratch.folder(42) as path, scratch.folder() as other:
        assert len(str(path)) <= 42 and path.parent.name == NAME and other.parent.parent == long


def test_temporary_folders_are_made_in_one_place() -> None:
    """Whatever makes one elsewhere is swept by nobody."""
    for package in ("configs", "curation", "pipeline", "model", "train", "evaluation", "workflows", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            names = {
                a.name
                for n in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(n, ast.Import)
                for a in n.names
            }
            assert "tempfile" not in names or str(path.relative_to(ROOT)) in {
                "configs/runtime/scratch.py",
                *MEASURED,
            }, path
