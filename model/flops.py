"""How much work one forward is: a closed form, and torch's own counter as its witness.

A multiply-add is two operations. Only matrix products and convolutions count; norms, activations and the rotation do
not. The flash variant's dead ``q_audio`` is not computed here and not counted (released code spends 2·N·D² a block).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from model.audio_variants import AUDIO_VARIANTS
from model.audio_windows import video_frames
from model.config import TransformerConfig
from model.transformer import EchoMimicTransformer


@dataclass(frozen=True)
class Flops:
    """Operations of one forward at batch 1, by part."""

    self_attention: int  # q·kᵀ and the product with v
    projections: int  # q, k, v, o of the self-attention
    cross_attention: int
    feed_forward: int
    embeddings: int  # patches, time, text, image, audio projection, head

    @property
    def total(self) -> int:
        """All parts together."""
        parts = (self.self_attention, self.projections, self.cross_attention, self.feed_forward, self.embeddings)
        return sum(parts)


def closed_form(cfg: TransformerConfig, latent: tuple[int, int, int]) -> Flops:
    """Operations for latents of size (T, h, w), text padded to ``text_len``, audio present unless `base`."""
    frames = latent[0]
    grid = [size // patch for size, patch in zip(latent, cfg.patch_size, strict=True)]
    n, d, layers = math.prod(grid), cfg.dim, cfg.num_layers
    context = cfg.text_len + cfg.image_tokens
    cross = 4 * n * d**2 + 4 * context * d**2 + 4 * n * context * d
    if cfg.variant != "base":
        keys = AUDIO_VARIANTS[cfg.variant].tokens(cfg.audio)
        cross += 4 * frames * keys * d**2 + 4 * n * keys * d
    return Flops(
        self_attention=layers * 4 * n**2 * d,
        projections=layers * 8 * n * d**2,
        cross_attention=layers * cross,
        feed_forward=layers * 4 * n * d * cfg.ffn_dim,
        embeddings=_embeddings(cfg, n, frames),
    )


def counted(cfg: TransformerConfig, latent: tuple[int, int, int]) -> int:
    """Operations of one forward by ``FlopCounterMode``, on the meta device: nothing is computed or allocated."""
    frames, height, width = latent
    with torch.device("meta"):
        model = EchoMimicTransformer(cfg)
        inputs = {
            "cond": torch.empty(1, cfg.in_dim - cfg.out_dim, *latent),
            "text": torch.empty(1, cfg.text_len, cfg.text_dim),
            "image": torch.empty(1, cfg.image_tokens, cfg.image_dim),
        }
        if cfg.variant != "base":
            inputs["audio"] = torch.empty(1, *AUDIO_VARIANTS[cfg.variant].shape(cfg.audio, frames))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, cfg.out_dim, frames, height, width), torch.empty(1), **inputs)
    return counter.get_total_flops()


def _embeddings(cfg: TransformerConfig, n: int, frames: int) -> int:
    d, audio = cfg.dim, cfg.audio
    patch = math.prod(cfg.patch_size)
    total = 2 * n * d * patch * (cfg.in_dim + cfg.out_dim)
    total += 2 * (cfg.freq_dim * d + d * d + 6 * d * d)
    total += 2 * cfg.text_len * (cfg.text_dim * d + d * d)
    total += 2 * cfg.image_tokens * (cfg.image_dim**2 + cfg.image_dim * d)
    rows = audio.tokens_per_frame * video_frames(frames, audio.reduction)
    if cfg.variant == "preview":
        total += 2 * rows * audio.dim * d
    elif cfg.variant == "whisper":
        total += 2 * rows * (audio.dim * audio.hidden + audio.hidden * d)
    elif cfg.variant == "flash":
        slots = audio.window + (frames - 1) * (audio.window + audio.reduction - 1)
        total += 2 * slots * audio.layers * audio.dim * audio.hidden
        total += 2 * frames * (audio.hidden**2 + audio.hidden * audio.tokens * d)
    return total
