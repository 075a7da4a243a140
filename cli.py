"""EchoForge on the command line: parses, calls, prints. ``python cli.py`` and ``echoforge`` are the same program."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from configs.errors import EchoForgeError

app = typer.Typer(
    help=(
        "From raw talking-human video to clean training shards, and from shards to EchoMimicV3 checkpoints.\n\n"
        "The daily three: [b]curate[/b] videos into a catalog of clips, [b]shard[/b] the kept clips into tensors in "
        "tars, [b]train[/b] on the shards. Start with [b]demo[/b]: the whole loop, offline, in ten minutes."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
catalog_app = typer.Typer(help="Look into a catalog, and decide again without recomputing anything.", no_args_is_help=True)
shards_app = typer.Typer(help="Check, look into, extend, join and split datasets of shards.", no_args_is_help=True)
negatives_app = typer.Typer(help="Samples of a checkpoint that it should not have made: gather, review, exchange.", no_args_is_help=True)
sync_app = typer.Typer(help="Audio-visual sync: fit a small SyncNet on your own clips, score a file.", no_args_is_help=True)
weights_app = typer.Typer(help="Pretrained files: what the preset needs, where it comes from, whether it is here.", no_args_is_help=True)
app.add_typer(catalog_app, name="catalog", rich_help_panel="Groups")
app.add_typer(shards_app, name="shards", rich_help_panel="Groups")
app.add_typer(negatives_app, name="negatives", rich_help_panel="Groups")
app.add_typer(sync_app, name="sync", rich_help_panel="Groups")
app.add_typer(weights_app, name="weights", rich_help_panel="Groups")

console = Console()

Preset = Annotated[
    str | None,
    typer.Option("--preset", "-p", help="tiny (offline, CPU), wan2.1-fun-1.3b, or a YAML file. [default: tiny]", show_default=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override any configuration key; repeat as needed.", show_default=False),
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", help="Join this Ray cluster instead of starting Ray in this process.", show_default=False),
]
Inline = Annotated[bool, typer.Option("--inline", help="Run everything in this process, for a debugger.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N.", show_default=False)]


@app.callback()
def _globals(ctx: typer.Context, preset: Preset = None, set_: Set = None, ray_address: RayAddress = None) -> None:
    ctx.obj = {"preset": preset, "set": set_ or [], "ray_address": ray_address}


def _config(ctx: typer.Context, preset: str | None, overrides: list[str] | None) -> Any:
    from configs import schema

    return schema.load(preset or ctx.obj["preset"] or "tiny", [*ctx.obj["set"], *(overrides or [])])


def _ray(ctx: typer.Context, address: str | None) -> str | None:
    chosen: str | None = address or ctx.obj["ray_address"]
    return chosen


def _print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    table = Table(*columns, title=title, title_justify="left", header_style="bold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    console.print(table)


# --------------------------------------------------------------------------------------------------- daily


@app.command(rich_help_panel="Daily")
def curate(
    ctx: typer.Context,
    source: Annotated[list[str], typer.Argument(help="Videos, folders, globs, URLs, or CSV/Parquet manifests.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The catalog's folder (or s3://…).")],
    preset: Preset = None,
    set_: Set = None,
    ray_address: RayAddress = None,
    inline: Inline = False,
    limit: Limit = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try the quarantined files again.")] = False,
) -> None:
    """Turn videos into a catalog of clips: scores, a verdict and the reasons for it, for every file.

    Run it again after an interruption, after adding videos or after changing a threshold: only what is missing is
    computed. Sources are only read.
    """
    from pipeline.curate import curate as run

    summary = run(
        source,
        out,
        _config(ctx, preset, set_),
        inline=inline,
        ray_address=_ray(ctx, ray_address),
        limit=limit,
        retry_failed=retry_failed,
    )
    console.print(summary)


@app.command(rich_help_panel="Daily")
def shard(
    ctx: typer.Context,
    catalog: Annotated[str, typer.Argument(help="A catalog made by `curate`.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The dataset's folder (or s3://…).")],
    preset: Preset = None,
    set_: Set = None,
    ray_address: RayAddress = None,
    inline: Inline = False,
    limit: Limit = None,
) -> None:
    """Turn the kept clips into tensors in WebDataset tars with an index: latents, text, audio, image, masks.

    A killed run continues where it stopped and makes the same bytes.
    """
    from pipeline.shard import shard as run

    console.print(run(catalog, out, _config(ctx, preset, set_), inline=inline, ray_address=_ray(ctx, ray_address), limit=limit))


@app.command(rich_help_panel="Daily")
def train(
    ctx: typer.Context,
    shards: Annotated[str, typer.Argument(help="A dataset made by `shard`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder: checkpoints, logs, negatives.")],
    preset: Preset = None,
    set_: Set = None,
    ray_address: RayAddress = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Stop after this many steps.", show_default=False)] = None,
    review: Annotated[bool, typer.Option("--review", help="At a negatives stage, stop for a person's review.")] = False,
) -> None:
    """Train through the configured stages (SFT, gathering of negatives, NDPO, …), from the last checkpoint on.

    The same command under `torchrun` trains on many GPUs. Run it again to continue.
    """
    from workflows.cycle import run_cycle

    console.print(
        run_cycle(shards, out, _config(ctx, preset, set_), max_steps=steps, review=review, ray_address=_ray(ctx, ray_address))
    )


@app.command("train-plan", rich_help_panel="Daily")
def train_plan(
    ctx: typer.Context,
    shards: Annotated[str | None, typer.Argument(help="A dataset, for its buckets and sample counts.", show_default=False)] = None,
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Print what a run would need: parameters, FLOPs and memory per step, hours per stage."""
    from train.plan import plan

    config = _config(ctx, preset, set_)
    console.print(plan(shards, config.model, config.train))


