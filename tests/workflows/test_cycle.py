"""The whole loop at its smallest, with nothing faked: puppets → catalog → shards → SFT → negatives → NDPO → video."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from configs import schema
from configs.dataset_schema import NEGATIVES
from configs.errors import EchoForgeError
from configs.schema import Config
from curation import puppets
from pipeline.catalog.curate import curate
from pipeline.catalog.queries import explain, redecide, status
from pipeline.dataset.shard import shard
from pipeline.dataset.verify import verify
from train.checkpoints import retention
from train.log import METRICS_FILE, of_kind, read_metrics
from train.trainer import train
from workflows.cycle import run_cycle
from workflows.generate import generate

SMALL = [
    "sync.required=false",
    "transformer.dim=48",
    "transformer.ffn_dim=64",
    "transformer.num_heads=2",
    "transformer.num_layers=2",
    "loader.global_batch=4",
    "optim.micro_batch=2",
    "optim.threads=1",
    "sampler.steps=2",
    "log.every=1",
    "log.validate_every=0",
    "log.validation_samples=2",
    "checkpoint.every=3",
    "gather.quantile=0.5",
    "gather.margin=0.0",
    "objective.negative.ratio_stop=0",
    "stages=[{name: s, kind: sft, steps: 6}, {name: n, kind: negatives, samples: 3}, {name: d, kind: ndpo, steps: 2}]",
]


@pytest.fixture(scope="module")
def config() -> Config:
    return schema.load("tiny", SMALL)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Path:
    """A folder with ``videos``, ``catalog`` and ``dataset``."""
    root = tmp_path_factory.mktemp("world")
    puppets.make(root / "videos", 12, 3, config.curation.puppets, faults=["no_face", "truncated", "silence"])
    curate([str(root / "videos")], str(root / "catalog"), config, inline=True, quiet=True)
    shard(str(root / "catalog"), str(root / "dataset"), config, inline=True)
    return root


def test_curation_gives_every_file_a_verdict_and_reasons(world: Path, config: Config) -> None:
    truth = {row.file: row for row in puppets.read_manifest(world / "videos")}
    rows = {Path(r["source_uri"]).name: r for r in pq.read_table(world / "catalog" / "videos").to_pylist()}
    assert set(rows) == set(truth)
    for name, row in rows.items():
        if truth[name].fault:
            assert row["verdict"] in ("reject", "error") and row["reasons"], name
    assert sum(r["verdict"] == "keep" for r in rows.values()) >= 5
    assert (world / "catalog" / "report.html").is_file()
    assert "error" in str(status(str(world / "catalog")))


def test_a_new_threshold_decides_again_without_decoding(world: Path, config: Config) -> None:
    before = pq.read_table(world / "catalog" / "clips").to_pylist()
    kept = next(row for row in before if row["verdict"] == "keep")
    strict_ = replace(
        config, curation=replace(config.curation, decide=replace(config.curation.decide, min_face_px=1e4))
    )
    assert redecide(str(world / "catalog"), strict_).clips.get("keep") is None
    shown = explain(str(world / "catalog"), kept["clip_id"], strict_.curation)
    assert any(r.code == "face_size" and not r.passed for r in shown.results)
    redecide(str(world / "catalog"), config)
    assert pq.read_table(world / "catalog" / "clips").to_pylist() == before


def test_curating_again_computes_nothing_and_required_sync_holds(world: Path, config: Config) -> None:
    required = replace(config, curation=replace(config.curation, sync=replace(config.curation.sync, required=True)))
    summary = curate([str(world / "videos")], str(world / "catalog"), required, inline=True, quiet=True)
    assert summary.analysed_now == 0 and summary.clips.get("keep") is None and summary.clips["hold"] >= 5
    clips = pq.read_table(world / "catalog" / "clips").to_pylist()
    held = next(row for row in clips if row["verdict"] == "hold")
    assert any("weights fetch syncnet-v2" in reason and "sync fit" in reason for reason in held["reasons"])
    curate([str(world / "videos")], str(world / "catalog"), config, inline=True, quiet=True)


def test_the_cycle_from_start_to_end_and_a_video(world: Path, config: Config, tmp_path: Path) -> None:
    assert verify(str(world / "dataset")).ok
    summary = run_cycle(str(world / "dataset"), tmp_path / "run", config)
    assert summary.outcome.status == "finished" and summary.outcome.step == 8
    samples = pq.read_table(tmp_path / "run" / "negatives" / "n" / "samples.parquet", schema=NEGATIVES).to_pylist()
    assert len(samples) == 3 and all(row["scores"] and row["real_quantiles"] for row in samples)
    for row in samples:
        assert (tmp_path / "run" / "negatives" / "n" / row["video_path"]).stat().st_size > 0
    lines = read_metrics(tmp_path / "run" / METRICS_FILE)
    pushed = [line for line in of_kind(lines, "step") if "negative/push" in line.values]
    assert [line.step for line in pushed] == [7, 8]
    kept = [p.name for p in retention.committed(tmp_path / "run") if retention.is_pinned(p)]
    assert kept == ["step-000006", "step-000008"]
    exported = load_file(tmp_path / "run" / "step-000008" / "ema.safetensors")
    assert "blocks.1.cross_attn.k_audio.weight" in exported

    source = next(p for p in sorted((world / "videos").glob("puppet-0000*.mp4")))
    for task in ("i2v", "lip_sync"):
        out = tmp_path / f"{task}.mp4"
        made = generate(
            tmp_path / "run", config, audio=source, out=out, image=source, video=source, task=task, seconds=1
        )
        assert made.frames == 25 and out.is_file() and "no measure of quality" in made.note


def test_as_many_steps_as_a_stage_has_stop_at_its_end(world: Path, config: Config, tmp_path: Path) -> None:
    for _ in range(2):
        outcome = train(
            world / "dataset", tmp_path / "run", config.model, config.train, seed=config.seed, say=None, max_steps=6
        )
        assert outcome.status == "paused" and outcome.step == 6 and outcome.checkpoint.name == "step-000006"


def test_a_resumed_run_is_the_same_run(world: Path, config: Config, tmp_path: Path) -> None:
    def weights(run: Path) -> bytes:
        return (run / "step-000006" / "raw.safetensors").read_bytes()

    cfg = replace(config.train, stages=config.train.stages[:1])
    train(world / "dataset", tmp_path / "straight", config.model, cfg, say=None)
    first = train(world / "dataset", tmp_path / "halves", config.model, cfg, say=None, max_steps=2)
    assert first.status == "paused" and first.step == 2
    second = train(world / "dataset", tmp_path / "halves", config.model, cfg, say=None)
    assert second.status == "finished"
    assert weights(tmp_path / "straight") == weights(tmp_path / "halves"), "bitwise"
    a, b = (
        [json.dumps([line.step, {k: v for k, v in line.values.items() if k not in ("seconds", "waited")}])
         for line in of_kind(read_metrics(tmp_path / name / METRICS_FILE), "step")]
        for name in ("straight", "halves")
    )  # fmt: skip
    assert a == b
    with pytest.raises(EchoForgeError, match="seed"):
        train(world / "dataset", tmp_path / "halves", config.model, cfg, say=None, seed=1)
