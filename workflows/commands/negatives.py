"""`negatives`: gather samples that a checkpoint should not have made, review and exchange them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import EchoForgeError
from configs.runtime import stopping
from workflows.commands.options import Inline, Port, Preset, RayAddress, Set, cluster, load_config
from workflows.commands.output import LongCommand, console, print_table

app = typer.Typer(
    help="Samples of a checkpoint that it should not have made: gather, review, exchange.", no_args_is_help=True
)


Stage = Annotated[str | None, typer.Option("--stage", help="[default: the newest gathered one]", show_default=False)]


def _folder(run: Path, stage: str | None) -> Path:
    """The negatives of the named stage, or of the one that was gathered last."""
    from configs import folders
    from train.data.negatives import FOLDER, SAMPLES_FILE, folder

    if stage is not None:
        return folder(run, stage)
    found = sorted((run / FOLDER).glob(f"*/{SAMPLES_FILE}"), key=lambda p: p.stat().st_mtime)
    if not found:
        what = "" if any(kind.name == "run" for kind in folders.kinds(run)) else f": {folders.found(run, 'run')}"
        raise EchoForgeError(
            f"'{run}' has no gathered negatives{what}; run `negatives gather RUN DATASET`, or train on."
        )
    return found[-1].parent


@app.command("gather", cls=LongCommand)
def gather_samples(
    ctx: typer.Context,
    run: Path,
    dataset: str,
    stage: Annotated[
        str | None, typer.Option("--stage", help="[default: the next one of the run]", show_default=False)
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="[default: what the stage says]", show_default=False)
    ] = None,
    preset: Preset = None,
    set_: Set = None,
    ray_address: RayAddress = None,
    inline: Inline = False,
) -> None:
    """Let a checkpoint generate under held-out conditions, measure what comes out, and flag the suspicious ones."""
    from workflows.gather import gather

    config = load_config(ctx, preset, set_)
    console.print(
        gather(run, dataset, stage, config, inline=inline, ray_address=cluster(ctx, ray_address), samples=samples)
    )


@app.command("review", cls=LongCommand)
def review_samples(run: Path, stage: Stage = None, port: Port = 8700) -> None:
    """Review the gathered samples in a browser on this machine; every click becomes a row of a Parquet table."""
    from configs import reviews
    from curation.review import tables
    from workflows.servers.review import serve

    folder = _folder(run, stage)
    server = serve(folder, f"Negatives of {folder.name}", port)
    count = tables.samples(folder).num_rows
    console.print(f"{count} samples: open {server.url} and stop with Ctrl-C.", soft_wrap=True)
    try:
        server.serve_forever()
    except stopping.Stopped:
        raise stopping.Stopped(f"{reviews.read(folder).num_rows} review rows in {folder / reviews.FOLDER}") from None


@app.command("stats", cls=LongCommand)
def show_stats(run: Path, stage: Stage = None) -> None:
    """Per issue: how many were flagged, how many people called negative."""
    from curation.review import tables

    folder = _folder(run, stage)
    frame = tables.statistics(folder).reset_index(names="issue")
    print_table(
        str(folder),
        [str(c) for c in frame.columns],
        [[f"{v:.2f}" if isinstance(v, float) else v for v in row] for row in frame.to_numpy().tolist()],
    )


@app.command("export", cls=LongCommand)
def export_samples(
    run: Path, out: Annotated[Path, typer.Option("--out", "-o", help="The CSV.")], stage: Stage = None
) -> None:
    """Write a CSV for a spreadsheet: fill verdict, issue and reviewer, then `negatives import` it."""
    from curation.review import tables

    console.say(f"{out}: {tables.to_csv(_folder(run, stage), out)} samples.")


@app.command("import", cls=LongCommand)
def import_reviews(
    run: Path,
    csv: Path,
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", help="For lines that name none.", show_default=False)
    ] = None,
    stage: Stage = None,
) -> None:
    """Add the reviews of an edited CSV; importing twice changes nothing."""
    from curation.review import tables

    console.print(f"{tables.from_csv(_folder(run, stage), csv, reviewer)} reviews added.")


@app.command("merge", cls=LongCommand)
def merge_reviews(
    run: Path,
    other: Annotated[list[Path], typer.Argument(help="Negatives folders of other copies of this run.")],
    stage: Stage = None,
) -> None:
    """Take over the reviews that people made in other copies of the same negatives folder."""
    from curation.review import tables

    console.print(f"{tables.merge(_folder(run, stage), other)} reviews added.")
