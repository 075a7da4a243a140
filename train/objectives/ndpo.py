"""Negative DPO: push the model away from its own bad samples, anchored at the checkpoint that made them.

With ℓ the flow-matching error of a negative at the same (σ, ε) for model and reference, and
Δ = (ℓ_θ − ℓ_ref) / (ℓ_ref + δ), z = β (Δ − b):

    npo      (2/β) log(1 + e^{−z})           sign-fixed, reference-normalised Eq. 3; weight σ(−z) fades by itself
    kto      (4/β) σ(−z)                     saturates at both ends: robust against mislabelled negatives
    dpo      (2/β) log(1 + e^{−z}), z = β (Δ⁻ − Δ⁺)   the real video under the same conditions is the winner
    reflect  ‖M (u_θ − (u_ref + s (u_ref − v⁻)))‖²     negative guidance distilled; bounded by construction
    paper    −(1/β) log(1 + e^{−β ℓ})       Eq. 3 as printed; minimising it *raises* the negatives' likelihood

β = ln 19 / margin: at a relative increase of ``margin`` the push has fallen to 5 %. Every step also carries the
ordinary positives.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs import strict
from configs.errors import ConfigError
from model import flow
from model.checkpoint import load_into, load_weights
from model.transformer import EchoMimicTransformer
from train import parallel
from train.checkpoints import loading
from train.config import NegativeConfig
from train.data import negatives as store
from train.data.inputs import Inputs, Keep, assemble
from train.data.loader import Loader
from train.log import sigma_bins
from train.objectives import reference
from train.objectives.base import Context, MicroStep, Setup, predict, squared_error
from train.objectives.sft import SFT

_DELTA = 1e-4  # keeps the relative error finite where the reference is perfect
_WEIGHT_MEMORY = 0.9  # of the running mean push weight that `weight_stop` looks at


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
        cache: losses of the reference at fixed draws; or
        network: the reference itself, frozen (needed by `reflect` and by the path term).
        state: from :meth:`state`.
    """

    def __init__(
        self,
        context: Context,
        positives: SFT,
        source: Loader,
        negatives: Sequence[store.Negative],
        *,
        cache: reference.Cache | None = None,
        network: nn.Module | None = None,
        state: dict[str, float] | None = None,
    ) -> None:
        self.cfg = context.cfg.objective.negative
        check(self.cfg)
        self.context, self.positives, self.source = context, positives, source
        self.beta = beta(self.cfg.margin)
        self.negatives = {n.negative_id: n for n in negatives}
        self.cache, self.reference = cache, network
        self._weight = float((state or {}).get("push_weight", 0.5))
        self._pushes: list[Tensor] = []

    def micro_steps(self, step: int) -> Sequence[MicroStep]:
        """The positives of the step, then its negatives."""
        shares = list(self.positives.micro_steps(step))
        inputs = negative_inputs(self.context, self.source, self.negatives)
        size = self.context.cfg.optim.micro_batch
        return shares + [
            partial(self._share, step, inputs[i : i + size], len(inputs)) for i in range(0, len(inputs), size)
        ]

    def stop_reason(self) -> str | None:
        """The push has died out: more steps would only train the positives."""
        self._settle()
        if self._weight < self.cfg.weight_stop:
            return f"the mean push weight fell to {self._weight:.3f}"
        return None

    def state(self) -> dict[str, float]:
        """The running mean push weight."""
        self._settle()
        return {"push_weight": self._weight}

    def _settle(self) -> None:
        """Fold the pushes of the last step into the running mean, the same on all ranks."""
        if self._pushes:
            now = parallel.mean(float(torch.cat(self._pushes).mean()))
            self._weight = _WEIGHT_MEMORY * self._weight + (1 - _WEIGHT_MEMORY) * now
            self._pushes = []

    def _share(self, step: int, inputs: Inputs, total: int) -> Tensor:
        inputs = inputs.to(self.context.device)
        number = [step % self.cfg.draws if self.cache else step] * len(inputs)
        sigma, noise = draw(self.context, inputs, number)
        x, target = flow.interpolate(inputs.latents, noise, sigma), flow.velocity_target(inputs.latents, noise)
        where = bad_part(inputs, self.negatives)
        prediction = predict(self.context, inputs, x, sigma)
        loss = squared_error(prediction, target, where)
        u_ref = self._reference(inputs, x, sigma)
        if self.cfg.kind == "reflect":
            assert u_ref is not None
            value = squared_error(prediction, reflected(u_ref, target, self.cfg.strength), where)
            self._record(inputs, loss, squared_error(u_ref, target, where), None, sigma)
        elif self.cfg.kind == "paper":
            value = paper_loss(loss, self.beta)
            self._record(inputs, loss, loss.detach(), None, sigma)
        else:
            known = self.cache.negative(inputs.sample_ids, number).to(loss.device) if self.cache else None
            known = squared_error(_given(u_ref), target, where) if known is None else known
            z = self.beta * relative_increase(loss, known)
            if self.cfg.kind == "dpo":
                z = z - self.beta * self._winner(inputs, number, sigma, noise, where)
            value = preference_loss(self.cfg.kind, z, self.beta, self.cfg.smoothing)
            self._record(inputs, loss, known, z, sigma)
        if self.cfg.path > 0:
            value = value + self.cfg.path / self.cfg.weight * squared_error(prediction, _given(u_ref), where)
        return self.cfg.weight * (value * inputs.weight).sum() / total

    @torch.no_grad()
    def _reference(self, inputs: Inputs, x: Tensor, sigma: Tensor) -> Tensor | None:
        return None if self.reference is None else predict(self.context, inputs, x, sigma, network=self.reference)

    def _winner(self, inputs: Inputs, number: list[int], sigma: Tensor, noise: Tensor, where: Tensor) -> Tensor:
        """Δ⁺ of the real videos under the negatives' conditions, at the same (σ, ε)."""
        x, target = flow.interpolate(inputs.real, noise, sigma), flow.velocity_target(inputs.real, noise)
        loss = squared_error(predict(self.context, inputs, x, sigma), target, where)
        if self.cache:
            return relative_increase(loss, self.cache.positive(inputs.sample_ids, number).to(loss.device))
        return relative_increase(loss, squared_error(_given(self._reference(inputs, x, sigma)), target, where))

    def _record(self, inputs: Inputs, loss: Tensor, known: Tensor, z: Tensor | None, sigma: Tensor) -> None:
        tally, loss = self.context.tally, loss.detach()
        tally.add("negative/loss", loss)
        tally.add("negative/reference", known)
        issues = [self.negatives[i].issue for i in inputs.sample_ids]
        delta = relative_increase(loss, known)
        tally.add("negative/increase", delta)
        tally.add_by("negative/increase", issues, delta)
        tally.add_by("negative/increase", sigma_bins(sigma, self.context.cfg.objective.t_bins), delta)
        if z is not None:
            push = torch.sigmoid(-z.detach())
            tally.add("negative/push", push)
            self._pushes.append(push.cpu())


