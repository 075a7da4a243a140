"""Classifier-free guidance on text and audio, and the phase-aware negative prompts (PNG).

Three branches (preview): u = (negative text, silence), a = (text, silence), c = (text, sound), and
    v = u + g_text · (a − u) + g_audio · (c − a).
Two branches (flash): v = a + g_audio · (c − a).
The image and the mask are the same in all branches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from configs.errors import ConfigError
from model.config import GuidanceConfig


@dataclass(frozen=True)
class Scales:
    """Guidance of one step; ``push`` weighs the text guidance beyond 1 (PNG)."""

    text: float
    audio: float
    push: float = 1.0


def scales(step: int, steps: int, cfg: GuidanceConfig) -> Scales:
    """Guidance scales of a step; with ``dynamic`` they fall from g to g/2 over the first half (released formula)."""
    factor = dynamic_factor(step, steps) if cfg.dynamic else 1.0
    push = _phase(step, cfg)[1] if cfg.png == "guidance_scale" else 1.0
    return Scales(cfg.text * factor, cfg.audio * factor, push)


def dynamic_factor(step: int, steps: int) -> float:
    """1/2 + (1 − cos(π ((n − i)/n)⁵)) / 4: 1 at the first step, 1/2 in the later ones (preview)."""
    return 0.5 + (1 - math.cos(math.pi * ((steps - step) / steps) ** 5)) / 4


def combine(velocities: Sequence[Tensor], scale: Scales) -> Tensor:
    """Velocities of the branches, in order (u, a, c) or (a, c), → the guided velocity."""
    if len(velocities) == 2:
        silent, full = velocities
        return silent + scale.audio * (full - silent)
    negative, silent, full = velocities
    pushed = silent + (scale.text - 1) * scale.push * (silent - negative)
    return pushed + scale.audio * (full - silent)


def negative_text(step: int, cfg: GuidanceConfig, prompts: Mapping[str, Tensor]) -> Tensor:
    """The negative prompt's embedding [L, D] at a step.

    PNG weighs motion negatives early and detail negatives late. `embed_scale` multiplies the embedding by the phase's
    weight, as released; with ``compound`` the factors of the steps multiply up, which is what the released code does
    (1.5, 2.25, 3.375, …) although one factor per step was meant.

    Raises:
        ConfigError: a phase names a prompt that ``prompts`` lacks.
    """
    name, weight = _phase(step, cfg)
    if name not in prompts:
        raise ConfigError(f"guidance.phases names the prompt '{name}', which is not in guidance.prompts.")
    if cfg.png != "embed_scale":
        return prompts[name]
    if cfg.compound:
        weight = math.prod(_phase(i, cfg)[1] for i in range(step + 1))
    return prompts[name] * weight


def pad_together(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Zero rows so that texts [B, L, D] have one length (released padding behaviour)."""
    longest = max(a.shape[1], b.shape[1])
    return tuple(F.pad(x, (0, 0, 0, longest - x.shape[1])) for x in (a, b))  # type: ignore[return-value]


def expand(rows: Tensor, count: int) -> Tensor:
    """One text [L, D] for ``count`` samples, [B, L, D]."""
    return rows[None].expand(count, -1, -1)


def silence(audio: Tensor | None) -> Tensor | None:
    """The null sound of guidance: all zeros before the projection, as released."""
    return None if audio is None else torch.zeros_like(audio)


def _phase(step: int, cfg: GuidanceConfig) -> tuple[str, float]:
    """(prompt, weight) of a step."""
    if not cfg.phases:
        raise ConfigError("guidance.phases is empty; at least one phase is needed.")
    if cfg.png == "off":
        return cfg.phases[0].prompt, 1.0
    end = 0
    for phase in cfg.phases:
        if phase.steps is None or step < (end := end + phase.steps):
            return phase.prompt, phase.weight
    return cfg.phases[-1].prompt, 1.0
