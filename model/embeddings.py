"""Embeddings of time, text and image, and the output head.

Time, modulation, norms and the head are computed in float32 whatever the parameters' dtype and autocast say: t has
more than eight significant bits, and small errors of the modulation repeat in every token (the released code casts to
bfloat16 here; original Wan does not).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear_fp32(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer in float32, outside autocast."""
    device = x.device.type
    known = torch.amp.is_autocast_available(device)  # the meta device has none
    with torch.autocast(device, enabled=False) if known else nullcontext():
        bias = None if layer.bias is None else layer.bias.float()
        return F.linear(x.float(), layer.weight.float(), bias)


def layer_norm_fp32(x: Tensor, eps: float, affine: nn.LayerNorm | None = None) -> Tensor:
    """LayerNorm over the last axis in float32, with the weights of ``affine`` or none. float32 result."""
    weight, bias = (None, None) if affine is None else (affine.weight.float(), affine.bias.float())
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps)


def sinusoid(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of timesteps [B] (0..1000, not rounded): cosines, then sines; base 10000. float32 [B, dim].

    Angles are computed in float64, as released.
    """
    half = dim // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half)
    angles = torch.outer(t.double(), frequency)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


class TimeMLP(nn.Sequential):
    """Sinusoid → e, float32 [B, dim]."""

    def __init__(self, freq_dim: int, dim: int) -> None:
        super().__init__(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.freq_dim = freq_dim

    def forward(self, t: Tensor) -> Tensor:
        first, act, last = self
        return linear_fp32(cast(nn.Linear, last), act(linear_fp32(cast(nn.Linear, first), sinusoid(t, self.freq_dim))))


class TimeProjection(nn.Sequential):
    """e → the six modulation vectors of every block, float32 [B, 6, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, e: Tensor) -> Tensor:
        act, layer = self
        return linear_fp32(cast(nn.Linear, layer), act(e)).unflatten(-1, (6, -1))


class TextMLP(nn.Sequential):
    """Text rows → model width, after padding with zeros to ``text_len`` rows.

    The padded rows become one repeated constant that is attended to: released behaviour, no padding mask.
    """

    def __init__(self, text_dim: int, dim: int, text_len: int) -> None:
        super().__init__(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.text_len = text_len

    def forward(self, text: Tensor) -> Tensor:
        """[B, L ≤ text_len, text_dim] → [B, text_len, dim]."""
        return super().forward(F.pad(text, (0, 0, 0, self.text_len - text.shape[1])))


def feature_mlp(in_dim: int, hidden: int, dim: int) -> nn.Sequential:
    """LayerNorm, linear, GELU, linear, LayerNorm: [..., in_dim] → [..., dim]; of image and of Whisper features."""
    return nn.Sequential(
        nn.LayerNorm(in_dim), nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, dim), nn.LayerNorm(dim)
    )


class ImageMLP(nn.Module):
    """Image features [B, tokens, image_dim] → [B, tokens, dim]."""

    def __init__(self, image_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = feature_mlp(image_dim, image_dim, dim)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image)


class Head(nn.Module):
    """Tokens → the velocity of their patches, float32 [B, N, pt·ph·pw·out_dim], modulated by e."""

    def __init__(self, dim: int, patch_values: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.head = nn.Linear(dim, patch_values)
        self.modulation = nn.Parameter(torch.empty(1, 2, dim))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = (self.modulation.float() + e[:, None]).unbind(1)
        return linear_fp32(self.head, modulate(layer_norm_fp32(x, self.eps), shift, scale))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift, with [B, dim] shift and scale over tokens [B, N, dim]."""
    return x * (1 + scale[:, None]) + shift[:, None]
