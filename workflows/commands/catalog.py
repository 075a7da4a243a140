"""`catalog`: look into a catalog of clips, and decide again without recomputing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workflows.commands.options import Preset, Set, catalog_config, overrides, preset_name
from workflows.commands.output import LongCommand, console, note

app = typer.Typer(help="Look into a catalog, and decide again without recomputing anything.", no_args_is_help=True)


@app.command("status")
def status(catalog: str) -> None:
    """What was done, what is left, what failed and why."""
    from pipeline.catalog import queries

    console.print(queries.status(catalog), soft_wrap=True)


@app.command("explain")
def explain(ctx: typer.Context, catalog: str, clip: str, preset: Preset = None, set_: Set = None) -> None:
    """Every score of a clip against its threshold."""
    from pipeline.catalog import queries

    console.print(queries.explain(catalog, clip, catalog_config(catalog, ctx, preset, set_).curation))


@app.command("verify", cls=LongCommand)
def verify(catalog: str) -> None:
    """Compare every file of the tables and of the ledger with its digest; exit 1 when something is wrong."""
    from pipeline.catalog import queries

    found = queries.verify(catalog)
    console.print(found, soft_wrap=True)
    if not found.ok:
        raise typer.Exit(1)


@app.command("redecide", cls=LongCommand)
def redecide_catalog(ctx: typer.Context, catalog: str, preset: Preset = None, set_: Set = None) -> None:
    """New thresholds, new verdicts, and what changed: reads only the tables, decodes nothing.

    Example: `python cli.py catalog redecide catalog --set decide.sync_min_conf=4`

    Starts from the configuration that the catalog was last decided with; `--preset` takes the thresholds of a preset.
    Later runs of `curate` keep what was set here. Keys that change what is measured are refused: `curate` applies them.
    """
    from pipeline.catalog.redecide import chosen, redecide

    config = chosen(catalog, preset_name(ctx, preset), overrides(ctx, set_), note)
    console.print(redecide(catalog, config), soft_wrap=True)


@app.command("relocate", cls=LongCommand)
def relocate(
    catalog: str,
    old: Annotated[str, typer.Argument(help="A folder (or file) as the catalog names it.")],
    new: Annotated[str, typer.Argument(help="Where it is now.")],
) -> None:
    """The videos moved: give the catalog their new names, so that nothing is analysed again.

    Example: `python cli.py catalog relocate catalog /old/videos /new/videos`

    Files that are missing at the new place, or have another size, keep their old name and are listed; then exit 1.
    """
    from pipeline.catalog import queries

    done = queries.relocate(catalog, old, new)
    console.print(done)
    if done.left:
        raise typer.Exit(1)


@app.command("report", cls=LongCommand)
def report(
    ctx: typer.Context,
    catalog: str,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="[default: CATALOG/report.html]", show_default=False)
    ] = None,
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Write the report again: one self-contained page."""
    from pipeline.catalog import queries

    target = None if out is None else str(out)
    console.say(f"report: {queries.report(catalog, target, catalog_config(catalog, ctx, preset, set_).curation)}")
