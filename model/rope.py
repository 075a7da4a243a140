"""Rotary position embedding over (t, h, w), in float32 and without complex numbers.

Su et al. 2021, as Wan 2.1 splits it: of d/2 pairs of adjacent channels, d/6 turn with the column, d/6 with the row and
the rest with the latent frame. RIFLEx (Zhao et al. 2025) slows one temporal frequency for videos longer than training.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

THETA = 10_000.0


class Riflex(NamedTuple):
    """RIFLEx: frequency number ``k`` (counted from 1) is replaced so that ``length`` latent frames are 0.9 of a turn,
    and then divided by ``scale`` (the released scripts' value; 1 is the method as published)."""

    length: int
    k: int = 6
    scale: float = 4.886


class Rotation(NamedTuple):
    """cos and sin of every token's angles, float32 [N, 1, d/2]; the middle axis spans the heads."""

    cos: Tensor
    sin: Tensor


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that turn with t, h and w. Head 128: 44, 42, 42."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def frequencies(dim: int) -> Tensor:
    """θ^(−2i/dim) for i < dim/2, float64, radians per position."""
    return THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def rotation(
    grid: tuple[int, int, int], head_dim: int, device: torch.device | str, riflex: Riflex | None = None
) -> Rotation:
    """Angles of a token grid (T, h, w), tokens in (t, h, w) order, positions from 0 on every axis.

    Frequencies are float64 until the cosine is taken: float32 products of large positions lose digits.
    """
    dim_t, dim_h, dim_w = axis_dims(head_dim)
    freq_t = frequencies(dim_t)
    if riflex is not None:
        freq_t[riflex.k - 1] = 0.9 * 2 * torch.pi / riflex.length / riflex.scale
    t, h, w = grid
    parts = [
        torch.outer(torch.arange(n, dtype=torch.float64), freq)
        for n, freq in ((t, freq_t), (h, frequencies(dim_h)), (w, frequencies(dim_w)))
    ]
    angles = torch.cat(
        [
            parts[0].view(t, 1, 1, -1).expand(t, h, w, -1),
            parts[1].view(1, h, 1, -1).expand(t, h, w, -1),
            parts[2].view(1, 1, w, -1).expand(t, h, w, -1),
        ],
        dim=-1,
    ).reshape(t * h * w, 1, head_dim // 2)
    return Rotation(angles.cos().float().to(device), angles.sin().float().to(device))


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Turn adjacent channel pairs of ``x`` [B, N, heads, d]; computed in float32, returned in x's dtype."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack((even * turn.cos - odd * turn.sin, even * turn.sin + odd * turn.cos), dim=-1)
    return pairs.flatten(-2).to(x.dtype)
