"""EchoForge on the command line: parses, calls, prints. ``python cli.py`` and ``echoforge`` are the same program."""

# ruff: noqa: E402 - where our packages are, and who takes Ctrl-C, is settled before the slow imports

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

# The packages beside this file are meant, whatever the working directory or PYTHONPATH holds.
_ROOT = str(Path(__file__).resolve().parent)
sys.path.insert(0, _ROOT)
from pipeline.engine.worker_entry import own_packages_first

sys.path.remove(_ROOT)
own_packages_first(_ROOT)

from configs.runtime import program, stopping

if Path(sys.argv[0]).name in (program.SCRIPT, program.NAME):  # this process is the program, and no import of it
    stopping.listen()

import typer
from rich.table import Table
from typer.core import TyperCommand
from typer.exceptions import TyperException
from typer.rich_utils import rich_format_error

from configs.errors import EchoForgeError
from configs.runtime import scratch
from configs.runtime.console import Terminal, take_any_text
from configs.runtime.redaction import redact
from configs.runtime.shown import visible


class LongCommand(TyperCommand):
    """A command that says at once that it has started: importing PyTorch and starting Ray take seconds.

    The line goes to standard error, so that the output of a pipe holds results only; under torchrun rank 0 prints it.
    """

    def invoke(self, ctx: Any) -> Any:
        """Print the line, then run the command."""
        if os.environ.get("RANK", "0") == "0":
            names = ctx.command_path.removeprefix(ctx.find_root().command_path).strip()
            Terminal(stderr=True).print(f"{names}: starting; this takes some seconds …")
        stopping.check()
        return super().invoke(ctx)


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
catalog_app = typer.Typer(
    help="Look into a catalog, and decide again without recomputing anything.", no_args_is_help=True
)
shards_app = typer.Typer(help="Check, look into, extend, join and split datasets of shards.", no_args_is_help=True)
negatives_app = typer.Typer(
    help="Samples of a checkpoint that it should not have made: gather, review, exchange.", no_args_is_help=True
)
sync_app = typer.Typer(
    help="Audio-visual sync: fit a small SyncNet on your own clips, score a file.", no_args_is_help=True
)
weights_app = typer.Typer(
    help="Pretrained files: what the preset needs, where it comes from, whether it is here.", no_args_is_help=True
)
app.add_typer(catalog_app, name="catalog", rich_help_panel="Groups")
app.add_typer(shards_app, name="shards", rich_help_panel="Groups")
app.add_typer(negatives_app, name="negatives", rich_help_panel="Groups")
app.add_typer(sync_app, name="sync", rich_help_panel="Groups")
app.add_typer(weights_app, name="weights", rich_help_panel="Groups")

console = Terminal()

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "-p",
        help="tiny (offline, CPU), wan2.1-fun-1.3b, or a YAML file that `extends` one. [default: tiny]",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override any configuration key; repeat as needed.", show_default=False
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address", help="Join this Ray cluster instead of starting Ray in this process.", show_default=False
    ),
]
Inline = Annotated[bool, typer.Option("--inline", help="Run everything in this process, for a debugger.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N.", show_default=False)]


def _print_version(wanted: bool) -> None:
    if wanted:
        from pipeline.engine.version import code_version

        console.print(f"echoforge {code_version()}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version (and git revision)."),
]


@app.callback()
def _globals(
    ctx: typer.Context,
    preset: Preset = None,
    set_: Set = None,
    ray_address: RayAddress = None,
    version: Version = False,
) -> None:
    ctx.obj = {"preset": preset, "set": set_ or [], "ray_address": ray_address}


def _config(ctx: typer.Context, preset: str | None, overrides: list[str] | None) -> Any:
    from configs import schema

    stopping.check()  # what a command imports before this takes seconds
    return schema.load(preset or ctx.obj["preset"] or "tiny", _overrides(ctx, overrides), _note)


def _overrides(ctx: typer.Context, overrides: list[str] | None) -> list[str]:
    return [*ctx.obj["set"], *(overrides or [])]


def _note(sentence: str) -> None:
    Terminal(stderr=True).note(sentence)