@app.command(rich_help_panel="Daily")
def generate(
    ctx: typer.Context,
    checkpoint: Annotated[str, typer.Argument(help="A run, a checkpoint folder, or exported .safetensors.")],
    audio: Annotated[Path, typer.Option("--audio", "-a", help="The voice: any file with sound.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The video to write (.mp4).")],
    image: Annotated[Path | None, typer.Option("--image", "-i", help="The person: a picture, or a video (its first frame).", show_default=False)] = None,
    video: Annotated[Path | None, typer.Option("--video", help="For --task lip_sync: the video whose mouth is to change.", show_default=False)] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="What is to be seen.")] = "",
    task: Annotated[str, typer.Option("--task", help="i2v, lip_sync or avatar_sync.")] = "i2v",
    seconds: Annotated[float | None, typer.Option("--seconds", help="Length; the sound's length if not given.", show_default=False)] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Make a talking video from a picture (or a video) and a voice."""
    from workflows.generate import generate as run

    console.print(
        run(checkpoint, _config(ctx, preset, set_), audio=audio, out=out, image=image, video=video, prompt=prompt, task=task, seconds=seconds, seed=seed)
    )


@app.command(rich_help_panel="Daily")
def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where everything goes.")] = Path("demo"),
    preset: Preset = None,
    set_: Set = None,
    puppets: Annotated[int | None, typer.Option("--puppets", min=24, help="How many clips to make.", show_default=False)] = None,
) -> None:
    """The whole loop on a puppet world, offline, on a CPU: curate, shard, train, negatives, NDPO, generate, one page."""
    from workflows.demo import run_demo

    console.print(run_demo(out, _config(ctx, preset, set_), puppets=puppets))


# ------------------------------------------------------------------------------------------------- catalog


@catalog_app.command("status")
def catalog_status(catalog: str) -> None:
    """What was done, what is left, what failed and why."""
    from pipeline import catalog as ops

    console.print(ops.status(catalog))


@catalog_app.command("explain")
def catalog_explain(ctx: typer.Context, catalog: str, clip: str, preset: Preset = None, set_: Set = None) -> None:
    """Every score of a clip against its threshold."""
    from pipeline import catalog as ops

    console.print(ops.explain(catalog, clip, _config(ctx, preset, set_).curation))


@catalog_app.command("redecide")
def catalog_redecide(ctx: typer.Context, catalog: str, preset: Preset = None, set_: Set = None) -> None:
    """New thresholds, new verdicts: reads only the tables, decodes nothing."""
    from pipeline import catalog as ops

    console.print(ops.redecide(catalog, _config(ctx, preset, set_)))


@catalog_app.command("report")
def catalog_report(
    ctx: typer.Context,
    catalog: str,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="[default: CATALOG/report.html]", show_default=False)] = None,
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Write the report again: one self-contained page."""
    from curation.report import write_report

    target = out or Path(catalog) / "report.html"
    write_report(Path(catalog), target, _config(ctx, preset, set_).curation)
    console.print(f"report: {target}")


