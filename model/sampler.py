"""Sampling: guided velocities, one solver, and for long videos overlapping windows blended at every step (Eq. 4, 5).

Noise is drawn per sample on the CPU from its seed, so a sample does not depend on the device or on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from configs.errors import EchoForgeError
from configs.runtime import stopping
from model import guidance as guide
from model import phda as phases
from model.audio_variants import AUDIO_VARIANTS
from model.config import GuidanceConfig, LongVideoConfig, PhDAConfig, SamplerConfig
from model.flow import sigma_to_t
from model.schedulers import Solver
from model.teacache import TeaCache
from model.transformer import EchoMimicTransformer


@dataclass(frozen=True)
class SamplerInputs:
    """Conditions of B videos; the shape of the result follows from ``cond``.

    ``cond`` [B, 20, T, h, w]; ``text`` [B, L, D], zero past each length; ``negatives`` name → [L, D];
    ``image`` [B, tokens, D]; ``audio``, ``audio_valid``, ``audio_frame0`` as the variant takes them;
    ``face_mask`` bool [B, T, tokens of a frame] or None; ``tokens_per_frame`` of the audio rows.
    """

    cond: Tensor
    text: Tensor
    negatives: Mapping[str, Tensor]
    image: Tensor
    audio: Tensor | None = None
    audio_valid: Tensor | None = None
    audio_frame0: int = 0
    tokens_per_frame: int = 2
    face_mask: Tensor | None = None

    def to(self, device: torch.device | str) -> SamplerInputs:
        """The same on ``device``."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved, negatives={k: v.to(device) for k, v in self.negatives.items()})


