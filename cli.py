"""EchoForge on the command line: the app and its daily commands; groups are in `workflows/commands/`.

``python cli.py`` and ``echoforge`` are the same program.
"""

# ruff: noqa: E402 - where our packages are, and who takes Ctrl-C, is settled before the slow imports

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

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
from typer.exceptions import TyperException
from typer.rich_utils import rich_format_error

from configs.errors import EchoForgeError
from configs.runtime import scratch
from configs.runtime.console import Terminal, take_any_text
from configs.runtime.redaction import redact
from configs.runtime.shown import visible
from workflows.commands import catalog, look, negatives, shards, sync, weights
from workflows.commands.options import (
    GlobalOptions,
    Inline,
    Limit,
    Preset,
    RayAddress,
    Set,
    cluster,
    load_config,
    overrides,
)
from workflows.commands.output import LongCommand, console

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
for group in (catalog, shards, negatives, sync, weights):
    app.add_typer(group.app, name=group.__name__.rpartition(".")[2], rich_help_panel="Groups")


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
    ctx.obj = GlobalOptions(preset, tuple(set_ or ()), ray_address)


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
    from pipeline.catalog.curate import curate as curate_videos

    summary = curate_videos(
        source,
        out,
        load_config(ctx, preset, set_),
        inline=inline,
        ray_address=cluster(ctx, ray_address),
        limit=limit,
        retry_failed=retry_failed,
        named=schema.named(overrides(ctx, set_)),
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
    from pipeline.dataset.shard import shard as write_dataset
    from pipeline.engine.progress import Progress

    summary = write_dataset(
        catalog,
        out,
        load_config(ctx, preset, set_),
        inline=inline,
        ray_address=cluster(ctx, ray_address),
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
            shards,
            out,
            load_config(ctx, preset, set_),
            max_steps=steps,
            review=review,
            ray_address=cluster(ctx, ray_address),
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

    config = load_config(ctx, preset, set_)
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
    from workflows.generate import generate as generate_video

    made = generate_video(
        checkpoint, load_config(ctx, preset, set_), audio=audio, out=out, image=image, video=video, prompt=prompt,
        task=task, seconds=seconds, seed=seed,
    )  # fmt: skip
    console.print(made)


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

    console.print(run_demo(out, load_config(ctx, preset, set_), puppets=puppets))


app.command("eval", cls=LongCommand, rich_help_panel="Daily")(look.evaluate)
app.command(rich_help_panel="Daily")(look.play)


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
