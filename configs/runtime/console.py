"""What a person sees in a terminal. All output goes through :class:`Terminal`, which takes text as it is.

Most of what is printed comes from outside: names of files, messages of libraries, captions, tables of strangers. So
nothing in a text is markup, an emoji code or a control sequence here; colours are given as `rich.text.Text`.
"""

from __future__ import annotations

import sys
import traceback
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from configs.runtime.redaction import redact, redact_urls
from configs.runtime.shown import visible


class Terminal(Console):
    """A console that prints text letter by letter and what a terminal would obey as an escape (`configs.runtime.shown`).

    Args:
        stderr: progress, notes and errors; results go to standard output, so that they can be piped.
        quiet: print nothing.
        file: instead of either, for tests.
    """

    def __init__(
        self, *, stderr: bool = False, quiet: bool = False, file: IO[str] | None = None, **options: Any
    ) -> None:
        super().__init__(stderr=stderr, quiet=quiet, file=file, markup=False, highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string comes by here, cells of tables too."""
        return super().render_str(_safe(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print strings, things that rich can draw, and everything else as its ``str``."""
        drawn = (o if hasattr(o, "__rich_console__") or hasattr(o, "__rich__") else str(o) for o in objects)
        super().print(*drawn, **options)

    def say(self, text: object) -> None:
        """Print one line whole: names of files stay in one piece, to be copied."""
        self.print(text, soft_wrap=True)

    def note(self, sentence: str) -> None:
        """Print a remark that changes nothing."""
        self.print(Text.assemble(("note: ", "yellow"), _safe(sentence)), soft_wrap=True)

    def error(self, sentence: str) -> None:
        """Print why a command ends."""
        self.print(Text.assemble(("error: ", "bold red"), _safe(sentence)), soft_wrap=True)

    def crash(self, error: BaseException) -> None:
        """Print the traceback of an error that nobody foresaw, without credentials."""
        self.print(redact("".join(traceback.format_exception(error)).rstrip()), soft_wrap=True)


def _safe(text: str) -> str:
    return visible(redact_urls(text))


def take_any_text() -> None:
    """Let standard output and error write what their encoding lacks as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
