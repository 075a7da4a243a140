"""`eval` and `play`: measure videos, look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workflows.commands.options import Port, Preset, Set, load_config
from workflows.commands.output import console, number, print_table


def evaluate(
    ctx: typer.Context,
    video: list[Path],
    reference: Annotated[
        Path | None, typer.Option("--reference", "-r", help="What all of them are compared with.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .csv or .parquet for the table.", show_default=False)
    ] = None,
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Measure videos; a metric that cannot be measured here says why, and is never 0."""
    from evaluation.table import write
    from workflows.evaluate import evaluate_files

    table = evaluate_files(video, reference, load_config(ctx, preset, set_).evaluation.evaluation, out)
    cells = [[number(value) for value in row] for row in table.to_numpy().tolist()]
    print_table("metrics", [str(name) for name in table.columns], cells)
    if out is not None:
        write(table, out)


def play(folder: Path, port: Port = 8701) -> None:
    """Look at the videos of a folder in a browser on this machine."""
    from workflows.servers.play import serve

    server = serve(folder, port)
    console.print(f"open {server.url} and stop with Ctrl-C.", soft_wrap=True)
    server.serve_forever()