@contextmanager
def build(setup: Setup) -> Iterator[NDPO]:
    """The objective of an `ndpo` stage; its reference is the checkpoint that made the negatives.

    Raises:
        EchoForgeError: no negative is left, their conditions are gone, or the reference cannot be read.
    """
    context, stage = setup.context, setup.stage
    assert stage.source is not None
    chosen = store.read(setup.run, stage.source, stage.cfg.issues, accept_flags=setup.accept_flags)
    loader, tasks = context.cfg.loader, sorted({n.task for n in chosen})
    index = store.condition_index(setup.dataset, loader, chosen)
    source = partial(Loader, setup.dataset, loader, seed=context.seed, tasks=tasks, index=index)
    cache, network = _build_reference(setup, source, {n.negative_id: n for n in chosen})
    size = context.cfg.objective.negative.batch_size
    with source(global_batch=size, rank=setup.world.rank, world=setup.world.size) as stream:
        stream.seek(stream.order.position_of(setup.progress.step - stage.first))
        positives = SFT(context, setup.positives)
        yield NDPO(context, positives, stream, chosen, cache=cache, network=network, state=setup.progress.method)


def _build_reference(
    setup: Setup, source: Callable[..., Loader], negatives: dict[str, store.Negative]
) -> tuple[reference.Cache | None, nn.Module | None]:
    """The reference's losses at fixed draws, or the network itself."""
    context, origin = setup.context, setup.reference
    cfg = context.cfg.objective
    assert origin is not None

    def network() -> nn.Module:
        built = EchoMimicTransformer(setup.transformer)
        exported = loading.exported(origin.checkpoint, origin.weights) or origin.checkpoint
        load_into(built, load_weights(exported), source=str(origin.checkpoint))
        return frozen_copy(built.to(context.device))

    if cfg.negative.reference == "model":
        return None, network()
    key = strict.digest([loading.digest(origin.checkpoint, origin.weights), cfg.negative.draws, cfg.negative.t_min,
                         cfg.negative.t_max, cfg.shift,
                         sorted((name, *(n.frames or ())) for name, n in negatives.items())])  # fmt: skip
    table = store.folder(setup.run, str(setup.stage.source)) / store.CACHE_FOLDER / f"{key}.parquet"

    def compute() -> None:
        if not table.is_file():
            with source(global_batch=1, once=True) as once:
                cache_losses(table, context, once, negatives, network())

    parallel.on_main(compute, "computing the reference's losses")
    return reference.read(table), None


