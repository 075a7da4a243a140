"""`shards`: check, look into, extend, join and split datasets of shards."""

from __future__ import annotations

from typing import Annotated

import typer

from workflows.commands.options import Inline, Preset, RayAddress, Set, cluster, load_config
from workflows.commands.output import LongCommand, console, print_table

app = typer.Typer(help="Check, look into, extend, join and split datasets of shards.", no_args_is_help=True)


@app.command("verify", cls=LongCommand)
def verify_dataset(dataset: str) -> None:
    """Check every digest, shape and value of a dataset against its index; exit 1 when something is wrong."""
    from pipeline.dataset.verify import verify

    report = verify(dataset)
    console.print(report)
    if not report.ok:
        raise typer.Exit(1)


@app.command("inspect", cls=LongCommand)
def inspect_sample(
    ctx: typer.Context,
    dataset: str,
    sample: Annotated[str, typer.Argument(help="A sample's id, or the beginning of it.")],
    out: Annotated[str, typer.Option("--out", "-o", help="A folder for the video and the picture.")] = "inspect",
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Decode one sample to a video and a picture."""
    from pipeline.dataset.inspect import inspect

    found = inspect(dataset, sample, out, load_config(ctx, preset, set_).model)
    print_table(f"{found.video}, {found.picture}", ["", ""], found.facts.items())


@app.command("stats")
def show_stats(dataset: str) -> None:
    """Samples, hours, buckets, splits, and bytes by field."""
    from pipeline.dataset.stats import described, stats

    print_table(dataset, ["", ""], described(stats(dataset)))


@app.command("add", cls=LongCommand)
def add_field(
    ctx: typer.Context,
    dataset: str,
    field: Annotated[str, typer.Argument(help="cond_lip, cond_avatar, cond_i2v, cond_flf2v_last or audio.VARIANT.")],
    preset: Preset = None,
    set_: Set = None,
    ray_address: RayAddress = None,
    inline: Inline = False,
) -> None:
    """Encode one more field for every sample, into new tars beside the old ones."""
    from pipeline.dataset.add import add
    from pipeline.engine.progress import Progress

    config, watcher = load_config(ctx, preset, set_), Progress(field, "tars")
    count = add(dataset, field, config, inline=inline, ray_address=cluster(ctx, ray_address), watcher=watcher)
    console.say(f"{dataset}: {field} added to {count} samples.")


@app.command("merge", cls=LongCommand)
def merge_datasets(
    datasets: list[str], out: Annotated[str, typer.Option("--out", "-o", help="The new dataset.")]
) -> None:
    """Join datasets without encoding anything again."""
    from pipeline.dataset.edit import merge

    console.say(f"{out}: {merge(datasets, out)} samples.")


@app.command("split", cls=LongCommand)
def split_dataset(
    dataset: str,
    out: Annotated[str, typer.Option("--out", "-o", help="The new dataset.")],
    split: Annotated[
        list[str] | None, typer.Option("--split", help="train, negatives, val or test.", show_default=False)
    ] = None,
    bucket: Annotated[list[str] | None, typer.Option("--bucket", help="WxHxF", show_default=False)] = None,
) -> None:
    """Copy some splits or buckets into a dataset of their own."""
    from pipeline.dataset.edit import split as write_split

    console.say(f"{out}: {write_split(dataset, out, splits=split or [], buckets=bucket or [])} samples.")
