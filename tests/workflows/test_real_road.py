"""README's road for weights and GPUs, command by command, with the real kinds of every network.

The files are small and random, but of the published formats: the loaders that read them are those that read the real
ones. Sizes come from the files; where the preset repeats one (``transformer.*``, ``*.dim``), it is overridden. What
needs the real size or a GPU is set smaller in `SMALL`, and nothing else is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner, Result

import cli
from configs import schema, weights
from configs.errors import EchoForgeError
from configs.weights.registry import by_name

ROOT = Path(__file__).resolve().parents[2]
REAL = "wan2.1-fun-1.3b"
CLIPS = ("th_grid_brbk7n.mpg", "th_grid_lbbc2a.mpg", "th_grid_pwij3p.mpg", "th_grid_bbaf2n.mpg")
SMALL = [
    *("transformer.dim=48", "transformer.ffn_dim=64", "transformer.num_heads=2", "transformer.num_layers=2"),
    *("transformer.text_dim=32", "transformer.image_dim=64", "transformer.image_tokens=17", "transformer.audio.dim=32"),
    *("text_encoder.dim=32", "image_encoder.dim=64", "image_encoder.tokens=17", "audio_encoder.dim=32"),
    *("buckets.areas=[1024]", "buckets.aspects=[[1, 1]]", "buckets.lengths=[33]", "shards.splits={negatives: 0.5}"),
    *("optim.compile=false", "optim.shard=1", "optim.threads=1", "loader.global_batch=2", "loader.threads=2"),
    *("objective.negative.batch_size=2", "objective.negative.draws=2", "log.validation_samples=0", "log.every=1"),
    *("tasks.mix={i2v: 0.5, flf2v: 0.5}", "gather.quantile=0.5", "gather.margin=0.0", "sampler.steps=2"),
    "stages=[{name: s, kind: sft, steps: 2}, {name: n, kind: negatives, samples: 2}, {name: d, kind: ndpo, steps: 1}]",
]  # fmt: skip
NO_GPU = [
    "encode.dtype=float32",
    "encode.device=cpu",
    "execution.shard.gpus=0",
    "gather.device=cpu",
    "gather.share.gpus=0",
]


def run(*arguments: str, code: int | None = 0, settings: list[str] | None = None) -> Result:
    """A command as ``cli.main`` runs it, in this process; ``code`` None: it ends in a sentence."""
    given = [part for setting in settings or [] for part in ("--set", setting)]
    result = CliRunner().invoke(cli.app, [*arguments, "--preset", REAL, *given])
    if code is None:
        assert isinstance(result.exception, EchoForgeError), (result.output, result.exception)
    else:
        assert result.exit_code == code, (arguments, result.output, result.exception)
    return result


@pytest.fixture
def weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the preset looks in, empty."""
    monkeypatch.setenv("ECHOFORGE_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def _place(name: str) -> Path:
    path = weights.folder() / by_name()[name].path
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _detector(media: Path) -> None:
    file = media / "weights" / "face_detection_yunet_2023mar.onnx"
    if not file.is_file():
        pytest.skip(f"../shared/media/weights/{file.name} is not beside this checkout")
    shutil.copy(file, _place("yunet"))


def _syncnet() -> None:
    """The real network with random weights, in the published file's form: a plain state dict."""
    from curation.sync import syncnet_v2

    pytest.importorskip("syncnet_python")
    torch.manual_seed(0)
    torch.save(syncnet_v2.network().state_dict(), _place("syncnet-v2"))


def _rows(catalog: Path, name: str = "clips") -> list[dict[str, Any]]:
    rows = pq.read_table(catalog / name).to_pylist()
    return sorted(rows, key=lambda row: (row["source_uri"], row.get("start_frame", 0)))


def _operators(catalog: Path) -> set[str]:
    """What took time in the last run."""
    return set(json.loads((catalog / "run.json").read_text())["seconds"])


SYNC = {"sync_backend", "sync_c", "sync_d", "av_offset_frames", "offset_samples", "residual_offset", "residual_frames",
        "active_by",
        "active_track", "verdict", "reasons", "tier", "tracks"}  # fmt: skip
"""Columns that a sync score may change."""


def test_without_syncnet_good_clips_are_held_and_its_file_later_runs_sync_alone(
    shared_media: Path, weights_folder: Path, tmp_path: Path
) -> None:
    videos, catalog = tmp_path / "videos", tmp_path / "catalog"
    videos.mkdir()
    shutil.copy(shared_media / "clips" / CLIPS[1], videos)
    curate = ("curate", str(videos), "--out", str(catalog), "--inline")
    said = str(run(*curate, code=None).exception)
    assert str(weights_folder / "yunet") in said and "`weights fetch yunet`" in said
    _detector(shared_media)

    first = run(*curate)
    assert first.output.count("Good clips are held meanwhile") == 1
    assert "sync was not scored" in first.output and "weights fetch syncnet-v2" in " ".join(first.output.split())
    held = _rows(catalog)
    assert [row["verdict"] for row in held] == ["hold"] and "weights fetch syncnet-v2" in held[0]["reasons"][0]
    assert held[0]["sync_c"] is None and held[0]["sync_backend"] is None

    kept = run(*curate, settings=["sync.required=false"])
    assert "sync was not scored" in kept.output and [row["verdict"] for row in _rows(catalog)] == ["keep"]
    assert not _operators(catalog), "a verdict alone is decided again, nothing runs"

    _syncnet()
    scored = run(*curate)
    assert "not scored" not in scored.output
    assert {"text", "quality", "sound", "dedup", "voices"}.isdisjoint(_operators(catalog)) and "sync" in _operators(
        catalog
    )
    now = _rows(catalog)
    assert now[0]["sync_backend"] == "syncnet_v2" and now[0]["sync_c"] is not None
    changed = {name for old, new in zip(held, now, strict=True) for name in old if old[name] != new[name]}
    assert changed <= SYNC

    _place("syncnet-v2").unlink()
    assert "not scored" not in run(*curate).output and _rows(catalog) == now, "scores are not lost with the file"
    shutil.copy(shared_media / "clips" / CLIPS[0], videos)
    said = str(run(*curate, code=None).exception)
    assert "1 of 2 videos are not scored yet" in said and "weights fetch syncnet-v2" in said


def test_a_gpu_that_is_not_there_is_one_sentence_with_the_keys_to_set(
    weights_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from configs.runtime.devices import usable
    from pipeline.dataset.encode import load_encoders

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = schema.load(REAL)
    with pytest.raises(EchoForgeError, match=r"--set encode\.device=cpu --set execution\.shard\.gpus=0"):
        load_encoders(config.model, config.pipeline.encode)
    usable("cpu", "encode.device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    usable("cuda", "encode.device")
    with pytest.raises(EchoForgeError, match="sees 1 GPU here"):
        usable("cuda:1", "encode.device")
    with pytest.raises(EchoForgeError, match=r"5 files are not in .*weights fetch wan-vae"):
        load_encoders(config.model, replace(config.pipeline.encode, device="cpu"))


def test_the_readme_road_has_the_steps_that_are_walked_here() -> None:
    text = (ROOT / "README.md").read_text("utf-8").split("## For real", 1)[1].split("\n## ", 1)[0]
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.+) \|$", text, re.M))
    assert list(rows)[1:] == [
        "get the weights", "curate", "on many machines", "shard", "train", "at a `negatives` stage", "generate",
    ]  # fmt: skip
    for step, words in {
        "get the weights": "weights fetch --preset wan2.1-fun-1.3b",
        "curate": "sync.required=false",
        "shard": "--preset wan2.1-fun-1.3b",
        "train": "cli.py train dataset --out run --preset wan2.1-fun-1.3b",
        "at a `negatives` stage": "negatives gather run dataset --preset wan2.1-fun-1.3b",
        "generate": "cli.py generate run --preset wan2.1-fun-1.3b",
    }.items():
        assert words in rows[step], step


# ---- the whole road -------------------------------------------------------------------------------------------------


def _small_files() -> None:
    """Every file that the preset uses but SyncNet's and the detector's, small and random, at its place."""
    from diffusers import AutoencoderKLWan
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from whisper.model import ModelDimensions, Whisper

    from model.checkpoint import export
    from model.encoders.parity import original_vae_names
    from model.parity_recipe import recipe_weights
    from model.transformer import EchoMimicTransformer

    torch.manual_seed(0)
    vae: Any = AutoencoderKLWan(base_dim=8)
    state = vae.state_dict()
    torch.save({name: state[theirs] for name, theirs in original_vae_names(state).items()}, _place("wan-vae"))

    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (16, 32), "norm.weight": (32,)}
    block: dict[str, tuple[int, ...]] = {f"attn.{n}.weight": (32, 32) for n in "qkvo"}
    block |= {f"norm{n}.weight": (32,) for n in (1, 2)} | {"pos_embedding.embedding.weight": (32, 4)}
    block |= {"ffn.gate.0.weight": (48, 32), "ffn.fc1.weight": (48, 32), "ffn.fc2.weight": (32, 48)}
    shapes |= {f"blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    torch.save({k: v.bfloat16() for k, v in recipe_weights(shapes).items()}, _place("umt5-xxl"))
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "person": 4}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # type: ignore[assignment]
    words.save(str(_place("umt5-tokenizer")))

    seen: dict[str, tuple[int, ...]] = {
        "cls_embedding": (1, 1, 64), "pos_embedding": (1, 17, 64), "head": (64, 32),
        "patch_embedding.weight": (64, 3, 14, 14),
    }  # fmt: skip
    seen |= {f"{n}.{p}": (64,) for n in ("pre_norm", "post_norm") for p in ("weight", "bias")}
    layer: dict[str, tuple[int, ...]] = {f"norm{n}.{p}": (64,) for n in (1, 2) for p in ("weight", "bias")}
    layer |= {"attn.to_qkv.weight": (192, 64), "attn.to_qkv.bias": (192,)}
    layer |= {"attn.proj.weight": (64, 64), "attn.proj.bias": (64,), "mlp.0.weight": (256, 64), "mlp.0.bias": (256,)}
    layer |= {"mlp.2.weight": (64, 256), "mlp.2.bias": (64,)}
    seen |= {f"transformer.{i}.{name}": shape for i in range(2) for name, shape in layer.items()}
    torch.save({f"visual.{k}": v for k, v in recipe_weights(seen).items()}, _place("clip-vit-h14"))

    dims = ModelDimensions(80, 1500, 32, 2, 2, 60, 8, 32, 2, 1)
    torch.save({"dims": vars(dims), "model_state_dict": Whisper(dims).state_dict()}, _place("whisper-tiny"))

    cfg = schema.load(REAL, SMALL).model.transformer
    base = EchoMimicTransformer(replace(cfg, variant="base"))
    base.init_weights()
    export(base, _place("fun-inp-transformer"), torch.bfloat16)


@pytest.mark.slow
def test_the_whole_road(shared_media: Path, weights_folder: Path, tmp_path: Path) -> None:
    """weights, curate, shard, torchrun, gather, torchrun again, generate."""
    torch.set_num_threads(1)  # thousands of tiny convolutions: threads only wait for each other
    _small_files()
    _detector(shared_media)
    _syncnet()
    listed = run("weights", "list", settings=SMALL).output
    assert not re.search(r"  missing$", listed, re.M)
    assert listed.count("size differs") == 7, "all but YuNet, which is the published one"
    assert "yunet" in run("weights", "check", code=3, settings=SMALL).output
    _place("syncnet-v2").unlink()  # random scores would decide by chance
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in CLIPS:
        shutil.copy(shared_media / "clips" / name, videos)
    catalog, dataset, trained = (str(tmp_path / name) for name in ("catalog", "dataset", "run"))

    run("curate", str(videos), "--out", catalog, "--inline", settings=["sync.required=false"])
    assert sum(row["verdict"] == "keep" for row in _rows(Path(catalog))) >= 3
    if not torch.cuda.is_available():
        said = str(run("shard", catalog, "--out", dataset, "--inline", code=None, settings=SMALL).exception)
        assert "--set encode.device=cpu --set execution.shard.gpus=0" in said
    settings = SMALL if torch.cuda.is_available() else [*SMALL, *NO_GPU]
    run("shard", catalog, "--out", dataset, "--inline", settings=settings)
    about = json.loads((Path(dataset) / "dataset.json").read_text())
    names = {part["name"] for part in about["encoders"].values()}
    assert {"Wan2.1 VAE", "umT5-xxl", "CLIP ViT-H/14"} <= names and any("hisper" in name for name in names)

    def torchrun() -> str:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", str(ROOT / "cli.py"), "train",
                   dataset, "--out", trained, "--preset", REAL]  # fmt: skip
        given = [part for setting in settings for part in ("--set", setting)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "500"}
        result = subprocess.run(
            [sys.executable, *command, *given],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
        return " ".join(result.stdout.split())

    gather = f"negatives gather {trained} {dataset}"
    assert f"cli.py {gather} --preset {REAL}" in torchrun()
    run(*gather.split(), "--inline", settings=settings)
    assert "finished at step 3" in torchrun()
    clip = str(shared_media / "clips" / CLIPS[0])
    for task, source in (("i2v", "--image"), ("lip_sync", "--video")):
        out = tmp_path / f"{task}.mp4"
        run("generate", trained, source, clip, "--audio", clip, "--seconds", "1", "--task", task, "--out", str(out),
            settings=settings)  # fmt: skip
        assert out.stat().st_size > 1000
