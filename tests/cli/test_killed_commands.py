"""Every long command, killed with ``kill -9`` before twenty random changes of its files: what is there afterwards is
taken by the same command, and its result is that of an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from configs import schema
from curation import puppets
from curation.media.clip_reader import read_clip
from curation.schema import CLIPS, VIDEOS
from pipeline.catalog import tables
from pipeline.catalog.curate import curate
from pipeline.dataset.shard import shard
from train.log import METRICS_FILE, read_metrics
from workflows.cycle import run_cycle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
KILLS = 20
SMALL = [
    "sync.required=false",
    "transformer.dim=48",
    "transformer.ffn_dim=64",
    "transformer.num_heads=2",
    "transformer.num_layers=2",
    "loader.global_batch=2",
    "loader.threads=1",
    "optim.micro_batch=2",
    "optim.threads=1",
    "sampler.steps=2",
    "log.every=1",
    "log.validate_every=0",
    "log.validation_samples=0",
    "checkpoint.every=2",
    "gather.quantile=0.5",
    "gather.margin=0.0",
    "objective.negative.ratio_stop=0",
    "shards.target_mb=1",
]
STAGES = "stages=[{name: s, kind: sft, steps: 5}, {name: n, kind: negatives, samples: 3}]"
OPTIONS = [part for value in [*SMALL, STAGES] for part in ("--set", value)]


class Killing:
    """Commands in the process of `tests/cli/killing.py`."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("killing.py")
        self.process = subprocess.Popen(
            [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, argv: list[str], cwd: Path, at: int = 0) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        order = {"argv": argv, "cwd": str(cwd), "folder": str(cwd), "at": at}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def killing() -> Iterator[Killing]:
    program = Killing()
    yield program
    program.process.kill()
    program.process.wait()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos, two catalogs and datasets, a run that waits for its negatives, a face and a voice."""
    root = tmp_path_factory.mktemp("world")
    config = schema.load("tiny", [*SMALL, STAGES])
    puppets.make(root / "videos", 7, 3, config.curation.puppets, faults=["no_face", "truncated"])
    curate([str(root / "videos")], str(root / "catalog"), config, inline=True, quiet=True)
    shard(str(root / "catalog"), str(root / "dataset"), config, inline=True)
    puppets.make(root / "others", 3, 4, config.curation.puppets)
    curate([str(root / "others")], str(root / "catalog2"), config, inline=True, quiet=True)
    shard(str(root / "catalog2"), str(root / "dataset2"), config, inline=True)
    run_cycle(str(root / "dataset"), root / "run", config)
    shutil.rmtree(root / "run" / "negatives")
    clip = read_clip(str(sorted((root / "videos").glob("*.mp4"))[0]), 0, 13, width=96, height=96)
    Image.fromarray(clip.frames[0]).save(root / "face.png")
    soundfile.write(root / "voice.wav", clip.pcm, 16000)
    return root


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _catalog(folder: Path) -> Any:
    found = [tables.read(str(folder / "catalog"), n, s).to_pylist() for n, s in (("clips", CLIPS), ("videos", VIDEOS))]
    run = json.loads((folder / "catalog" / "run.json").read_text("utf-8"))
    return [sorted(rows, key=repr) for rows in found], run["config"]["decide"]


def _dataset(name: str) -> Callable[[Path], Any]:
    def result(folder: Path) -> Any:
        root = folder / name
        files = {str(p.relative_to(root)): _digest(p) for p in root.rglob("*.tar")}
        index = pq.read_table(root / "index.parquet").to_pylist()
        return files, index, _digest(root / "prompts.safetensors")

    return result


def _run(folder: Path) -> Any:
    run = folder / "run2"
    newest = sorted(run.glob("step-*"))[-1]
    metrics = [
        (line.kind, line.step, {k: v for k, v in line.values.items() if k in ("loss", "grad_norm", "lr")})
        for line in read_metrics(run / METRICS_FILE)
    ]
    negatives = pq.read_table(run / "negatives" / "n" / "samples.parquet").to_pylist()
    return _digest(newest / "raw.safetensors"), _digest(newest / "ema.safetensors"), metrics, negatives


def _gathered(folder: Path) -> Any:
    root = folder / "run" / "negatives" / "n"
    return pq.read_table(root / "samples.parquet").to_pylist(), {p.name: _digest(p) for p in root.rglob("*.mp4")}


@dataclass(frozen=True)
class Case:
    """``argv`` is run in a copy of the world without ``lacks``; ``result`` is what must be equal."""

    argv: tuple[str, ...]
    result: Callable[[Path], Any]
    lacks: tuple[str, ...] = ()


SETTINGS = tuple(OPTIONS)
CASES = {
    "curate": Case(("curate", "videos", "--out", "catalog", "--inline", *SETTINGS), _catalog, ("catalog",)),
    "redecide": Case(("catalog", "redecide", "catalog", "--set", "decide.min_sharpness=0.35"), _catalog),
    "shard": Case(("shard", "catalog", "--out", "dataset", "--inline", *SETTINGS), _dataset("dataset"), ("dataset",)),
    "shards add": Case(("shards", "add", "dataset", "cond_avatar", "--inline", *SETTINGS), _dataset("dataset")),
    "shards merge": Case(("shards", "merge", "dataset", "dataset2", "--out", "merged"), _dataset("merged")),
    "shards split": Case(("shards", "split", "dataset", "--out", "part", "--split", "train"), _dataset("part")),
    "train": Case(("train", "dataset", "--out", "run2", *SETTINGS), _run),
    "gather": Case(("negatives", "gather", "run", "dataset", "--inline", *SETTINGS), _gathered),
    "generate": Case(
        ("generate", "run", "--image", "face.png", "--audio", "voice.wav", "--out", "out.mp4", *SETTINGS),
        lambda folder: _digest(folder / "out.mp4"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_twenty_kills_change_nothing(killing: Killing, world: Path, tmp_path: Path, name: str) -> None:
    case, chance = CASES[name], random.Random(name)
    work = tmp_path / "work"  # the same path each time: names of files are part of some results

    def fresh() -> None:
        shutil.rmtree(work, ignore_errors=True)
        ignored = shutil.ignore_patterns(*case.lacks) if case.lacks else None
        shutil.copytree(world, work, ignore=ignored, copy_function=shutil.copy2)

    fresh()
    undisturbed = killing(list(case.argv), work)
    assert undisturbed["code"] == 0, undisturbed["output"]
    expected, changes = case.result(work), undisturbed["changes"]
    assert changes >= 1, "nothing was written?"
    fresh()
    killed = finished = 0
    moments: list[int] = []
    while killed < KILLS or finished == 0:
        moments.append(chance.randint(1, changes) if killed < KILLS else 0)
        answer = killing(list(case.argv), work, moments[-1])
        if answer["code"] == -9:
            killed += 1
            continue
        # Killed after the last change that counts, the work is done, and some commands say so.
        done = any(words in answer["output"] for words in ("holds a dataset already", "are gathered"))
        assert answer["code"] == 0 or done, (moments, answer["output"])
        assert case.result(work) == expected, moments
        left = [str(p) for p in work.rglob("*") if p.name.endswith((".tmp", ".part", ".old"))]
        assert not left, (moments, left)
        finished += 1
        moments.clear()
        fresh()
    last = killing(list(case.argv), work)
    assert last["code"] == 0 and case.result(work) == expected
