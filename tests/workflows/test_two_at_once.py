"""Two of the same command at once, as real processes: the second is refused, and the first ends as if it were alone.

The first is stopped (SIGSTOP) as soon as it has locked, so that the second meets it at work on any machine.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from configs import schema
from configs.runtime.locks import LOCK_FILE
from curation import puppets
from pipeline.catalog.curate import curate
from pipeline.dataset.shard import shard
from train.trainer import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "sync.required=false", "transformer.dim=48", "transformer.ffn_dim=64", "transformer.num_heads=2",
    "transformer.num_layers=2", "loader.global_batch=4", "optim.micro_batch=2", "optim.threads=1", "sampler.steps=2",
    "log.every=1", "log.validate_every=0", "log.validation_samples=0", "checkpoint.every=3", "shards.target_mb=1",
    "stages=[{name: s, kind: sft, steps: 3}, {name: n, kind: negatives, samples: 2}]",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``videos``, ``moved`` (the same), ``catalog``, ``dataset``, another ``dataset-b``, and a ``run`` that waits."""
    root, config = tmp_path_factory.mktemp("world"), schema.load("tiny", SMALL)
    puppets.make(root / "videos", 12, 3, config.curation.puppets, faults=["no_face", "truncated", "silence"])
    shutil.copytree(root / "videos", root / "moved")
    curate([str(root / "videos")], str(root / "catalog"), config, inline=True, quiet=True)
    shard(str(root / "catalog"), str(root / "dataset"), config, inline=True)
    shutil.copytree(root / "dataset", root / "dataset-b")
    train(root / "dataset", root / "run", config.model, config.train, say=None, device="cpu")
    return root


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for part in sorted(path.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def catalog_of(folder: Path) -> object:
    return rows(folder / "videos"), rows(folder / "clips")


def dataset_of(folder: Path) -> object:
    tars = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.tar")}
    return tars, rows(folder)


def stage_of(folder: Path) -> object:
    latents = {path.name: path.read_bytes() for path in folder.glob("latents/*")}
    return latents, rows(folder)


@dataclass(frozen=True)
class Kind:
    """``words``: a command line; ``{out}`` is what is changed, a copy of ``start`` where that is named."""

    words: str
    content: Callable[[Path], object]
    start: str = ""
    inside: str = ""  # where below ``out`` the lock is
    inline: bool = True
    configured: bool = True


KINDS = {
    "curate": Kind("curate {world}/videos --out {out}", catalog_of),
    "catalog redecide": Kind("catalog redecide {out} --set decide.min_face_px=60", catalog_of, "catalog", "", False, False),
    "catalog relocate": Kind(
        "catalog relocate {out} {world}/videos {world}/moved", catalog_of, "catalog", "", False, False
    ),
    "shard": Kind("shard {world}/catalog --out {out}", dataset_of),
    "shards add": Kind("shards add {out} cond_lip", dataset_of, "dataset"),
    "shards merge": Kind("shards merge {world}/dataset {world}/dataset-b --out {out}", dataset_of, "", "", False, False),
    "shards split": Kind("shards split {world}/dataset --out {out} --split train", dataset_of, "", "", False, False),
    "negatives gather": Kind("negatives gather {out} {world}/dataset", lambda f: stage_of(f / "negatives" / "n"), "run",
                             "negatives/n"),
}  # fmt: skip


def start(kind: Kind, world: Path, out: Path) -> subprocess.Popen[str]:
    words = [word.format(world=world, out=out) for word in kind.words.split()]
    words += ["--inline"] if kind.inline else []
    words += [f"--set={item}" for item in SMALL] if kind.configured else []
    return subprocess.Popen(
        [sys.executable, "cli.py", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("name", KINDS)
def test_two_at_once_end_as_one_alone_does(world: Path, tmp_path: Path, name: str) -> None:
    kind, lone, both = KINDS[name], tmp_path / "lone", tmp_path / "both"
    for out in (lone, both):
        if kind.start:
            shutil.copytree(world / kind.start, out)
    alone, first = start(kind, world, lone), start(kind, world, both)
    lock = both / kind.inside / LOCK_FILE
    while first.poll() is None and not (lock.exists() and lock.stat().st_size):
        time.sleep(0.001)
    first.send_signal(signal.SIGSTOP)
    before = {path: path.stat().st_mtime_ns for path in both.rglob("*")}
    second = start(kind, world, both)
    _, said = second.communicate(timeout=900)  # one that waited for the first would wait for ever
    assert {path: path.stat().st_mtime_ns for path in both.rglob("*")} == before, "nothing was written"
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2, said
    assert f"by `{name}` (process {first.pid} on " in said.splitlines()[-1], said
    for process in (alone, first):
        _, said = process.communicate()
        assert process.returncode == 0, said
    assert kind.content(both) == kind.content(lone) and kind.content(lone)
    assert not list(both.rglob(LOCK_FILE))


def test_a_killed_command_locks_nobody_out(world: Path, tmp_path: Path) -> None:
    kind, out = KINDS["curate"], tmp_path / "out"
    first = start(kind, world, out)
    while first.poll() is None and not (out / LOCK_FILE).exists():
        time.sleep(0.001)
    first.kill()
    first.communicate()
    second = start(kind, world, out)
    _, said = second.communicate()
    assert second.returncode == 0, said
    assert catalog_of(out) == catalog_of(world / "catalog")