@torch.inference_mode()
def sample(
    network: EchoMimicTransformer,
    inputs: SamplerInputs,
    cfg: SamplerConfig,
    guidance: GuidanceConfig,
    phda: PhDAConfig,
    *,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Latents, float32 [B, 16, T, h, w].

    Args:
        seeds: one per sample.
        autocast: compute type of the network; None leaves its own.
        progress: called with (steps done, steps in all).

    Raises:
        EchoForgeError: not one seed per sample.
    """
    inputs = inputs.to(device)
    count, _, frames, height, width = inputs.cond.shape
    if len(seeds) != count:
        raise EchoForgeError(f"{count} videos were asked for with {len(seeds)} seeds; give one seed for each.")
    channels = network.cfg.out_dim
    noise = [torch.randn(channels, frames, height, width, generator=torch.Generator().manual_seed(s)) for s in seeds]
    x = torch.stack(noise).to(device)
    network.eval()
    solver, cache, parts = Solver(cfg), TeaCache(cfg.teacache), windows(frames, cfg.long_video)
    context = torch.autocast(torch.device(device).type, autocast) if autocast else nullcontext()
    with context:
        for step in range(cfg.steps):
            stopping.check()
            t = sigma_to_t(solver.sigmas[step].float()).expand(count).to(device)
            run = _Step(network, cache, step, t, cfg, guidance, phda)
            if len(parts) == 1:
                velocity = run.guided(x, inputs, "")
            else:
                velocity = blend(
                    [run.guided(x[:, :, a:b], _window(inputs, a, b, cfg.long_video, network.cfg.variant), f"{a}:")
                     for a, b in parts], parts, frames, cfg.long_video.overlap)  # fmt: skip
            x = solver.step(step, velocity.float(), x)
            if progress:
                progress(step + 1, cfg.steps)
    return x


@dataclass(frozen=True)
class _Step:
    """One evaluation of the guided velocity."""

    network: EchoMimicTransformer
    cache: TeaCache
    number: int
    t: Tensor
    cfg: SamplerConfig
    guidance: GuidanceConfig
    phda: PhDAConfig

    def guided(self, x: Tensor, inputs: SamplerInputs, window: str) -> Tensor:
        """All branches of one window, combined."""
        texts, sounds = self._branches(inputs)
        if self.cfg.batched:
            sound = None if sounds[0] is None else torch.cat([s for s in sounds if s is not None])
            parts = self._velocity(x, inputs, torch.cat(texts), sound, len(texts), window).chunk(len(texts))
        else:
            parts = tuple(
                self._velocity(x, inputs, text, sound, 1, f"{window}{i}")
                for i, (text, sound) in enumerate(zip(texts, sounds, strict=True))
            )
        return guide.combine(parts, guide.scales(self.number, self.cfg.steps, self.guidance))

    def _branches(self, inputs: SamplerInputs) -> tuple[list[Tensor], list[Tensor | None]]:
        silent, full = guide.silence(inputs.audio), inputs.audio
        if self.guidance.branches == "two":
            return [inputs.text, inputs.text], [silent, full]
        negative = guide.expand(
            guide.negative_text(self.number, self.guidance, inputs.negatives).to(inputs.text), len(inputs.text)
        )
        negative, text = guide.pad_together(negative, inputs.text)
        return [negative, text, text], [silent, silent, full]

    def _velocity(self, x: Tensor, inputs: SamplerInputs, text: Any, audio: Any, copies: int, key: str) -> Tensor:
        def again(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.repeat(copies, *[1] * (value.dim() - 1))

        t = self.t.repeat(copies)
        return self.cache(
            self.network, key, self.number, again(x), t,  # type: ignore[arg-type]
            cond=again(inputs.cond), text=text, image=again(inputs.image), audio=audio,
            audio_frame0=inputs.audio_frame0, audio_valid=again(inputs.audio_valid),
            face_mask=again(inputs.face_mask), weights=phases.weights(t, self.phda),
        ).float()  # fmt: skip


def windows(frames: int, cfg: LongVideoConfig) -> list[tuple[int, int]]:
    """Half-open latent intervals that cover ``frames``; the last one ends with the video, so no frame is lost."""
    if frames <= cfg.window:
        return [(0, frames)]
    if not 0 < cfg.overlap < cfg.window:
        raise EchoForgeError("sampler.long_video.overlap must be at least 1 and less than the window.")
    starts = list(range(0, frames - cfg.window, cfg.window - cfg.overlap))
    return [(s, s + cfg.window) for s in (*starts, frames - cfg.window)]


def blend(velocities: Sequence[Tensor], parts: Sequence[tuple[int, int]], frames: int, overlap: int) -> Tensor:
    """Partition of unity over the windows: linear ramps in overlaps (Eq. 5), normalised.

    The ramps are f/(N−1) and 1 − f/(N−1), as released, not the printed f/N: a later window's first latent, which the
    network takes for the reference image, must have weight 0.

    Velocities are blended, not stepped latents: for Euler the same as the released code, and valid for any solver.
    """
    first = velocities[0]
    total = first.new_zeros(*first.shape[:2], frames, *first.shape[3:])
    weight = first.new_zeros(frames)
    for velocity, (start, end) in zip(velocities, parts, strict=True):
        ramp = first.new_ones(end - start)
        rise = torch.linspace(0, 1, overlap, device=first.device)
        if start > 0:
            ramp[:overlap] = rise
        if end < frames:
            ramp[-overlap:] = torch.minimum(ramp[-overlap:], 1 - rise)
        total[:, :, start:end] += velocity * ramp[:, None, None]
        weight[start:end] += ramp
    return total / weight[:, None, None]


def _window(inputs: SamplerInputs, start: int, end: int, cfg: LongVideoConfig, variant: str) -> SamplerInputs:
    """The conditions of latents [start, end): their own sound and face, and what is given in them.

    Where nothing is given (I2V past its first latent), anchor `reference` puts the reference image at the window's start.

    Latent 0 of a window stands for one video frame, wherever it lies: as released, video frame 4·start.
    """
    frames, first = 4 * (end - start - 1) + 1, 4 * start
    cond = inputs.cond[:, :, start:end]
    if cfg.anchor == "reference" and not cond[:, :4].any():  # lip-sync windows keep what is given in them
        cond = inputs.cond[:, :, : end - start]
    audio, frame0 = inputs.audio, inputs.audio_frame0
    if audio is not None and (path := AUDIO_VARIANTS.get(variant)):
        audio, frame0 = path.part(audio, frame0, first, frames, inputs.tokens_per_frame)
    mask = None if inputs.face_mask is None else inputs.face_mask[:, start:end]
    return replace(inputs, cond=cond, audio=audio, audio_frame0=frame0, face_mask=mask)
