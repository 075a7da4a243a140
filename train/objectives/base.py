"""What the loop asks of an objective, and how every objective calls the network.

An objective knows no distribution and no optimizer; the loop knows no objective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from model import flow, phda
from model.config import PhDAConfig, TransformerConfig, Variant
from train import rng
from train.config import TrainConfig
from train.data.inputs import Inputs
from train.data.loader import Loader
from train.log import Tally
from train.parallel import World
from train.stages import Stage
from train.state import Progress, Weights

MicroStep = Callable[[], Tensor]
"""Runs one forward and returns its share of the step's loss; the shares of a step add up."""


class Method(Protocol):
    """The objective of a stage."""

    def micro_steps(self, step: int) -> Sequence[MicroStep]:
        """The forwards of global ``step`` on this rank; the loop runs backward after each."""

    def stop_reason(self) -> str | None:
        """Why the stage should end early, or None. Asked after every step; the same on all ranks."""

    def state(self) -> dict[str, float]:
        """What a checkpoint must keep for the rest of the stage."""


@dataclass(frozen=True)
class Context:
    """What every objective of a run shares."""

    network: nn.Module
    phda: PhDAConfig
    cfg: TrainConfig
    seed: int
    device: torch.device
    prompts: Mapping[str, Tensor]
    text_len: int
    variant: Variant  # audio path of the network
    global_batch: int
    tally: Tally

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 products over fp32 weights where the configuration asks for it."""
        if self.cfg.optim.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


@dataclass(frozen=True)
class Reference:
    """The checkpoint that made the negatives of a stage, and which of its weights."""

    checkpoint: Path
    weights: Weights


@dataclass(frozen=True)
class Setup:
    """What the objective of a stage is built from.

    Attributes:
        positives: at the step where the stage goes on.
        run: the run's folder.
        progress: where the run stands; ``method`` is the objective's own.
        accept_flags: a flagged negative counts although nobody reviewed it.
        reference: of an `ndpo` stage.
    """

    context: Context
    stage: Stage
    positives: Loader
    dataset: str | Path
    run: Path
    transformer: TransformerConfig
    world: World
    progress: Progress
    accept_flags: bool
    reference: Reference | None


def predict(
    context: Context,
    inputs: Inputs,
    x: Tensor,
    sigma: Tensor,
    *,
    phda_draws: Tensor | None = None,
    network: nn.Module | None = None,
) -> Tensor:
    """The network's velocity [B, C, T, h, w] fp32 for noisy latents ``x`` at noise levels ``sigma`` [B].

    PhDA weights follow the network's own t, as they do when sampling.
    """
    t = flow.sigma_to_t(sigma)
    weights = phda.weights(t, context.phda, phda_draws)
    with context.autocast():
        velocity = (network or context.network)(
            x,
            t,
            cond=inputs.cond,
            text=inputs.text,
            image=inputs.image,
            audio=inputs.audio,
            audio_valid=inputs.audio_valid,
            audio_frame0=inputs.audio_frame0,
            face_mask=inputs.face_mask,
            weights=weights,
        )
    return velocity.float()


def squared_error(prediction: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """Mean squared error per sample [B] fp32, over the positions with ``where`` [B, 1, T, h, w] = 1.

    A sample with no such position has error 0.
    """
    error = (prediction.float() - target.float()).square() * where
    count = where.sum(dim=(1, 2, 3, 4)) * prediction.shape[1]
    return error.sum(dim=(1, 2, 3, 4)) / count.clamp(min=1)


def phda_draws(context: Context, step: int, places: Sequence[int], device: torch.device) -> Tensor:
    """Uniform numbers [B, 3] for the schedules that drop modalities at random."""
    rows = [torch.rand(3, generator=rng.generator(context.seed, step, p, "phda")) for p in places]
    return torch.stack(rows).to(device)
