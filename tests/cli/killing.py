"""Runs command lines of this program in processes that die by ``kill -9`` just before their n-th change of a folder.

Started as a program of its own. It has imported what the commands need, so a command takes as long as its work: every
one runs in a fork. Asked on standard input, a JSON object a line: ``argv``, ``cwd``, ``folder`` and ``at`` (0: never).
Answers with ``code`` (the exit status, -9 when killed), ``changes`` (how many there were) and ``output``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")


class Killer:
    """An audit hook (`sys.addaudithook`): called by Python before it renames, removes, makes or opens for writing."""

    def __init__(self, folder: str, at: int) -> None:
        self.folder, self.at, self.seen, self.owner = folder, at, 0, os.getpid()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, flags = arguments[0], arguments[2]
            changes = isinstance(flags, int) and flags & WRITING
        else:
            path, changes = arguments[0] if arguments else None, event in CHANGES
        if not changes or not isinstance(path, (str, bytes, os.PathLike)) or os.getpid() != self.owner:
            return
        if os.path.abspath(os.fsdecode(path)).startswith(self.folder):  # noqa: PTH100 - called often
            self.seen += 1
            if self.seen == self.at:
                os.kill(os.getpid(), signal.SIGKILL)


def _child(order: dict[str, Any], counted: str, output: str) -> None:
    out = os.open(output, os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(order["cwd"])
    killer = Killer(order["folder"], order["at"])
    sys.addaudithook(killer)
    sys.argv = sys.orig_argv = [str(ROOT / "cli.py"), *order["argv"]]
    code = 1
    try:
        import cli

        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        killer.at = 0
        Path(counted).write_text(str(killer.seen), "ascii")
        os._exit(code)


def main() -> None:
    """Answer until standard input ends."""
    sys.path.insert(0, str(ROOT))
    import cli  # noqa: F401
    from pipeline.dataset import add, edit, shard  # noqa: F401
    from workflows import cycle, gather, generate  # noqa: F401

    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            counted, output = f"{folder}/counted", f"{folder}/output"
            Path(counted).write_text("0", "ascii")
            Path(output).touch()
            pid = os.fork()
            if pid == 0:
                _child(json.loads(line), counted, output)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            answer = {
                "code": status,
                "changes": int(Path(counted).read_text("ascii")),
                "output": Path(output).read_text("utf-8", "replace"),
            }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
