"""The name under which this program was started, for commands that a person is told to run next."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

SCRIPT = "cli.py"
NAME = "echoforge"  # the installed script


def command(*arguments: object) -> str:
    """A command line of this program, quoted for a shell, that begins as the running one does.

    ``python cli.py …`` and ``echoforge …`` keep what was typed; a program that imports this package gets ``echoforge``.
    """
    return shlex.join([*_program(), *(str(argument) for argument in arguments)])


def _program() -> list[str]:
    script = sys.argv[0] if sys.argv else ""
    if Path(script).name == SCRIPT:
        return [_short(sys.orig_argv[0] if sys.orig_argv else "python"), script]
    return [_short(script)] if Path(script).name == NAME else [NAME]


def _short(path: str) -> str:
    """The bare name where the shell finds the same file by it."""
    name = Path(path).name
    return name if shutil.which(name) == path else path
