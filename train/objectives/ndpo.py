"""Negative DPO: push the model away from its own bad samples, anchored at the checkpoint that made them.

With ℓ the flow-matching error of a negative at the same (σ, ε) for model and reference, and
Δ = (ℓ_θ − ℓ_ref) / (ℓ_ref + δ), z = β (Δ − b):

    npo      (2/β) log(1 + e^{−z})           sign-fixed, reference-normalised Eq. 3; weight σ(−z) fades by itself
    kto      (4/β) σ(−z)                     saturates at both ends: robust against mislabelled negatives
    dpo      (2/β) log(1 + e^{−z}), z = β (Δ⁻ − Δ⁺)   the real video under the same conditions is the winner
    reflect  ‖M (u_θ − (u_ref + s (u_ref − v⁻)))‖²     negative guidance distilled; bounded by construction
    paper    −(1/β) log(1 + e^{−β ℓ})       Eq. 3 as printed; minimising it *raises* the negatives' likelihood

β = ln 19 / margin: at a relative increase of ``margin`` the push has fallen to 5 %. Every step also carries the
ordinary positives. Derivations and toy evidence: docs/training.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.errors import ConfigError
from model import flow
from train import draws, parallel
from train.assembly import Batch
from train.config import NegativeConfig
from train.inputs import Inputs, Keep, assemble
from train.log import sigma_bins
from train.method import Context, MicroStep, predict, squared_error
from train.negatives import Negative, frame_mask
from train.negatives import latents as read_latents
from train.objectives.sft import SFT
from train.reference import Cache, noise_of, sigma_of

_DELTA = 1e-4  # keeps the relative error finite where the reference is perfect
_MEMORY = 0.9  # of the running mean push weight that `weight_stop` looks at


def beta(margin: float) -> float:
    """β at which the push has fallen to 5 % of its start when a negative's loss has grown by ``margin`` (relative)."""
    return math.log(19.0) / margin


def relative_increase(loss: Tensor, reference: Tensor) -> Tensor:
    """Δ = (ℓ − ℓ_ref) / (ℓ_ref + δ), fp32 [B]; the gradient flows through ℓ alone."""
    reference = reference.detach().float()
    return (loss.float() - reference) / (reference + _DELTA)


def preference_loss(kind: str, z: Tensor, scale: float, smoothing: float = 0.0) -> Tensor:
    """Loss [B] of the kinds that look at z: `npo`, `dpo` and `kto`. Their gradients agree at z = 0."""
    if kind == "kto":
        return (4 / scale) * torch.sigmoid(-z)
    return (2 / scale) * ((1 - smoothing) * F.softplus(-z) + smoothing * F.softplus(z))


def paper_loss(loss: Tensor, scale: float) -> Tensor:
    """Eq. 3 as printed, with log π ≈ −β ℓ: minimising it lowers ℓ, so it raises what it should suppress. Ablation only."""
    return -F.softplus(-scale * loss.float()) / scale


def reflected(reference: Tensor, target: Tensor, strength: float) -> Tensor:
    """u_ref + s (u_ref − v⁻): the reference's velocity, reflected away from the negative's."""
    return reference + strength * (reference - target)


def check(cfg: NegativeConfig) -> None:
    """Raise ConfigError where the settings contradict each other."""
    needs = [n for n, on in (("kind=reflect", cfg.kind == "reflect"), ("path", cfg.path > 0)) if on]
    if needs and cfg.reference != "model":
        raise ConfigError(f"objective.negative.{needs[0]} needs the reference in memory; set reference=model.")
    if not 0 <= cfg.t_min < cfg.t_max <= 1:
        raise ConfigError(
            f"objective.negative: t_min {cfg.t_min} and t_max {cfg.t_max} must satisfy 0 <= min < max <= 1."
        )
    if cfg.margin <= 0:
        raise ConfigError("objective.negative.margin must be positive.")


