"""Supervised fine-tuning: flow matching on every position of the latents.

    loss = E ‖u_θ(x_σ, t, c) − (ε − x0)‖²,   x_σ = (1−σ) x0 + σ ε

Given positions count too, as Wan2.1-Fun-InP was trained (VideoX-Fun): a sampler starts from noise everywhere, so the
network must also know how to arrive at what it was given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from configs.errors import EchoForgeError
from model import flow
from train import rng
from train.data.batch import Batch
from train.data.inputs import Inputs, assemble, keep_of
from train.log import sigma_bins
from train.objectives.base import Context, MicroStep, Setup, phda_draws, predict, squared_error


class SFT:
    """Flow matching on the batches of ``source``, which must be at the step that is asked for."""

    def __init__(self, context: Context, source: Iterator[Batch]) -> None:
        self.context, self.source = context, source

    def micro_steps(self, step: int) -> Sequence[MicroStep]:
        """One forward per ``micro_batch`` samples of this rank's share."""
        inputs = self.inputs(step)
        size = self.context.cfg.optim.micro_batch
        return [partial(self._share, step, inputs[i : i + size], len(inputs)) for i in range(0, len(inputs), size)]

    def stop_reason(self) -> str | None:
        """Plain training runs to the end of its stage."""
        return None

    def state(self) -> dict[str, float]:
        """Nothing: every draw is a function of the step."""
        return {}

    def inputs(self, step: int) -> Inputs:
        """This rank's share of the global batch of ``step``, on the CPU."""
        batch = next(self.source)
        if batch.step != step:
            raise EchoForgeError(f"the loader is at step {batch.step}, training at {step}: seek it before a stage.")
        keeps = [keep_of(self.context.seed, step, place, self.context.cfg.tasks) for place in batch.places]
        return assemble(
            batch,
            keeps,
            self.context.prompts,
            self.context.cfg.tasks,
            text_len=self.context.text_len,
            variant=self.context.variant,
        )

    def losses(self, step: int, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(loss [B], x_σ, σ [B], velocity target) of a micro-batch on the device."""
        context = self.context
        noise, sigma = draw(context, step, inputs)
        x = flow.interpolate(inputs.latents, noise, sigma)
        target = flow.velocity_target(inputs.latents, noise)
        dropped = phda_draws(context, step, inputs.places, x.device)
        prediction = predict(context, inputs, x, sigma, phda_draws=dropped)
        return squared_error(prediction, target, torch.ones_like(inputs.generated)), x, sigma, target

    def record(self, inputs: Inputs, loss: Tensor, sigma: Tensor) -> None:
        """Count the losses by task and by bin of sigma."""
        tally = self.context.tally
        tally.add("loss", loss)
        tally.add_by("loss", inputs.tasks, loss)
        tally.add_by("loss", sigma_bins(sigma, self.context.cfg.objective.t_bins), loss)

    def _share(self, step: int, inputs: Inputs, total: int) -> Tensor:
        inputs = inputs.to(self.context.device)
        loss, _, sigma, _ = self.losses(step, inputs)
        self.record(inputs, loss, sigma)
        return (loss * inputs.weight).sum() / total


@contextmanager
def build(setup: Setup) -> Iterator[SFT]:
    """The objective of an `sft` stage."""
    yield SFT(setup.context, setup.positives)


def draw(context: Context, step: int, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Noise [B, C, T, h, w] and σ [B] of the places of a micro-batch; σ stratified over the global batch."""
    u = [rng.stratified(p, context.global_batch, context.seed, step) for p in inputs.places]
    sigma = flow.shift_sigma(torch.tensor(u, dtype=torch.float32), context.cfg.objective.shift)
    shape = inputs.latents.shape[1:]
    noise = torch.stack([rng.noise(shape, context.seed, step, p, "noise") for p in inputs.places])
    return noise.to(inputs.latents.device), sigma.to(inputs.latents.device)
