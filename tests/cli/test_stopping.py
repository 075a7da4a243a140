"""Ctrl-C and SIGTERM at a random moment: one sentence, nothing torn, and the printed command ends as if undisturbed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import random
import re
import shlex
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import COMMANDS, ROOT, command, here, prepared

pytestmark = pytest.mark.timeout(900)  # a minute is usual; this is for a hang
SEED = int(os.environ.get("ECHOFORGE_TEST_SEED") or random.SystemRandom().randrange(10**6))


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C counts. What a shell starts in the background ignores it, and so would the processes of a test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def in_terminal(
    arguments: list[str], outputs: Path, key: str | None, begun: Callable[[], bool], delay: float
) -> tuple[int, str, float]:
    """Run in a pseudo-terminal of its own; ``delay`` seconds after ``begun`` press Ctrl-C or send SIGTERM.

    Returns:
        (exit code, what the terminal shows, seconds that the command ran).
    """
    master, slave = pty.openpty()
    process = subprocess.Popen(
        arguments, stdin=slave, stdout=slave, stderr=slave, cwd=outputs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - one system call, no lock
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300", "TERM": "xterm"},
    )  # fmt: skip
    os.close(slave)
    os.set_blocking(master, False)
    said, started, at = b"", time.monotonic(), None
    while process.poll() is None:
        with contextlib.suppress(OSError):
            said += os.read(master, 1 << 16)
        if at is None and begun():
            at = time.monotonic() + delay
        if key and at and time.monotonic() > at:
            os.write(master, b"\x03") if key == "Ctrl-C" else process.send_signal(signal.SIGTERM)
            key = None
        time.sleep(0.01)
    with contextlib.suppress(OSError):
        said += os.read(master, 1 << 16)
    os.close(master)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode("utf-8", "replace")).replace("\r", "")
    return process.returncode, text, time.monotonic() - started


def check_stop(which: str, key: str, outputs: Path, tmp_path: Path, begun: Callable[[], bool], delay: float) -> None:
    """Stop one command, go on with what it printed, and compare with a run that nobody stopped."""
    print(f"ECHOFORGE_TEST_SEED={SEED}: {which}, {key}, {delay:.2f} s")
    out = tmp_path / "out"
    code, said, _ = in_terminal(command(which, outputs, out), outputs, key, begun, delay)
    assert not any(word in said for word in ("Traceback", "Fatal", "SIGTERM received", "terminate called")), said
    if code in (0, -signal.SIGINT, -signal.SIGTERM):  # it was faster; while Python ends it takes no signals any more
        assert "stopped by" not in said
    else:
        assert code == {"Ctrl-C": 130, "SIGTERM": 143}[key], said
        found = re.findall(rf"^stopped by {key}(?:: .*)?; continue with: (.*)$", said, re.MULTILINE)
        assert len(found) == 1, said
        assert not [path for path in out.rglob(".*") if path.suffix in (".tmp", ".part")]
        assert here(shlex.split(found[0])) == 0
    undisturbed = prepared(which, outputs, tmp_path / "undisturbed")
    assert here(command(which, outputs, undisturbed)) == 0
    assert COMMANDS[which].result(out) == COMMANDS[which].result(undisturbed)


@pytest.mark.parametrize(("which", "key"), [("curate", "Ctrl-C"), ("train", "SIGTERM"), ("generate", "Ctrl-C")])
def test_a_stop_at_work_is_one_sentence_and_its_command_goes_on(
    which: str, key: str, outputs: Path, tmp_path: Path
) -> None:
    out = prepared(which, outputs, tmp_path / "out")
    case = COMMANDS[which]
    delay = random.Random(f"{SEED} {which}").uniform(0.0, 0.3) if case.begun else 5.0
    check_stop(which, key, outputs, tmp_path, lambda: not case.begun or any(out.glob(case.begun)), delay)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("which", COMMANDS)
def test_a_stop_at_any_moment(which: str, key: str, outputs: Path, tmp_path: Path) -> None:
    """Python itself needs a tenth of a second before it can take a signal."""
    prepared(which, outputs, tmp_path / "timed")
    *_, seconds = in_terminal(command(which, outputs, tmp_path / "timed"), outputs, None, lambda: True, 0.0)
    prepared(which, outputs, tmp_path / "out")
    delay = random.Random(f"{SEED} {which} {key}").uniform(0.3, seconds)
    check_stop(which, key, outputs, tmp_path, lambda: True, delay)
