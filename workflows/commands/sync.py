"""`sync`: fit a small SyncNet on own clips, score the lips of a file against its sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workflows.commands.options import Preset, Set, load_config
from workflows.commands.output import LongCommand, console, number, print_table

app = typer.Typer(help="Audio-visual sync: fit a small SyncNet on your own clips, score a file.", no_args_is_help=True)


@app.command("fit", cls=LongCommand)
def fit_syncnet(
    ctx: typer.Context,
    catalog: Annotated[
        str, typer.Argument(help="A catalog whose clips are in sync (curated without a backend is fine).")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The fitted file (.safetensors).")],
    domain: Annotated[
        str, typer.Option("--domain", help="What the clips are, in words; printed wherever the file is used.")
    ] = "the user's own clips",
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Fit a small SyncNet on your own clips: for languages, singing or drawings that the public one never saw."""
    from workflows.sync_fit import fit

    config = load_config(ctx, preset, set_)
    with console.status("fitting") as status:
        report, left_out = fit(
            catalog, out, config, domain=domain,
            progress=lambda step, steps, loss: status.update(f"fitting: step {step} of {steps}, loss {loss:.3f}"),
        )  # fmt: skip
    for line in left_out:
        console.say(f"left out: {line}")
    print_table(str(out), ["card", ""], vars(report.card).items())


@app.command("score", cls=LongCommand)
def score_file(ctx: typer.Context, file: Path, preset: Preset = None, set_: Set = None) -> None:
    """How well lips and sound of a file agree, clip by clip; offset > 0 means that the sound is early."""
    from workflows.sync_score import COLUMNS, score

    rows = score(file, load_config(ctx, preset, set_).curation)
    print_table(str(file), COLUMNS, [[number(value) for value in row] for row in rows])
