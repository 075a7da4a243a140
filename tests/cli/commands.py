"""The long commands, small, with what their output must be: for tests that disturb them."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import soundfile
from PIL import Image
from safetensors.torch import load_file

import cli
from configs import schema
from curation import puppets
from curation.media.clip_reader import read_clip
from curation.schema import CLIPS, VIDEOS
from pipeline.catalog import tables
from pipeline.catalog.curate import curate
from pipeline.dataset.edit import split
from pipeline.dataset.shard import shard
from train.log import METRICS_FILE, read_metrics
from train.trainer import train

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "sync.required=false", "transformer.dim=48", "transformer.ffn_dim=64", "transformer.num_heads=2",
    "transformer.num_layers=2", "loader.global_batch=2", "optim.micro_batch=2", "optim.threads=1", "log.every=1",
    "log.validate_every=0", "log.validation_samples=0", "gather.batch=1",
    "execution.curate.count=1", "execution.shard.count=1", "gather.share.count=1",
]  # fmt: skip
STAGES = "stages=[{{name: s, kind: sft, steps: {0}}}, {{name: n, kind: negatives, samples: 4}}]"


def make_world(root: Path) -> Path:
    """Videos, a catalog, a dataset, a run, a picture and a voice."""
    config = replace(schema.load("tiny", [*SMALL, STAGES.format(1)]), preset="tiny")
    puppets.make(root / "videos", 6, 3, config.curation.puppets, faults=[])
    curate([str(root / "videos")], str(root / "catalog"), config, inline=True, quiet=True)
    shard(str(root / "catalog"), str(root / "dataset"), config, inline=True)
    for part, splits in (("one", ["train"]), ("two", ["negatives", "val"])):
        split(str(root / "dataset"), str(root / part), splits=splits)
    train(root / "dataset", root / "run", config.model, config.train, say=None, device="cpu", preset="tiny")
    clip = read_clip(str(root / "videos" / "puppet-0000.mp4"), 0, 33, width=96, height=96)
    Image.fromarray(clip.frames[0]).resize((192, 192)).save(root / "face.png")
    soundfile.write(root / "voice.wav", clip.pcm, 16000)
    return root


@dataclass(frozen=True)
class Long:
    """A long command. ``line``: with {out}; ``begun``: a pattern below {out} that shows that it is at work; ``result``:
    of its output; ``copied``: a folder of the world that it works on in place, as {out}."""

    line: str
    begun: str
    result: Callable[[Path], Any]
    copied: str = ""
    steps: int = 1


def catalog(out: Path) -> Any:
    found = [tables.read(str(out), name, kind) for name, kind in (("videos", VIDEOS), ("clips", CLIPS))]
    return [table.sort_by(table.schema.names[0]).to_pylist() for table in found]


def dataset(out: Path) -> Any:
    tars = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.tar")}
    return tars, sorted(pq.read_table(out / "index.parquet").to_pylist(), key=str)


def trained(out: Path) -> Any:
    last = max(path.parent for path in out.glob("step-*/raw.safetensors"))
    lines = [(x.kind, x.step, x.values.get("loss")) for x in read_metrics(out / METRICS_FILE)]
    return last.name, (last / "raw.safetensors").read_bytes(), (last / "ema.safetensors").read_bytes(), lines


def gathered(out: Path) -> Any:
    return pq.read_table(out / "negatives" / "n" / "samples.parquet").to_pylist()


def fitted(out: Path) -> Any:
    """Not its values: another number of threads changes their last digits."""
    return {name: tensor.shape for name, tensor in load_file(out / "fit.safetensors").items()}


COMMANDS = {
    "curate": Long("curate {world}/videos --out {out} {small}", "ledger/curate/*/parts/*.parquet", catalog),
    "train": Long("train {world}/dataset --out {out} {small}", "metrics.jsonl", trained, steps=16),
    "generate": Long("generate {world}/run --image {world}/face.png --audio {world}/voice.wav --out {out}/made.mp4 {small} "
                     "--set sampler.steps=40", "", lambda out: (out / "made.mp4").read_bytes()),
    "shard": Long("shard {world}/catalog --out {out} {small}", "ledger/shard/*/parts/*.parquet", dataset),
    "add": Long("shards add {out} cond_avatar {small}", "ledger/add/*/parameters.json", dataset, copied="dataset"),
    "merge": Long("shards merge {world}/one {world}/two --out {out}", "", dataset),
    "split": Long("shards split {world}/dataset --split train --out {out}", "", dataset),
    "verify": Long("shards verify {world}/dataset", "", lambda _: None),
    "gather": Long("negatives gather {out} {world}/dataset --inline {small} --set sampler.steps=20",
                   "negatives/n/ledger/*/parts/*.parquet", gathered, copied="run"),
    "redecide": Long("catalog redecide {out} --set decide.min_face_share=0.2", "", catalog, copied="catalog"),
    "fit": Long("sync fit {world}/catalog --out {out}/fit.safetensors {small} --set sync.fit.min_sources=3 "
                "--set sync.fit.steps=30", "", fitted),
}  # fmt: skip


def command(which: str, world: Path, out: Path) -> list[str]:
    case = COMMANDS[which]
    small = " ".join(f"--set {shlex.quote(item)}" for item in [*SMALL, STAGES.format(case.steps)])
    return [sys.executable, str(ROOT / "cli.py"), *shlex.split(case.line.format(world=world, out=out, small=small))]


def prepared(which: str, world: Path, out: Path) -> Path:
    if copied := COMMANDS[which].copied:
        shutil.copytree(world / copied, out)
    else:
        out.mkdir()
    return out


def here(arguments: list[str]) -> int:
    """Run a command line of this program to its end, in this process: the imports are done. Returns the exit code."""
    assert arguments[:2] == command("verify", Path(), Path())[:2]
    inline = ["--inline"] if arguments[2] in ("curate", "shard") or arguments[2:4] == ["shards", "add"] else []
    before, sys.argv = sys.argv, [*arguments[1:], *inline]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0
