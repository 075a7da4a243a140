"""Stand-in for the Wan VAE without weights: an orthonormal 3-D DCT of 4×8×8 blocks that keeps 16 of 768 coefficients.

The same shape as the real thing (16 channels, strides 4×8×8, first frame alone), exactly invertible on what it keeps,
blurry but recognisable: 28 dB on 96×96 talking heads. It exists so that everything runs offline on a CPU; it is no
substitute for a learned codec.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from model.codecs.base import Codec

# Orthonormal colour axes: grey, red − blue, green − magenta. The first two carry nearly all of skin, hair and cloth.
COLOURS = (
    (1 / math.sqrt(3),) * 3,
    (1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)),
    (-1 / math.sqrt(6), 2 / math.sqrt(6), -1 / math.sqrt(6)),
)
# (colour, t, y, x) of the coefficients kept, and their standard deviation for pixels in −1..1: the 16 of most energy on
# 26 real clips at 96×96, in that order, but for the last, which gives motion a second step instead of a fourth of x.
KEPT = (
    ((0, 0, 0, 0), 12.83),
    ((1, 0, 0, 0), 5.33),
    ((0, 0, 0, 1), 2.99),
    ((0, 0, 1, 0), 2.54),
    ((2, 0, 0, 0), 1.95),
    ((0, 0, 0, 2), 1.47),
    ((0, 0, 1, 1), 1.27),
    ((0, 0, 2, 0), 1.26),
    ((1, 0, 0, 1), 0.93),
    ((0, 1, 0, 0), 0.83),
    ((0, 0, 0, 3), 0.82),
    ((0, 0, 1, 2), 0.79),
    ((0, 0, 2, 1), 0.76),
    ((1, 0, 1, 0), 0.76),
    ((0, 0, 3, 0), 0.72),
    ((0, 2, 0, 0), 0.48),
)
# Latents get standard deviation (std / std of the first) ** 0.25, so 1 down to 0.44: unit variance throughout would
# spend the network on faint detail and make what the sampler leaves of the noise visible there.
FLATTENING = 0.25


class DctCodec(Codec):
    """16 coefficients of a 4×8×8 DCT as latents. A stand-in: no weights, no learning. See the module's text."""

    name = "dct (stand-in without weights)"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        basis, scale = kept_basis()
        self._basis = basis.to(device)
        self._scale = scale.to(device)
        self.digest = hashlib.sha256(repr((COLOURS, KEPT, FLATTENING)).encode()).hexdigest()[:16]

    def encode(self, video: Tensor) -> Tensor:
        """See :meth:`Codec.encode`. The first latent frame is that of frame 0 shown four times."""
        self.check(video)
        video = video.to(self._basis.device, torch.float32)
        batch, _, frames, height, width = video.shape
        video = torch.cat([video[:, :, :1].expand(-1, -1, self.temporal, -1, -1), video[:, :, 1:]], dim=2)
        latent_frames = 1 + (frames - 1) // self.temporal
        blocks = video.view(batch, 3, latent_frames, self.temporal, height // 8, 8, width // 8, 8)
        coefficients = torch.einsum("bcTtHyWx,kctyx->bkTHW", blocks, self._basis)
        return coefficients / self._scale.view(-1, 1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """See :meth:`Codec.decode`. Of the first latent frame's four video frames, the mean."""
        coefficients = latents.to(self._basis.device, torch.float32) * self._scale.view(-1, 1, 1, 1)
        blocks = torch.einsum("bkTHW,kctyx->bcTtHyWx", coefficients, self._basis)
        batch, _, latent_frames, _, height, _, width, _ = blocks.shape
        video = blocks.reshape(batch, 3, self.temporal * latent_frames, 8 * height, 8 * width)
        first = video[:, :, : self.temporal].mean(dim=2, keepdim=True)
        return torch.cat([first, video[:, :, self.temporal :]], dim=2).clamp(-1, 1)


def kept_basis() -> tuple[Tensor, Tensor]:
    """The orthonormal basis blocks [16, 3, 4, 8, 8] (colour, t, y, x) and what one unit of each latent is worth [16]."""
    colour, time, space = torch.tensor(COLOURS), dct_matrix(4), dct_matrix(8)
    blocks = [torch.einsum("c,t,y,x->ctyx", colour[c], time[t], space[y], space[x]) for (c, t, y, x), _ in KEPT]
    deviation = torch.tensor([std for _, std in KEPT])
    return torch.stack(blocks), deviation * (deviation[0] / deviation) ** FLATTENING


def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II, float32 [size, size]: row k is the k-th cosine."""
    k = torch.arange(size, dtype=torch.float64)[:, None]
    x = torch.arange(size, dtype=torch.float64)[None] + 0.5
    matrix = torch.cos(math.pi * k * x / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.float()
