"""CDCA, Coupled-Decoupled multi-modal Cross Attention (Eq. 1 of the newest paper).

    z_o = Σ_c W(c, τ) · CA_c(Q_shared, K(c), V(c)),   c ∈ {text, image, audio}

One query, three experts with their own keys and values; the weighted sum goes through one output projection. Text and
image are attended to by all tokens; audio by each latent frame on its own, and M_face limits where it acts.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from model.attention import RMSNorm, attention, few_keys_attention
from model.audio_projection import AudioTokens
from model.config import Variant
from model.phda import PhDAWeights


class Conditions(NamedTuple):
    """What every block attends to, already projected to the model's width.

    text [B, text_len, dim]; image [B, image_tokens, dim]; audio: tokens [B, T, K, dim] or None (no audio term at all);
    weights: W(c, τ), each float32 [B]; face_mask: M_face [B, T, tokens of a frame] in the compute dtype, or None.
    """

    text: Tensor
    image: Tensor
    audio: AudioTokens | None
    weights: PhDAWeights
    face_mask: Tensor | None


class CrossAttention(nn.Module):
    """CDCA with the key names of Wan2.1-Fun-InP (text, image) and of the released EchoMimicV3 (audio).

    `flash` has biases on the audio keys and values, and a ``q_audio`` that its released forward computes and throws
    away: the tensors are kept so that files load and save unchanged, and never used.
    """

    def __init__(self, dim: int, num_heads: int, eps: float, variant: Variant) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)
        self.k_img = nn.Linear(dim, dim)
        self.v_img = nn.Linear(dim, dim)
        self.norm_k_img = RMSNorm(dim, eps)
        if variant != "base":
            bias = variant == "flash"
            if variant == "flash":
                self.q_audio = nn.Linear(dim, dim).requires_grad_(False)
            self.k_audio = nn.Linear(dim, dim, bias=bias)
            self.v_audio = nn.Linear(dim, dim, bias=bias)
            self.norm_k_audio = RMSNorm(dim, eps)

    def forward(self, x: Tensor, given: Conditions) -> Tensor:
        """Tokens [B, N, dim] → [B, N, dim]."""
        q = self._heads(self.norm_q(self.q(x)))
        text = attention(q, self._heads(self.norm_k(self.k(given.text))), self._heads(self.v(given.text)))
        image = attention(
            q, self._heads(self.norm_k_img(self.k_img(given.image))), self._heads(self.v_img(given.image))
        )
        total = _weighted(text, given.weights.text) + _weighted(image, given.weights.image)
        if given.audio is not None:
            total = total + _weighted(self._audio(q, given.audio, given.face_mask), given.weights.audio)
        return self.o(total.flatten(-2))

    def _audio(self, q: Tensor, audio: AudioTokens, face_mask: Tensor | None) -> Tensor:
        """Frame-wise attention: latent frames are folded into the batch, so each sees its own K tokens only."""
        batch, frames = audio.tokens.shape[:2]
        tokens = audio.tokens.flatten(0, 1)
        k = self._heads(self.norm_k_audio(self.k_audio(tokens)))
        v = self._heads(self.v_audio(tokens))
        per_frame = q.unflatten(1, (frames, -1)).flatten(0, 1)
        if audio.valid is None:
            out = attention(per_frame, k, v)
        else:
            out = few_keys_attention(per_frame, k, v, audio.valid.flatten(0, 1))
        out = out.unflatten(0, (batch, frames)).flatten(1, 2)
        return out if face_mask is None else out * face_mask.flatten(1)[:, :, None, None]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))


def _weighted(out: Tensor, weight: Tensor) -> Tensor:
    return out * weight.to(out.dtype)[:, None, None, None]
