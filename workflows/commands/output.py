"""What all commands print with: the terminal, tables, and the first line of a command that takes long."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from rich.table import Table
from typer.core import TyperCommand

from configs.runtime import stopping
from configs.runtime.console import Terminal

console = Terminal()


class LongCommand(TyperCommand):
    """A command that says at once that it has started: importing PyTorch and starting Ray take seconds.

    The line goes to standard error, so that the output of a pipe holds results only; under torchrun rank 0 prints it.
    """

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Print the line, then run the command."""
        if os.environ.get("RANK", "0") == "0":
            names = ctx.command_path.removeprefix(ctx.find_root().command_path).strip()
            Terminal(stderr=True).print(f"{names}: starting; this takes some seconds …")
        stopping.check()
        return super().invoke(ctx)


def note(sentence: str) -> None:
    """Print a remark to standard error."""
    Terminal(stderr=True).note(sentence)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows of cells under their columns; None is an empty cell."""
    table = Table(*columns, title=title, title_justify="left", header_style="bold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    console.print(table)


def number(value: object) -> object:
    """A cell of a table: a float with three digits, nothing for NaN and None, anything else as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.3g}" if isinstance(value, float) else value