def _config_of(catalog: str, ctx: typer.Context, preset: str | None, overrides: list[str] | None) -> Any:
    """A catalog's own configuration, changed by ``--set``; ``--preset`` starts from that preset instead."""
    from pipeline.catalog.queries import configuration

    named = preset or ctx.obj["preset"]
    return (None if named else configuration(catalog, _overrides(ctx, overrides), _note)) or _config(
        ctx, preset, overrides
    )


def _ray(ctx: typer.Context, address: str | None) -> str | None:
    from pipeline.engine.ray_pool import check_address

    chosen: str | None = address or ctx.obj["ray_address"]
    if chosen:
        check_address(chosen)  # before anything is written
    return chosen


def _print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    table = Table(*columns, title=title, title_justify="left", header_style="bold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    console.print(table)


# --------------------------------------------------------------------------------------------------- daily


@app.command(rich_help_panel="Daily", cls=LongCommand)
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

    Example: `python cli.py curate videos/ --out catalog --set sync.required=false`

    Run it again after an interruption, after adding videos or after changing a threshold: only what is missing is
    computed. Thresholds that `catalog redecide` set stay, unless --set names them here. Sources are only read.
    """
    from configs import schema
    from pipeline.catalog.curate import curate as run

    summary = run(
        source,
        out,
        _config(ctx, preset, set_),
        inline=inline,
        ray_address=_ray(ctx, ray_address),
        limit=limit,
        retry_failed=retry_failed,
        named=schema.named(_overrides(ctx, set_)),
    )
    console.print(summary, soft_wrap=True)


@app.command(rich_help_panel="Daily", cls=LongCommand)
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

    Example: `python cli.py shard catalog --out dataset`

    A killed run continues where it stopped and makes the same bytes.
    """
    from pipeline.dataset.shard import shard as run
    from pipeline.engine.progress import Progress

    summary = run(
        catalog,
        out,
        _config(ctx, preset, set_),
        inline=inline,
        ray_address=_ray(ctx, ray_address),
        limit=limit,
        watcher=Progress("shard", "tars"),
    )
    console.print(summary)


@app.command(rich_help_panel="Daily", cls=LongCommand)
def train(
    ctx: typer.Context,
    shards: Annotated[str, typer.Argument(help="A dataset made by `shard`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder: checkpoints, logs, negatives.")],
    preset: Preset = None,
    set_: Set = None,
    ray_address: RayAddress = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Stop after this many steps.", show_default=False)
    ] = None,
    review: Annotated[bool, typer.Option("--review", help="At a negatives stage, stop for a person's review.")] = False,
) -> None:
    """Train through the configured stages (SFT, gathering of negatives, NDPO, …), from the last checkpoint on.

    Example: `python cli.py train dataset --out run --steps 20`

    The same command under `torchrun` trains on many GPUs. Run it again to continue.
    """
    from workflows.cycle import run_cycle

    console.print(
        run_cycle(
            shards, out, _config(ctx, preset, set_), max_steps=steps, review=review, ray_address=_ray(ctx, ray_address)
        )
    )