class NDPO:
    """Positives by ``positives``, negatives from ``source``, whose rows are the negatives' conditions.

    Args:
        source: a loader over :func:`train.negatives.condition_index`, at the stage's own step.
        first: the stage's first global step; ``source`` counts from 0 there.
        cache: reference losses; or None with ``reference``, a frozen network.
        state: what :meth:`state` gave, when a stage is resumed.
    """

    def __init__(
        self,
        context: Context,
        positives: SFT,
        source: Iterator[Batch],
        negatives: Sequence[Negative],
        *,
        first: int,
        cache: Cache | None,
        reference: nn.Module | None,
        state: dict[str, float] | None = None,
    ) -> None:
        check(context.cfg.objective.negative)
        self.context, self.positives, self.source, self.first = context, positives, source, first
        self.cfg = context.cfg.objective.negative
        self.beta = beta(self.cfg.margin)
        self.negatives = {n.negative_id: n for n in negatives}
        self.cache, self.reference = cache, reference
        self._baseline = 0.0
        self._weight = float((state or {}).get("push_weight", 0.5))
        self._weights: list[Tensor] = []

    # ---- what the loop asks ---------------------------------------------------------------------------------------

    def micro_steps(self, step: int) -> Sequence[MicroStep]:
        """The positives of the step, then its negatives."""
        self._weights, self._baseline = [], 0.0
        if self.cfg.baseline_max > 0:
            shares = self._with_baseline(step)
        else:
            shares = list(self.positives.micro_steps(step))
        inputs, real = negative_inputs(self.context, next(self.source), self.negatives)
        size, total = self.context.cfg.optim.micro_batch, len(inputs)
        for i in range(0, total, size):
            shares.append(partial(self._share, step, inputs[i : i + size], real[i : i + size], total))
        return shares

    def stop_reason(self) -> str | None:
        """The push has died out: more steps would only train the positives."""
        if self._weight < self.cfg.weight_stop:
            return f"the mean push weight fell to {self._weight:.3f}"
        return None

    def state(self) -> dict[str, float]:
        """The running mean push weight, over the negatives of all ranks."""
        if self._weights:
            mean = parallel.mean(float(torch.cat(self._weights).mean()))
            self._weight, self._weights = _MEMORY * self._weight + (1 - _MEMORY) * mean, []
        return {"push_weight": self._weight}

    # ---- one step -------------------------------------------------------------------------------------------------

    def _with_baseline(self, step: int) -> list[MicroStep]:
        """Positives that also measure their drift from the reference: b of the negatives that follow."""
        inputs = self.positives.inputs(step)
        size, total = self.context.cfg.optim.micro_batch, len(inputs)
        drifts: list[Tensor] = []

        def share(part: Inputs) -> Tensor:
            moved = part.to(self.context.device)
            loss, x, sigma, target = self.positives.losses(step, moved)
            self.positives.record(moved, loss, sigma)
            known = squared_error(self._velocity_of_reference(moved, x, sigma), target, moved.generated)
            drifts.append(relative_increase(loss.detach(), known))
            mean = parallel.mean(float(torch.cat(drifts).mean()))
            self._baseline = min(max(mean, 0.0), self.cfg.baseline_max)
            return (loss * moved.weight).sum() / total

        return [partial(share, inputs[i : i + size]) for i in range(0, total, size)]

    def _share(self, step: int, inputs: Inputs, real: Tensor, total: int) -> Tensor:
        inputs, real = inputs.to(self.context.device), real.to(self.context.device)
        draw = self._draw(step, inputs)
        where = inputs.generated * issue_mask(inputs, self.negatives)
        error = Error(self.context, inputs, draw, where)
        prediction, loss = error.of(inputs.latents)
        u_ref = None if self.reference is None else error.of(inputs.latents, self.reference)
        known = self._known(inputs, draw, None if u_ref is None else u_ref[1], loss)
        z = self.beta * (relative_increase(loss, known) - self._baseline)
        if self.cfg.kind == "dpo":
            z = z - self.beta * self._winner(error, inputs, draw, real)
        if self.cfg.kind == "paper":
            value = paper_loss(loss, self.beta)
        elif self.cfg.kind == "reflect":
            assert u_ref is not None
            target = flow.velocity_target(inputs.latents, draw.noise)
            value = squared_error(prediction, reflected(u_ref[0], target, self.cfg.strength), where)
        else:
            value = preference_loss(self.cfg.kind, z, self.beta, self.cfg.smoothing)
        self._record(inputs, draw, loss, known, z)
        value = self.cfg.weight * value
        if self.cfg.path > 0 and u_ref is not None:
            value = value + self.cfg.path * squared_error(prediction, u_ref[0], where)
        return (value * inputs.weight).sum() / total

    def _draw(self, step: int, inputs: Inputs) -> Draw:
        """One of the cached (σ, ε) pairs; with the reference in memory, a fresh pair (its number is the step)."""
        shape = inputs.latents.shape[1:]
        low, high, seed, sigmas, noises, numbers = self.cfg.t_min, self.cfg.t_max, self.context.seed, [], [], []
        for name, place in zip(inputs.sample_ids, inputs.places, strict=True):
            u = draws.uniform(seed, step, place, "which draw")
            number, count = (step, 1) if self.cache is None else (int(u * self.cfg.draws), self.cfg.draws)
            sigmas.append(
                low + (high - low) * u if self.cache is None else sigma_of(name, number, count, low, high, seed)
            )
            noises.append(noise_of(name, number, shape, seed))
            numbers.append(number)
        device = inputs.latents.device
        return Draw(torch.tensor(sigmas, device=device), torch.stack(noises).to(device), tuple(numbers))

    def _known(self, inputs: Inputs, draw: Draw, in_memory: Tensor | None, loss: Tensor) -> Tensor:
        if in_memory is not None:
            return in_memory
        if self.cache is None:  # `paper` has no reference
            return loss.detach()
        return self.cache.negative(inputs.sample_ids, draw.numbers).to(loss.device)

    def _winner(self, error: Error, inputs: Inputs, draw: Draw, real: Tensor) -> Tensor:
        """Δ⁺ of the real videos under the negatives' conditions, at the same (σ, ε)."""
        _, loss = error.of(real)
        if self.reference is not None:
            return relative_increase(loss, error.of(real, self.reference)[1])
        assert self.cache is not None
        return relative_increase(loss, self.cache.positive(inputs.sample_ids, draw.numbers).to(loss.device))

    @torch.no_grad()
    def _velocity_of_reference(self, inputs: Inputs, x: Tensor, sigma: Tensor) -> Tensor:
        return predict(self.context, inputs, x, sigma, network=self.reference)

    def _record(self, inputs: Inputs, draw: Draw, loss: Tensor, known: Tensor, z: Tensor) -> None:
        """docs/training.md, section E.8: by issue and by bin of σ."""
        push = torch.sigmoid(-z.detach())
        self._weights.append(push)
        tally, issues = self.context.tally, [self.negatives[i].issue for i in inputs.sample_ids]
        bins = sigma_bins(draw.sigma, self.context.cfg.objective.t_bins)
        ratio = loss.detach() / (known + _DELTA)
        for name, value in (("ratio", ratio), ("push", push), ("z", z), ("extinct", (push < 0.05).float())):
            tally.add(f"negative/{name}", value)
            tally.add_by(f"negative/{name}", issues, value)
            tally.add_by(f"negative/{name}", bins, value)


