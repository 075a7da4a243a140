"""`weights`: pretrained files that a preset needs, where they come from, and whether they are here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from configs.runtime import stopping
from configs.runtime.console import Terminal
from workflows.commands.options import Preset, Set, load_config, overrides, preset_name
from workflows.commands.output import LongCommand, console

app = typer.Typer(
    help="Pretrained files: what the preset needs, where it comes from, whether it is here.", no_args_is_help=True
)


@app.command("list")
def list_files(
    ctx: typer.Context,
    preset: Preset = None,
    set_: Set = None,
    urls: Annotated[
        bool, typer.Option("--urls", help="Only addresses and places, tab between, for a downloader elsewhere.")
    ] = False,
) -> None:
    """Every pretrained file that the preset needs: purpose, size, place, licence, present or not; and the total."""
    from configs import schema, weights
    from configs.runtime.program import command
    from configs.weights import listing

    config = load_config(ctx, preset, set_)
    needed = weights.needs(schema.sections(config))
    if urls:
        console.say(listing.urls(needed))
        return
    if not needed:
        console.print(f"The preset '{config.preset}' needs no pretrained file.")
        return
    console.say(listing.render(config.preset, needed, console.width))
    if any(listing.is_bad(need.state) for need in needed):
        named = preset_name(ctx, preset)
        options = [*(["--preset", named] if named else []), *(f"--set={value}" for value in overrides(ctx, set_))]
        console.say(f"\nGet what is missing: {command('weights', 'fetch', *options)}")
        console.say("or point a key at your copy: --set KEY=PATH")


@app.command("fetch", cls=LongCommand)
def fetch_files(
    ctx: typer.Context,
    name: Annotated[
        list[str] | None,
        typer.Argument(help="Names from `weights list`; all missing ones if none.", show_default=False),
    ] = None,
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Download pretrained files into the weights folder; each appears whole or not at all.

    Files named here are downloaded even where one is. An interrupted download goes on where it stopped.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from configs import schema, weights
    from configs.weights import download, registry

    if name:
        files = registry.named(name)
    else:
        needed = weights.needs(schema.sections(load_config(ctx, preset, set_)))
        files = [need.known for need in needed if need.known and need.state == "missing"]
        for need in needed:
            if need.known and need.state == "size differs":
                console.print(
                    f"{need.path} is not of the published size and was left alone; `weights fetch {need.known.name}` "
                    "replaces it.", soft_wrap=True,
                )  # fmt: skip
    if not files:
        console.print("Nothing to fetch.")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Terminal(stderr=True)) as progress:

        def begin(file: registry.WeightFile) -> Callable[[int, int], None]:
            task = progress.add_task(file.name, total=file.bytes or file.derived_bytes)
            return lambda done, total: progress.update(task, completed=done, total=total or None)

        came = download.fetch_all(files, begin)
    for path in came:
        console.print(str(path), soft_wrap=True)


@app.command("check", cls=LongCommand)
def check_files(ctx: typer.Context, preset: Preset = None, set_: Set = None) -> None:
    """Read what is here and compare it with the known sizes and digests; exit 3 when a file is missing or differs."""
    from configs import schema, weights
    from configs.weights import listing

    config = load_config(ctx, preset, set_)
    needed = weights.needs(schema.sections(config))
    if not needed:
        console.print(f"The preset '{config.preset}' needs no pretrained file.")
    bad = 0
    for need in needed:
        stopping.check()
        state = need.known.check(need.path) if need.known and need.path else need.state
        bad += listing.is_bad(state)
        console.say(listing.checked(need, state))
    if bad:
        console.say(
            f"{bad} of {len(needed)} files are missing or differ; they belong in {weights.folder().absolute()}."
        )
        raise typer.Exit(3)
