"""Typed configuration of `model/`: one dataclass per section of a preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.paths import FilePath

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
        positions: `sinusoidal` adds each token's place in its window; attention sees a set otherwise. The paper has none:
            the features of Whisper carry positions of their own. `whisper`.
    """

    dim: int
    tokens_per_frame: int = 2
    reduction: int = 4
    overlap: int = 4
    hidden: int = 512
    layers: int = 12
    window: int = 5
    tokens: int = 32
    positions: Literal["none", "sinusoidal"] = "none"


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
class CodecConfig:
    """What turns pixels into latents.

    Attributes:
        kind: `wan` is the Wan2.1 VAE; `dct` the weight-free stand-in of the same shape.
        path: `wan`: the original ``Wan2.1_VAE.pth``, a diffusers folder, or a hub id.
    """

    kind: Literal["dct", "wan"]
    path: FilePath | None


@dataclass(frozen=True)
class TextEncoderConfig:
    """What turns captions into text rows.

    Attributes:
        kind: `umt5` is the umT5-xxl encoder; `tiny` hashes words, without weights.
        path: `umt5`: the original ``models_t5_umt5-xxl-enc-bf16.pth``, a transformers folder, or a hub id.
        tokenizer: `umt5`: the folder (or its ``tokenizer.json``), or a hub id.
        dim: channels of a row.
        max_tokens: longer captions are cut, as the released pipeline does.
    """

    kind: Literal["tiny", "umt5"]
    path: FilePath | None
    tokenizer: FilePath | None
    dim: int
    max_tokens: int


@dataclass(frozen=True)
class ImageEncoderConfig:
    """What turns the reference image into image tokens.

    Attributes:
        kind: `clip` is the visual tower of CLIP ViT-H/14; `tiny` pools colour patches, without weights.
        path: `clip`: the original ``models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`` or an open_clip file.
        dim, tokens: of the result.
    """

    kind: Literal["tiny", "clip"]
    path: FilePath | None
    dim: int
    tokens: int


@dataclass(frozen=True)
class AudioEncoderConfig:
    """What turns sound into features.

    Attributes:
        kind: `whisper` is Whisper-tiny (the paper's); `wav2vec2` the released encoders; `tiny` cepstra, without weights.
        variant: which audio path of the transformer the features are for; also the name in shards.
        path: `whisper`: ``tiny.pt``; `wav2vec2`: a transformers folder, or a hub id.
        dim: channels of one feature (`whisper` with all layers: 1920).
        layers: `whisper`: its last layer, or all of them concatenated.
        loudness: LUFS that the sound is brought to before `wav2vec2`, or null to leave it.
        context_frames: video frames of sound kept on both sides of a clip; windows reach 6 back and 2 ahead.
    """

    kind: Literal["tiny", "whisper", "wav2vec2"]
    variant: Literal["whisper", "preview", "flash"]
    path: FilePath | None
    dim: int
    layers: Literal["last", "all"]
    loudness: float | None
    context_frames: int


@dataclass(frozen=True)
class TeaCacheConfig:
    """Skipping of forwards whose time embedding has hardly moved.

    Attributes:
        threshold: accumulated rescaled distance below which a step reuses the last residual; 0 = off.
        warmup: steps at the start that are always computed.
        coefficients: of the rescaling polynomial, highest power first.
    """

    threshold: float
    warmup: int
    coefficients: tuple[float, ...]


@dataclass(frozen=True)
class LongVideoConfig:
    """Videos longer than one window: overlapping windows are denoised together (Eq. 4, 5).

    Attributes:
        window: latent frames of one window.
        overlap: latent frames that neighbouring windows share, N of Eq. 5.
        anchor: condition of later windows: `reference` = the clip's first frame, as released; `none` = nothing given.
    """

    window: int
    overlap: int
    anchor: Literal["reference", "none"]


@dataclass(frozen=True)
class SamplerConfig:
    """How the flow is integrated from noise to latents.

    Attributes:
        scheduler: `euler`, `unipc` (order 2) or `dpmpp` (2M).
        steps: network evaluations per guidance branch.
        shift: of σ, s·u / (1 + (s−1)·u).
        batched: evaluate the guidance branches in one forward (faster) or one by one (less memory).
    """

    scheduler: Literal["euler", "unipc", "dpmpp"]
    steps: int
    shift: float
    batched: bool
    teacache: TeaCacheConfig
    long_video: LongVideoConfig


@dataclass(frozen=True)
class NegativePhase:
    """One phase of the negative prompt.

    Attributes:
        prompt: name of the negative prompt, a key of ``prompts``.
        steps: how many steps it lasts; null = to the end.
        weight: of the negative prompt in this phase; 1 = plain guidance.
    """

    prompt: str
    steps: int | None
    weight: float


@dataclass(frozen=True)
class GuidanceConfig:
    """Text and audio guidance, and the phase-aware negative prompts (PNG).

    Attributes:
        text, audio: guidance scales.
        branches: `three` = (negative, silent), (text, silent), (text, audio), as preview; `two` = the last two, as flash.
        dynamic: let the scales fall from their value to half of it over the first steps.
        png: `guidance_scale` weighs the push away from the negative prompt; `embed_scale` scales the prompt's
            embedding, as released; `off`.
        compound: `embed_scale`: each step's factor multiplies the last one's, the released behaviour.
        phases: in order; `off` uses the first one's prompt.
        prompts: texts of the negative prompts.
    """

    text: float
    audio: float
    branches: Literal["three", "two"]
    dynamic: bool
    png: Literal["off", "guidance_scale", "embed_scale"]
    compound: bool
    phases: tuple[NegativePhase, ...]
    prompts: dict[str, str]


@dataclass(frozen=True)
class ModelConfig:
    """All sections that `model/` reads."""

    transformer: TransformerConfig
    phda: PhDAConfig
    codec: CodecConfig
    text_encoder: TextEncoderConfig
    image_encoder: ImageEncoderConfig
    audio_encoder: AudioEncoderConfig
    sampler: SamplerConfig
    guidance: GuidanceConfig