# ------------------------------------------------------------------------------------------------- weights


@weights_app.command("list")
def weights_list(ctx: typer.Context, preset: Preset = None, set_: Set = None) -> None:
    """Every pretrained file that the preset needs: source, licence, size, digest, present or not."""
    from configs import schema, weights

    config = _config(ctx, preset, set_)
    needed = weights.needs(schema.to_mapping(config))
    if not needed:
        console.print(f"The preset '{config.preset}' needs no pretrained file.")
    rows = []
    for need in needed:
        known = need.known
        size = f"{known.bytes / 1e6:,.1f} MB" if known and known.bytes else "unknown"
        digest = known.sha256[:12] if known and known.sha256 else "unknown"
        rows.append(
            [need.key, known.name if known else need.configured, known.source if known else "yours", known.licence if known else "", size, digest, "present" if need.present else "[red]missing[/red]"]
        )
    if rows:
        _print_table(f"Pretrained files of '{config.preset}' (folder: {weights.folder()})", ["key", "file", "source", "licence", "size", "sha256", "here"], rows)
        console.print("Fetch what is missing with `weights fetch`, or point its key at a local path with --set KEY=PATH.")


@weights_app.command("fetch")
def weights_fetch(
    ctx: typer.Context,
    name: Annotated[list[str] | None, typer.Argument(help="Names from `weights list`; all missing ones if none.", show_default=False)] = None,
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Download pretrained files into the weights folder; each appears whole or not at all."""
    from rich.progress import Progress

    from configs import schema, weights

    by_name = {file.name: file for file in weights.REGISTRY}
    if unknown := [n for n in name or [] if n not in by_name]:
        raise EchoForgeError(f"no pretrained file is called '{unknown[0]}'; known: {', '.join(by_name)}.")
    needed = weights.needs(schema.to_mapping(_config(ctx, preset, set_)))
    files = [by_name[n] for n in name] if name else [n.known for n in needed if n.known and not n.present]
    if not files:
        console.print("Nothing to fetch.")
    for file in files:
        with Progress(console=console) as progress:
            task = progress.add_task(file.name, total=file.bytes)
            path = weights.fetch(file, lambda done, total: progress.update(task, completed=done, total=total or None))
        console.print(f"{file.name}: {path}")


@weights_app.command("check")
def weights_check(ctx: typer.Context, preset: Preset = None, set_: Set = None) -> None:
    """Compare what is here with the known sizes and digests; exit 3 when a needed file is missing or differs."""
    from configs import schema, weights

    needed = weights.needs(schema.to_mapping(_config(ctx, preset, set_)))
    states = [(n, weights.check(n.known, n.path) if n.known else ("present" if n.present else "missing")) for n in needed]
    _print_table("Pretrained files", ["key", "path", "state"], [[n.key, n.path, state] for n, state in states])
    if any(state in ("missing", "size differs", "digest differs") for _, state in states):
        raise typer.Exit(3)


def main() -> None:
    """Run the command line; a mistake that a user can mend ends in one sentence and exit code 2 or 3."""
    try:
        app()
    except EchoForgeError as error:
        Console(stderr=True).print(f"[bold red]error:[/bold red] {error}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
