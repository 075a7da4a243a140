"""Stores: whole or not at all, names that are only names, retries, and no credentials in what is printed."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from configs.runtime import processes
from pipeline import listing, parquet, storage
from pipeline.storage import StoreError

NAMES = [
    "plain",
    'it\'s "quoted"',
    "-rf",
    "$(touch oops)",
    "new\nline",
    "日本語 видео",
    "a*b?[c]",
    "x" * 250,
    ".hidden",
    "50%",
]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_any_legal_name_is_only_a_name(tmp_path: Path, name: str) -> None:
    url = storage.join(str(tmp_path), name)
    storage.write_bytes(url, b"one")
    storage.write_bytes(url, b"two")
    assert storage.read_bytes(url) == b"two" and storage.name_of(url) == name
    assert [e.name for e in listing.files(str(tmp_path))] == [name]
    assert names(tmp_path) == [name], "nothing else is left behind"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    url = str(tmp_path / "f")
    storage.write_bytes(url, b"before")
    with pytest.raises(RuntimeError), storage.writing(url) as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert storage.read_bytes(url) == b"before" and names(tmp_path) == ["f"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no space is left"), storage.writing(str(tmp_path / "f")):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_sweep_takes_what_dead_processes_left_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pipeline import storage\n"
        "with storage.writing(sys.argv[1]) as p:\n p.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = str(tmp_path / "deep" / "f")
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code, target], check=False, cwd=root)
    with storage.writing(str(tmp_path / "deep" / "mine")) as path:
        path.write_bytes(b"x")
        assert len(names(tmp_path / "deep")) == 2 and listing.files(str(tmp_path / "deep")) == []
        assert storage.sweep(str(tmp_path)) == 1
    assert names(tmp_path / "deep") == ["mine"]


def test_a_temporary_file_goes_when_its_writer_is_dead_whoever_has_the_number_now(tmp_path: Path) -> None:
    """The name says more than a number: ids are given again, and containers with one host name count apart."""
    with storage.writing(str(tmp_path / ("長" * 80))) as path:  # 240 bytes
        me = path.name
        path.write_bytes(b"x")
    assert [len(n) for n in names(tmp_path)] == [80]
    mine = processes.current()
    before = re.compile(r"^\..*\.(?P<host>[^.]+)~(?P<pid>\d+)~\d+\.tmp$")  # what version 0.1.0 knows
    assert before.match(me), me
    again = me.replace(f"-{mine.started}~", f"-{mine.started + 1}~")
    apart = re.sub(r"~[0-9a-f]{8}-", "~00000000-", me).replace(f"~{mine.pid}~", "~999999999~")
    older = (f".f.{mine.host}~{mine.pid}~0.tmp", f".f.{mine.host}~999999999~0.tmp")
    for name in (me, again, apart, *older):
        (tmp_path / name).write_bytes(b"half")
    assert before.match(apart)["host"] != mine.host, "older code takes another container for another machine"  # type: ignore[index]
    assert listing.files(str(tmp_path), ".tmp") == []
    assert storage.sweep(str(tmp_path)) == 2
    assert {n for n in names(tmp_path) if n.endswith(".tmp")} == {me, apart, older[0]}
    os.utime(tmp_path / apart, (0, 0))
    assert storage.sweep(str(tmp_path)) == 1 and not (tmp_path / apart).exists()


def test_what_a_killed_download_left_is_swept_by_the_next_command(tmp_path: Path) -> None:
    code = (
        "import fsspec, os, signal; from pipeline import storage\n"
        "fsspec.filesystem('memory').pipe('/f', b'x' * 1000)\n"
        "with storage.local_copy('memory://f') as path:\n assert path.stat().st_size == 1000; os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).resolve().parents[2]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root, env=env).returncode == -signal.SIGKILL
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size == 1000]
    subprocess.run([sys.executable, str(root / "cli.py"), "--help"], check=True, env=env, stdout=subprocess.DEVNULL)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_what_may_be_repeated_is_retried_and_what_may_not_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    calls: list[int] = []

    def flaky() -> str:
        calls.append(1)
        if len(calls) < 4:
            raise ConnectionResetError("reset")
        return "there"

    assert storage.retrying(flaky, "reading") == "there" and len(calls) == 4
    for error, tries in ((PermissionError("no"), 1), (TimeoutError("slow"), storage.ATTEMPTS)):
        calls.clear()

        def broken(error: OSError = error) -> None:
            calls.append(1)
            raise error

        with pytest.raises(StoreError):
            storage.retrying(broken, "reading s3://me:hunter2@bucket/x")
        assert len(calls) == tries


def test_an_object_store_behaves_as_a_disk_does(s3: str, tmp_path: Path) -> None:
    url = storage.join(s3, "folder", "日本 $(x).bin")
    assert not storage.exists(url) and listing.files(storage.join(s3, "folder")) == []
    with pytest.raises(RuntimeError), storage.writing(url) as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert not storage.exists(url), "nothing appears before it is whole"
    storage.write_bytes(url, b"one")
    tag = storage.entry(url).tag
    big = os.urandom(1 << 20) * 120  # goes up in several parts
    storage.write_bytes(url, big)
    assert storage.entry(url).size == len(big) and storage.entry(url).tag != tag
    assert [(e.name, e.url) for e in listing.files(storage.join(s3, "folder"))] == [("日本 $(x).bin", url)]
    with storage.local_copy(url) as copy:
        assert copy.read_bytes() == big
    assert not copy.exists()
    parquet.write(storage.join(s3, "t.parquet"), pa.table({"x": [1, 2]}))
    with parquet.opened(storage.join(s3, "t.parquet")) as file:
        assert file.read()["x"].to_pylist() == [1, 2]
    storage.remove(url)
    assert not storage.exists(url)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(url)
