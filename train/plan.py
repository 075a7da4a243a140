"""What a run would need: parameters, memory, operations and hours per stage, before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model.config import ModelConfig
from model.flops import closed_form
from model.transformer import EchoMimicTransformer
from train import stages
from train.config import TrainConfig
from train.data.index import open_index

H200_TFLOPS = 790.0
"""bf16 matrix products of one H200, measured on random data (8192³): the peak that MFU is counted against here."""
MFU = 0.44
"""Share of that peak that a step is planned to reach (docs: 3.4 s a step at 113 × 480 × 832)."""
_STATE_BYTES = 4 + 8 + 4 + 4  # fp32 weight, Adam moments, gradient, EMA


@dataclass(frozen=True)
class BucketPlan:
    """One shape: samples of it, tokens, and model operations of a training step per sample."""

    name: str
    samples: int | None
    tokens: int
    step_tflop: float


@dataclass(frozen=True)
class TrainPlan:
    """The whole plan; ``str()`` is for people."""

    parameters: int
    state_gib: float
    buckets: list[BucketPlan]
    stages: Sequence[tuple[str, str, int]]  # name, kind, steps
    global_batch: int

    def __str__(self) -> str:
        lines = [
            f"transformer: {self.parameters / 1e9:.3f} B parameters",
            f"weights, Adam, gradients and average in fp32: {self.state_gib:.1f} GiB over all shards (activations come on top)",
            f"global batch: {self.global_batch}",
        ]
        for b in self.buckets:
            count = "" if b.samples is None else f"{b.samples} samples, "
            seconds = b.step_tflop / (H200_TFLOPS * MFU)
            lines.append(
                f"bucket {b.name}: {count}{b.tokens} tokens, {b.step_tflop:,.3f} TFLOP a sample and step; "
                f"{seconds:.3g} s at {MFU:.0%} of one H200 (derived, not measured)"
            )
        worst = max((b.step_tflop for b in self.buckets), default=0.0) * self.global_batch
        for name, kind, steps in self.stages:
            hours = steps * worst / (H200_TFLOPS * MFU) / 3600
            work = (
                f"{steps} steps, at most {hours:.3g} H200-hours (derived)" if steps else "generation, see sampler.steps"
            )
            lines.append(f"stage {name} ({kind}): {work}")
        return "\n".join(lines)


def plan(dataset: str | Path | None, model_cfg: ModelConfig, cfg: TrainConfig) -> TrainPlan:
    """Plan a run on the buckets of ``dataset``, or at 113 × 480 × 832 (the paper's length, Wan's 480p) without one.

    Raises:
        EchoForgeError: no such dataset, or stages that contradict each other.
    """
    net = model_cfg.transformer
    with torch.device("meta"):
        count = sum(p.numel() for p in EchoMimicTransformer(net).parameters())
    if dataset is None:
        shapes: list[tuple[str, int | None, tuple[int, int, int]]] = [("832x480x113", None, (29, 60, 104))]
    else:
        index = open_index(dataset, split="train", keep=cfg.loader.keep)
        shapes = [(name, len(rows), _latent(name)) for name, rows in sorted(index.members.items())]
    buckets = []
    for name, samples, latent in shapes:
        tokens = latent[0] * latent[1] * latent[2] // (net.patch_size[1] * net.patch_size[2])
        buckets.append(BucketPlan(name, samples, tokens, 3 * closed_form(net, latent).total / 1e12))
    planned = [(s.name, s.cfg.kind, s.cfg.steps) for s in stages.plan(cfg)]
    return TrainPlan(count, count * _STATE_BYTES / 2**30, buckets, planned, cfg.loader.global_batch)


def _latent(bucket: str) -> tuple[int, int, int]:
    width, height, frames = (int(part) for part in bucket.split("x"))
    return (frames - 1) // 4 + 1, height // 8, width // 8
