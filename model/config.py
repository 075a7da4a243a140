"""Typed configuration of `model/`: one dataclass per section of a preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Variant = Literal["base", "whisper", "preview", "flash"]
Schedule = Literal["newest", "ones", "v1_drop", "allocation_a", "allocation_b", "allocation_c"]


@dataclass(frozen=True)
class AudioNetConfig:
    """How audio features become the tokens of the audio cross-attention.

    Fields that a variant does not use are ignored by it.

    Attributes:
        dim: channels A of one audio feature (Whisper-tiny 384, wav2vec2-base 768).
        tokens_per_frame: features per video frame, the paper's α (50 Hz at 25 fps: 2). `whisper` and `preview`.
        reduction: video frames per latent frame, the paper's r (Wan VAE: 4).
        overlap: the paper's e; a window is the centre feature ± (r + e). `whisper` and `preview`.
        hidden: width of the MLP (`whisper`) or of the window projector (`flash`).
        layers: encoder layers stacked in one feature. `flash`.
        window: video frames around a frame, odd. `flash`.
        tokens: tokens per latent frame. `flash`.
    """

    dim: int
    tokens_per_frame: int = 2
    reduction: int = 4
    overlap: int = 4
    hidden: int = 512
    layers: int = 12
    window: int = 5
    tokens: int = 32


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer; names follow the released ``config.json``.

    Attributes:
        variant: which audio path. `base` is Wan2.1-Fun-InP without audio; `whisper` is the paper's;
            `preview` and `flash` are the two released checkpoints.
        in_dim: channels into the patch embedding: out_dim noisy latents + mask + masked latents.
        patch_size: (t, h, w) of a patch, in latent cells.
        text_len: rows that the text is padded to, with zeros.
        image_tokens: rows of the image encoder (CLIP ViT-H/14 at 224 px: 257).
    """

    variant: Variant
    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int
    out_dim: int
    patch_size: tuple[int, int, int]
    freq_dim: int
    text_dim: int
    text_len: int
    image_dim: int
    image_tokens: int
    eps: float
    audio: AudioNetConfig


@dataclass(frozen=True)
class PhDAConfig:
    """Timestep phase-aware modality weights (Eq. 2); τ is the network's t, 1000 = pure noise.

    Attributes:
        schedule: `newest` is Eq. 2; `ones` the released behaviour; `v1_drop` the first paper's phase-specific drop;
            `allocation_a|b|c` the ablations of Table 2.
        sampled: read the weights as probabilities of keeping the modality, where the caller gives random draws.
        floor: weight below B1.
        text, image, audio: (B1, B2), or null for the constant 1.
        early: the early phase is τ ≥ early (`v1_drop` and the allocations).
        late: the late phase is τ < late.
    """

    schedule: Schedule
    sampled: bool
    floor: float
    text: tuple[float, float] | None
    image: tuple[float, float] | None
    audio: tuple[float, float] | None
    early: float
    late: float


@dataclass(frozen=True)
class ModelConfig:
    """All sections that `model/` reads."""

    transformer: TransformerConfig
    phda: PhDAConfig
