"""Rectified flow, as Wan 2.1 and the newest paper train it: x_σ = (1−σ)·x0 + σ·ε, v = ε − x0, t = 1000·σ.

σ = 1 (t = 1000) is pure noise. All in float32: bfloat16 has 8 bits for σ.
"""

from __future__ import annotations

from torch import Tensor

TIMESTEPS = 1000.0


def shift_sigma(u: Tensor, shift: float) -> Tensor:
    """σ = s·u / (1 + (s−1)·u): maps uniform u in 0..1 to σ; s > 1 moves mass towards noise, 5 is the released value."""
    return shift * u / (1 + (shift - 1) * u)


def sigma_to_t(sigma: Tensor) -> Tensor:
    """The network's t, 0..1000."""
    return TIMESTEPS * sigma


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_σ between clean latents and noise, both [B, …]; ``sigma`` [B]. float32."""
    s = _per_sample(sigma, x0)
    return (1 - s) * x0.float() + s * noise.float()


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """v = ε − x0, float32: what the network predicts, and dx/dσ."""
    return noise.float() - x0.float()


def clean_from_velocity(x: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """x0 = x_σ − σ·v: the clean latents that a velocity at x_σ [B, …] points to. float32."""
    return x.float() - _per_sample(sigma, x) * velocity.float()


def _per_sample(value: Tensor, like: Tensor) -> Tensor:
    return value.float().view(-1, *[1] * (like.dim() - 1))
