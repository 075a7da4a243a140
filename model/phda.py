"""Multi-Modal PhDA: how much each modality counts at timestep τ (Eq. 2 of the newest paper).

    W(c, τ) = 0.5                 τ < B1
            = m·τ + b        B1 ≤ τ < B2      continuous, so m = 0.5 / (B2 − B1) and b = 0.5 − m·B1
            = 1              B2 ≤ τ

τ is the network's t: 1000 is pure noise, where denoising starts ("early"), 0 is the clean video ("late"). It is not the
sampling step and not σ before the shift. The break points are read off Fig. 2; the text agrees with them: audio matters
initially, the image early and in the middle, the text throughout. W has no parameters; W ≡ 1 is what was released.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import PhDAConfig


class PhDAWeights(NamedTuple):
    """W(c, τ) per sample, each float32 [B]."""

    text: Tensor
    image: Tensor
    audio: Tensor


def weights(t: Tensor, cfg: PhDAConfig, draws: Tensor | None = None) -> PhDAWeights:
    """Modality weights at the network's timesteps ``t`` [B], 0..1000.

    Args:
        draws: uniform numbers in 0..1, [B, 3] (text, image, audio), in training. They decide which modalities
            ``v1_drop`` drops late, and, with ``cfg.sampled``, whether a modality is kept (with probability W).
            Without them, as in generation, the weights are deterministic.
    """
    tau = t.float()
    result = _SCHEDULES[cfg.schedule](tau, cfg, draws)
    if cfg.sampled and draws is not None:
        kept = draws < torch.stack(result, dim=-1)
        return PhDAWeights(*kept.float().unbind(-1))
    return result


def ones(t: Tensor) -> PhDAWeights:
    """W ≡ 1, the released behaviour."""
    one = torch.ones_like(t, dtype=torch.float32)
    return PhDAWeights(one, one, one)


def ramp(tau: Tensor, points: tuple[float, float] | None, floor: float) -> Tensor:
    """Eq. 2 for one modality; ``points`` = (B1, B2), None = the constant 1."""
    if points is None:
        return torch.ones_like(tau)
    first, second = points
    return floor + (1 - floor) * ((tau - first) / (second - first)).clamp(0, 1)


def _newest(tau: Tensor, cfg: PhDAConfig, draws: Tensor | None) -> PhDAWeights:
    return PhDAWeights(*(ramp(tau, points, cfg.floor) for points in (cfg.text, cfg.image, cfg.audio)))


def _ones(tau: Tensor, cfg: PhDAConfig, draws: Tensor | None) -> PhDAWeights:
    return ones(tau)


def _v1_drop(tau: Tensor, cfg: PhDAConfig, draws: Tensor | None) -> PhDAWeights:
    """The first paper's phase-specific drop: early text alone; middle all; late, one or two of the three dropped.

    Late, the modality with the smallest draw is dropped; the second smallest too when it is below one half,
    which for three uniform draws happens half of the time.
    """
    early, late = tau >= cfg.early, tau < cfg.late
    structure = (~early).float()
    result = torch.stack((torch.ones_like(tau), structure, structure), dim=-1)
    if draws is not None:
        ordered = draws.sort(dim=-1).values
        smallest, second = ordered[:, :1], ordered[:, 1:2]
        dropped = (draws <= smallest) | ((draws <= second) & (second < 0.5))
        result = torch.where(late[:, None] & dropped, 0.0, result)
    return PhDAWeights(*result.unbind(-1))


def _allocation_a(tau: Tensor, cfg: PhDAConfig, draws: Tensor | None) -> PhDAWeights:
    """Table 2, Modals Allocation A: no audio in the early phase."""
    w = _newest(tau, cfg, draws)
    return w._replace(audio=torch.where(tau >= cfg.early, 0.0, w.audio))


def _allocation_b(tau: Tensor, cfg: PhDAConfig, draws: Tensor | None) -> PhDAWeights:
    """Table 2, Modals Allocation B: no text in the early and middle phases."""
    w = _newest(tau, cfg, draws)
    return w._replace(text=torch.where(tau >= cfg.late, 0.0, w.text))


def _allocation_c(tau: Tensor, cfg: PhDAConfig, draws: Tensor | None) -> PhDAWeights:
    """Table 2, Modals Allocation C: no image in the early phase."""
    w = _newest(tau, cfg, draws)
    return w._replace(image=torch.where(tau >= cfg.early, 0.0, w.image))


_SCHEDULES: dict[str, Callable[[Tensor, PhDAConfig, Tensor | None], PhDAWeights]] = {
    "newest": _newest,
    "ones": _ones,
    "v1_drop": _v1_drop,
    "allocation_a": _allocation_a,
    "allocation_b": _allocation_b,
    "allocation_c": _allocation_c,
}