@app.command("train-plan", cls=LongCommand, rich_help_panel="Daily")
def train_plan(
    ctx: typer.Context,
    shards: Annotated[
        str | None, typer.Argument(help="A dataset, for its buckets and sample counts.", show_default=False)
    ] = None,
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Print what a run would need: parameters, FLOPs and memory per step, hours per stage."""
    from train.plan import plan

    config = _config(ctx, preset, set_)
    console.print(plan(shards, config.model, config.train))


@app.command(rich_help_panel="Daily", cls=LongCommand)
def generate(
    ctx: typer.Context,
    checkpoint: Annotated[str, typer.Argument(help="A run, a checkpoint folder, or exported .safetensors.")],
    audio: Annotated[Path, typer.Option("--audio", "-a", help="The voice: any file with sound.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The video to write (.mp4).")],
    image: Annotated[
        Path | None,
        typer.Option("--image", "-i", help="The person: a picture, or a video (its first frame).", show_default=False),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option("--video", help="For --task lip_sync: the video whose mouth is to change.", show_default=False),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="What is to be seen.")] = "",
    task: Annotated[str, typer.Option("--task", help="i2v, lip_sync or avatar_sync.")] = "i2v",
    seconds: Annotated[
        float | None, typer.Option("--seconds", help="Length; the sound's length if not given.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Make a talking video from a picture (or a video) and a voice.

    Example: `python cli.py generate run --image face.jpg --audio voice.wav --out out.mp4`
    """
    from workflows.generate import generate as run

    console.print(
        run(
            checkpoint,
            _config(ctx, preset, set_),
            audio=audio,
            out=out,
            image=image,
            video=video,
            prompt=prompt,
            task=task,
            seconds=seconds,
            seed=seed,
        )
    )


@app.command(rich_help_panel="Daily", cls=LongCommand)
def demo(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where everything goes.")] = Path("demo"),
    preset: Preset = None,
    set_: Set = None,
    puppets: Annotated[
        int | None, typer.Option("--puppets", min=24, help="How many clips to make.", show_default=False)
    ] = None,
) -> None:
    """The whole loop on a puppet world, offline, on a CPU: curate, shard, train, negatives, NDPO, generate, one page."""
    from workflows.demo.run import run_demo

    console.print(run_demo(out, _config(ctx, preset, set_), puppets=puppets))


# ------------------------------------------------------------------------------------------------- catalog


@catalog_app.command("status")
def catalog_status(catalog: str) -> None:
    """What was done, what is left, what failed and why."""
    from pipeline.catalog import queries as ops

    console.print(ops.status(catalog), soft_wrap=True)


@catalog_app.command("explain")
def catalog_explain(ctx: typer.Context, catalog: str, clip: str, preset: Preset = None, set_: Set = None) -> None:
    """Every score of a clip against its threshold."""
    from pipeline.catalog import queries as ops

    console.print(ops.explain(catalog, clip, _config_of(catalog, ctx, preset, set_).curation))


@catalog_app.command("verify", cls=LongCommand)
def catalog_verify(catalog: str) -> None:
    """Compare every file of the tables and of the ledger with its digest; exit 1 when something is wrong."""
    from pipeline.catalog import queries as ops

    found = ops.verify(catalog)
    console.print(found, soft_wrap=True)
    if not found.ok:
        raise typer.Exit(1)


@catalog_app.command("redecide", cls=LongCommand)
def catalog_redecide(ctx: typer.Context, catalog: str, preset: Preset = None, set_: Set = None) -> None:
    """New thresholds, new verdicts, and what changed: reads only the tables, decodes nothing.

    Example: `python cli.py catalog redecide catalog --set decide.sync_min_conf=4`

    Starts from the configuration that the catalog was last decided with; `--preset` takes the thresholds of a preset.
    Later runs of `curate` keep what was set here. Keys that change what is measured are refused: `curate` applies them.
    """
    from pipeline.catalog import redecide as again

    config = again.chosen(catalog, preset or ctx.obj["preset"], _overrides(ctx, set_), _note)
    console.print(again.redecide(catalog, config), soft_wrap=True)


@catalog_app.command("relocate", cls=LongCommand)
def catalog_relocate(
    catalog: str,
    old: Annotated[str, typer.Argument(help="A folder (or file) as the catalog names it.")],
    new: Annotated[str, typer.Argument(help="Where it is now.")],
) -> None:
    """The videos moved: give the catalog their new names, so that nothing is analysed again.

    Example: `python cli.py catalog relocate catalog /old/videos /new/videos`

    Files that are missing at the new place, or have another size, keep their old name and are listed; then exit 1.
    """
    from pipeline.catalog import queries as ops

    done = ops.relocate(catalog, old, new)
    console.print(done)
    if done.left:
        raise typer.Exit(1)


@catalog_app.command("report", cls=LongCommand)
def catalog_report(
    ctx: typer.Context,
    catalog: str,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="[default: CATALOG/report.html]", show_default=False)
    ] = None,
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Write the report again: one self-contained page."""
    from pipeline.catalog import queries as ops

    target = None if out is None else str(out)
    console.say(f"report: {ops.report(catalog, target, _config_of(catalog, ctx, preset, set_).curation)}")


# ------------------------------------------------------------------------------------------------- shards


@shards_app.command("verify", cls=LongCommand)
def shards_verify(dataset: str) -> None:
    """Check every digest, shape and value of a dataset against its index; exit 1 when something is wrong."""
    from pipeline.dataset.verify import verify

    report = verify(dataset)
    console.print(report)
    if not report.ok:
        raise typer.Exit(1)


@shards_app.command("inspect", cls=LongCommand)
def shards_inspect(
    ctx: typer.Context,
    dataset: str,
    sample: Annotated[str, typer.Argument(help="A sample's id, or the beginning of it.")],
    out: Annotated[str, typer.Option("--out", "-o", help="A folder for the video and the picture.")] = "inspect",
    preset: Preset = None,
    set_: Set = None,
) -> None:
    """Decode one sample to a video and a picture."""
    from pipeline.dataset.inspect import inspect

    found = inspect(dataset, sample, out, _config(ctx, preset, set_).model)
    _print_table(f"{found.video}, {found.picture}", ["", ""], [[k, v] for k, v in found.facts.items()])


@shards_app.command("stats")
def shards_stats(dataset: str) -> None:
    """Samples, hours, buckets, splits, and bytes by field."""
    from pipeline.dataset.stats import described, stats

    _print_table(dataset, ["", ""], described(stats(dataset)))


@shards_app.command("add", cls=LongCommand)
def shards_add(
    ctx: typer.Context,
    dataset: str,
    field: Annotated[str, typer.Argument(help="cond_lip, cond_avatar, cond_i2v, cond_flf2v_last or audio.VARIANT.")],
    preset: Preset = None,
    set_: Set = None,
    ray_address: RayAddress = None,
    inline: Inline = False,
) -> None:
    """Encode one more field for every sample, into new tars beside the old ones."""
    from pipeline.dataset.edit import add
    from pipeline.engine.progress import Progress

    config, watcher = _config(ctx, preset, set_), Progress(field, "tars")
    count = add(dataset, field, config, inline=inline, ray_address=_ray(ctx, ray_address), watcher=watcher)
    console.say(f"{dataset}: {field} added to {count} samples.")


@shards_app.command("merge", cls=LongCommand)
def shards_merge(
    datasets: list[str], out: Annotated[str, typer.Option("--out", "-o", help="The new dataset.")]
) -> None:
    """Join datasets without encoding anything again."""
    from pipeline.dataset.edit import merge

    console.say(f"{out}: {merge(datasets, out)} samples.")


@shards_app.command("split", cls=LongCommand)
def shards_split(
    dataset: str,
    out: Annotated[str, typer.Option("--out", "-o", help="The new dataset.")],
    split: Annotated[
        list[str] | None, typer.Option("--split", help="train, negatives, val or test.", show_default=False)
    ] = None,
    bucket: Annotated[list[str] | None, typer.Option("--bucket", help="WxHxF", show_default=False)] = None,
) -> None:
    """Copy some splits or buckets into a dataset of their own."""
    from pipeline.dataset.edit import split as run

    console.say(f"{out}: {run(dataset, out, splits=split or [], buckets=bucket or [])} samples.")


# ----------------------------------------------------------------------------------------------- negatives

Stage = Annotated[str | None, typer.Option("--stage", help="[default: the newest gathered one]", show_default=False)]


def _negatives_folder(run: Path, stage: str | None) -> Path:
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


@negatives_app.command("gather", cls=LongCommand)
def negatives_gather(
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

    config = _config(ctx, preset, set_)
    console.print(
        gather(run, dataset, stage, config, inline=inline, ray_address=_ray(ctx, ray_address), samples=samples)
    )


@negatives_app.command("review", cls=LongCommand)
def negatives_review(
    run: Path, stage: Stage = None, port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 8700
) -> None:
    """Review the gathered samples in a browser on this machine; every click becomes a row of a Parquet table."""
    from configs import reviews
    from curation.review import tables
    from workflows.servers.review import serve

    folder = _negatives_folder(run, stage)
    server = serve(folder, f"Negatives of {folder.name}", port)
    count = tables.samples(folder).num_rows
    console.print(f"{count} samples: open {server.url} and stop with Ctrl-C.", soft_wrap=True)
    server.service_actions = stopping.check  # asked twice a second
    try:
        server.serve_forever()
    except stopping.Stopped:
        raise stopping.Stopped(f"{reviews.read(folder).num_rows} review rows in {folder / reviews.FOLDER}") from None


@negatives_app.command("stats", cls=LongCommand)
def negatives_stats(run: Path, stage: Stage = None) -> None:
    """Per issue: how many were flagged, how many people called negative."""
    from curation.review import tables

    folder = _negatives_folder(run, stage)
    frame = tables.statistics(folder).reset_index(names="issue")
    _print_table(
        str(folder),
        [str(c) for c in frame.columns],
        [[f"{v:.2f}" if isinstance(v, float) else v for v in row] for row in frame.to_numpy().tolist()],
    )


@negatives_app.command("export", cls=LongCommand)
def negatives_export(
    run: Path, out: Annotated[Path, typer.Option("--out", "-o", help="The CSV.")], stage: Stage = None
) -> None:
    """Write a CSV for a spreadsheet: fill verdict, issue and reviewer, then `negatives import` it."""
    from curation.review import tables

    console.say(f"{out}: {tables.to_csv(_negatives_folder(run, stage), out)} samples.")


@negatives_app.command("import", cls=LongCommand)
def negatives_import(
    run: Path,
    csv: Path,
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", help="For lines that name none.", show_default=False)
    ] = None,
    stage: Stage = None,
) -> None:
    """Add the reviews of an edited CSV; importing twice changes nothing."""
    from curation.review import tables

    console.print(f"{tables.from_csv(_negatives_folder(run, stage), csv, reviewer)} reviews added.")


@negatives_app.command("merge", cls=LongCommand)
def negatives_merge(
    run: Path,
    other: Annotated[list[Path], typer.Argument(help="Negatives folders of other copies of this run.")],
    stage: Stage = None,
) -> None:
    """Take over the reviews that people made in other copies of the same negatives folder."""
    from curation.review import tables

    console.print(f"{tables.merge(_negatives_folder(run, stage), other)} reviews added.")


# ---------------------------------------------------------------------------------------------------- sync


@sync_app.command("fit", cls=LongCommand)
def sync_fit(
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

    config = _config(ctx, preset, set_)
    with console.status("fitting") as status:
        report, left_out = fit(
            catalog, out, config, domain=domain,
            progress=lambda step, steps, loss: status.update(f"fitting: step {step} of {steps}, loss {loss:.3f}"),
        )  # fmt: skip
    for line in left_out:
        console.say(f"left out: {line}")
    _print_table(str(out), ["card", ""], [[name, value] for name, value in report.card.items()])


@sync_app.command("score", cls=LongCommand)
def sync_score(ctx: typer.Context, file: Path, preset: Preset = None, set_: Set = None) -> None:
    """How well lips and sound of a file agree, clip by clip; offset > 0 means that the sound is early."""
    from curation.analysis import registry
    from curation.analysis.video import analyse_video

    cfg = _config(ctx, preset, set_).curation
    if cfg.sync.backend == "none":
        raise EchoForgeError(
            "no sync backend is configured; set sync.backend=fitted with sync.fitted=FILE, or syncnet_v2."
        )
    video, clips = analyse_video(str(file), cfg, backends=registry.load(cfg))
    if video.get("verdict") == "error":
        raise EchoForgeError(f"{file}: {video['error']}")
    columns = [
        "start_s",
        "end_s",
        "sync_backend",
        "sync_c",
        "sync_d",
        "sync_fit_conf",
        "av_offset_frames",
        "residual_offset",
    ]
    _print_table(str(file), columns, [[_short(clip.get(name)) for name in columns] for clip in clips])


def _short(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.3g}" if isinstance(value, float) else value


# -------------------------------------------------------------------------------------- evaluation, playing


@app.command("eval", cls=LongCommand, rich_help_panel="Daily")
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
    from configs.folders import check_out_file
    from evaluation.reading import read
    from evaluation.table import FORMATS, write
    from evaluation.table import evaluate as run

    config = _config(ctx, preset, set_).evaluation.evaluation
    if out is not None:
        check_out_file(out, FORMATS, inputs=[*video, *([reference] if reference else [])])
    videos = {str(path): read(path, config.side) for path in video}
    given = {} if reference is None else dict.fromkeys(videos, read(reference, config.side))
    table = run(videos, given, config)
    _print_table(
        "metrics",
        [str(c) for c in table.columns],
        [[_short(v) for v in row] for row in table.to_numpy().tolist()],
    )
    if out is not None:
        write(table, out)


@app.command(rich_help_panel="Daily")
def play(folder: Path, port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 8701) -> None:
    """Look at the videos of a folder in a browser on this machine."""
    from workflows.servers.play import serve

    server = serve(folder, port)
    console.print(f"open {server.url} and stop with Ctrl-C.", soft_wrap=True)
    server.service_actions = stopping.check  # asked twice a second
    server.serve_forever()


# ------------------------------------------------------------------------------------------------- weights


@weights_app.command("list")
def weights_list(
    ctx: typer.Context,
    preset: Preset = None,
    set_: Set = None,
    urls: Annotated[
        bool, typer.Option("--urls", help="Only addresses and places, tab between, for a downloader elsewhere.")
    ] = False,
) -> None:
    """Every pretrained file that the preset needs: purpose, size, place, licence, present or not; and the total."""
    from configs import schema, weights, weights_list
    from configs.runtime.program import command

    config = _config(ctx, preset, set_)
    needed = weights.needs(schema.to_mapping(config))
    if urls:
        console.say(weights_list.urls(needed))
        return
    if not needed:
        console.print(f"The preset '{config.preset}' needs no pretrained file.")
        return
    console.say(weights_list.render(config.preset, needed, console.width))
    if any(weights_list.is_bad(need.state) for need in needed):
        named = preset or ctx.obj["preset"]
        options = [*(["--preset", named] if named else []), *(f"--set={s}" for s in [*ctx.obj["set"], *(set_ or [])])]
        console.say(f"\nGet what is missing: {command('weights', 'fetch', *options)}")
        console.say("or point a key at your copy: --set KEY=PATH")


@weights_app.command("fetch", cls=LongCommand)
def weights_fetch(
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

    if name:
        files = weights.named(name)
    else:
        needed = weights.needs(schema.to_mapping(_config(ctx, preset, set_)))
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

        def begin(file: weights.WeightFile) -> Callable[[int, int], None]:
            task = progress.add_task(file.name, total=file.bytes or file.derived_bytes)
            return lambda done, total: progress.update(task, completed=done, total=total or None)

        came = weights.fetch_all(files, begin)
    for path in came:
        console.print(str(path), soft_wrap=True)


@weights_app.command("check", cls=LongCommand)
def weights_check(ctx: typer.Context, preset: Preset = None, set_: Set = None) -> None:
    """Read what is here and compare it with the known sizes and digests; exit 3 when a file is missing or differs."""
    from configs import schema, weights, weights_list

    config = _config(ctx, preset, set_)
    needed = weights.needs(schema.to_mapping(config))
    if not needed:
        console.print(f"The preset '{config.preset}' needs no pretrained file.")
    bad = 0
    for need in needed:
        stopping.check()
        state = weights.check(need.known, need.path) if need.known and need.path else need.state
        bad += weights_list.is_bad(state)
        console.say(weights_list.checked(need, state))
    if bad:
        console.say(
            f"{bad} of {len(needed)} files are missing or differ; they belong in {weights.folder().absolute()}."
        )
        raise typer.Exit(3)


def main() -> None:
    """Run the command line; a mistake that a user can mend ends in one sentence and exit code 2, 3 or 4, a requested stop
    in one with the command that goes on, and exit code 130 or 143."""
    take_any_text()
    terminal = Terminal(stderr=True)
    with stopping.listening():
        try:
            scratch.sweep()
            sys.exit(app(standalone_mode=False))
        except stopping.Stopped as stop:
            terminal.say(stopping.sentence(stop, program.command(*map(redact, sys.argv[1:]))))
            stopping.leave()
        except EchoForgeError as error:
            terminal.error(str(error))
            sys.exit(error.exit_code)
        except TyperException as error:  # of the command line itself; names of files in it come from outside, too
            sentence = visible(error.format_message())
            error.format_message = lambda: sentence  # type: ignore[method-assign]
            rich_format_error(error)
            sys.exit(error.exit_code)
        except SystemExit:
            raise
        except BaseException as error:  # torch.distributed's are no Exceptions
            terminal.crash(error)
            sys.exit(1)


if __name__ == "__main__":
    main()