def negative_inputs(context: Context, source: Loader, negatives: dict[str, store.Negative]) -> Inputs:
    """The next negatives with the conditions that they were generated under; nothing is dropped, so that the null
    branches that guidance and PNG need are left alone."""
    batch = next(source)
    chosen = [negatives[i] for i in batch.sample_ids]
    return assemble(
        batch,
        [Keep()] * len(chosen),
        context.prompts,
        context.cfg.tasks,
        text_len=context.text_len,
        variant=context.variant,
        tasks=[n.task for n in chosen],
        targets=torch.stack([store.latents(n, batch["latents"][k].shape) for k, n in enumerate(chosen)]),
    )


def draw(context: Context, inputs: Inputs, number: Sequence[int]) -> tuple[Tensor, Tensor]:
    """σ [B] and ε [B, C, T, h, w] of the given draw of each negative."""
    cfg = context.cfg.objective
    pairs = [
        reference.draw(name, k, cfg.negative.draws, inputs.latents.shape[1:], cfg.shift, cfg.negative)
        for name, k in zip(inputs.sample_ids, number, strict=True)
    ]
    device = inputs.latents.device
    return torch.tensor([s for s, _ in pairs], device=device), torch.stack([e for _, e in pairs]).to(device)


def bad_part(inputs: Inputs, negatives: dict[str, store.Negative]) -> Tensor:
    """Where a negative is bad, [B, 1, T, h, w]: generated positions in the frames that reviewers named."""
    frames = inputs.latents.shape[2]
    named = torch.stack([store.frame_mask(negatives[i], frames) for i in inputs.sample_ids])
    return inputs.generated * named[:, None, :, None, None].to(inputs.generated)


def cache_losses(
    path: Path, context: Context, source: Loader, negatives: dict[str, store.Negative], network: nn.Module
) -> None:
    """Write the reference's losses at every fixed draw of every negative; ``source`` passes over them once."""
    held: dict[str, Inputs] = {}

    def batches() -> list[list[str]]:
        ids = []
        for _ in range(len(source)):
            inputs = negative_inputs(context, source, negatives)
            keep = [i for i, w in enumerate(inputs.weight.tolist()) if w > 0 or inputs.sample_ids[i] not in held]
            held.update({inputs.sample_ids[i]: inputs[i : i + 1] for i in keep})
        ids += [[name] for name in held]
        return ids

    @torch.no_grad()
    def losses(ids: Sequence[str], number: int) -> reference.Losses:
        inputs = held[ids[0]].to(context.device)
        sigma, noise = draw(context, inputs, [number])
        where = bad_part(inputs, negatives)
        results = []
        for video in (inputs.latents, inputs.real):
            x, target = flow.interpolate(video, noise, sigma), flow.velocity_target(video, noise)
            results.append(squared_error(predict(context, inputs, x, sigma, network=network), target, where).cpu())
        return results[0], results[1]

    reference.write(path, batches(), context.cfg.objective.negative.draws, losses)


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy that does not learn."""
    return copy.deepcopy(network).requires_grad_(False).eval()


def _given(velocity: Tensor | None) -> Tensor:
    assert velocity is not None  # `check` has refused settings without a reference
    return velocity