@dataclass(frozen=True)
class Draw:
    """σ [B], ε [B, C, T, h, w] and their numbers in the cache."""

    sigma: Tensor
    noise: Tensor
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Error:
    """The flow-matching error of any video under fixed conditions, draws and positions."""

    context: Context
    inputs: Inputs
    draw: Draw
    where: Tensor

    def of(self, video: Tensor, frozen: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """(velocity, error [B]) of the trained network, or without gradient of ``frozen``."""
        x = flow.interpolate(video, self.draw.noise, self.draw.sigma)
        with torch.set_grad_enabled(frozen is None and torch.is_grad_enabled()):
            velocity = predict(self.context, self.inputs, x, self.draw.sigma, network=frozen)
        return velocity, squared_error(velocity, flow.velocity_target(video, self.draw.noise), self.where)


def negative_inputs(context: Context, batch: Batch, negatives: Mapping[str, Negative]) -> tuple[Inputs, Tensor]:
    """Inputs with the sampled videos as targets, and the real videos [B, C, T, h, w]. Nothing is dropped: guidance and
    PNG need the null branches untouched."""
    chosen = [negatives[i] for i in batch.sample_ids]
    inputs = assemble(
        batch,
        [Keep()] * len(chosen),
        context.prompts,
        context.cfg.tasks,
        text_len=context.text_len,
        audio=context.audio,
        tasks=[n.task for n in chosen],
        targets=torch.stack([read_latents(n) for n in chosen]),
    )
    return inputs, batch["latents"].float()


def issue_mask(inputs: Inputs, negatives: Mapping[str, Negative]) -> Tensor:
    """[B, 1, T, 1, 1]: the latent frames that the reviewers marked."""
    frames = inputs.latents.shape[2]
    rows = [frame_mask(negatives[i], frames) for i in inputs.sample_ids]
    return torch.stack(rows).view(len(rows), 1, frames, 1, 1).to(inputs.latents.device)


@torch.no_grad()
def build_cache(
    context: Context, source: Iterator[Batch], negatives: Sequence[Negative], reference: nn.Module
) -> Cache:
    """The reference's losses on every negative and its real video, at all its draws. ``source``: one pass."""
    cfg, by_id = context.cfg.objective.negative, {n.negative_id: n for n in negatives}
    rows: dict[tuple[str, int], tuple[float, float]] = {}
    for batch in source:
        inputs, real = negative_inputs(context, batch, by_id)
        inputs, real = inputs.to(context.device), real.to(context.device)
        where = inputs.generated * issue_mask(inputs, by_id)
        for number in range(cfg.draws):
            sigma = [sigma_of(i, number, cfg.draws, cfg.t_min, cfg.t_max, context.seed) for i in inputs.sample_ids]
            shape = inputs.latents.shape[1:]
            noise = torch.stack([noise_of(i, number, shape, context.seed) for i in inputs.sample_ids])
            draw = Draw(torch.tensor(sigma, device=real.device), noise.to(real.device), ())
            error = Error(context, inputs, draw, where)
            _, bad = error.of(inputs.latents, reference)
            good = error.of(real, reference)[1] if cfg.kind == "dpo" else torch.full_like(bad, torch.nan)
            for i, a, b in zip(inputs.sample_ids, bad.tolist(), good.tolist(), strict=True):
                rows[(i, number)] = (a, b)
    return Cache(rows)
