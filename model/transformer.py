"""The EchoMimicV3 transformer: Wan2.1-Fun-InP with an audio expert in every cross-attention.

Parameter names and shapes are those of Wan2.1-Fun-InP and of the released EchoMimicV3 files (`whisper` adds
``audio_proj.*`` and names its experts as the preview does). Written for one device: checkpointing, compilation of the
blocks and sharding are applied from outside.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from configs.errors import EchoForgeError
from model.attention import RMSNorm, SelfAttention
from model.audio_projection import AudioTokens, FlashProjection, PreviewProjection, WhisperProjection
from model.config import TransformerConfig
from model.cross_attention import Conditions, CrossAttention
from model.embeddings import Head, ImageMLP, TextMLP, TimeMLP, TimeProjection, layer_norm_fp32, modulate
from model.phda import PhDAWeights, ones
from model.rope import Riflex, Rotation, rotation

PROJECTIONS = {"whisper": "audio_proj", "preview": "audio2token", "flash": "audio_injection"}
"""Name of each variant's projection from audio features to tokens."""


class Block(nn.Module):
    """Self-attention and feed-forward, both shifted, scaled and gated by time; cross-attention, by nothing."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.eps = cfg.eps
        self.self_attn = SelfAttention(cfg.dim, cfg.num_heads, cfg.eps)
        self.norm3 = nn.LayerNorm(cfg.dim, eps=cfg.eps)
        self.cross_attn = CrossAttention(cfg.dim, cfg.num_heads, cfg.eps, cfg.variant)
        self.ffn = nn.Sequential(
            nn.Linear(cfg.dim, cfg.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(cfg.ffn_dim, cfg.dim)
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, cfg.dim))

    def forward(self, x: Tensor, e0: Tensor, turn: Rotation, given: Conditions) -> Tensor:
        """Tokens [B, N, dim] in the compute dtype, time vectors ``e0`` float32 [B, 6, dim] → tokens."""
        shift_sa, scale_sa, gate_sa, shift_ffn, scale_ffn, gate_ffn = (self.modulation.float() + e0).unbind(1)
        y = self.self_attn(modulate(layer_norm_fp32(x, self.eps), shift_sa, scale_sa).to(x.dtype), turn)
        x = _gated(x, y, gate_sa)
        x = x + self.cross_attn(layer_norm_fp32(x, self.eps, self.norm3).to(x.dtype), given)
        y = self.ffn(modulate(layer_norm_fp32(x, self.eps), shift_ffn, scale_ffn).to(x.dtype))
        return _gated(x, y, gate_ffn)


class Embedded(NamedTuple):
    """Everything the blocks and the head need, from :meth:`EchoMimicTransformer.embed`.

    tokens [B, N, dim]; e [B, dim] and e0 [B, 6, dim] float32; the grid (T, h, w) of the N tokens.
    """

    tokens: Tensor
    e: Tensor
    e0: Tensor
    turn: Rotation
    given: Conditions
    grid: tuple[int, int, int]


class EchoMimicTransformer(nn.Module):
    """Predicts the velocity ε − x0 of noisy video latents under text, image, audio and given frames.

    ``forward`` = ``embed``, ``run_blocks``, ``project``; a sampler that reuses the blocks' residual calls the three.
    Under FSDP2 use ``cast_forward_inputs=False``: the timesteps and the modulation stay float32.
    """

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        _check(cfg)
        self.cfg = cfg
        self.patch_embedding = nn.Conv3d(cfg.in_dim, cfg.dim, cfg.patch_size, cfg.patch_size)
        self.text_embedding = TextMLP(cfg.text_dim, cfg.dim, cfg.text_len)
        self.time_embedding = TimeMLP(cfg.freq_dim, cfg.dim)
        self.time_projection = TimeProjection(cfg.dim)
        self.img_emb = ImageMLP(cfg.image_dim, cfg.dim)
        if cfg.variant == "whisper":
            self.audio_proj = WhisperProjection(cfg.audio, cfg.dim)
        elif cfg.variant == "preview":
            self.audio2token = PreviewProjection(cfg.audio, cfg.dim)
        elif cfg.variant == "flash":
            self.audio_injection = FlashProjection(cfg.audio, cfg.dim)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.num_layers))
        self.head = Head(cfg.dim, cfg.out_dim * math.prod(cfg.patch_size), cfg.eps)
        self.init_weights()

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        cond: Tensor,
        text: Tensor,
        image: Tensor,
        audio: Tensor | None = None,
        audio_frame0: int | Tensor = 0,
        audio_valid: Tensor | None = None,
        face_mask: Tensor | None = None,
        weights: PhDAWeights | None = None,
        audio_scale: float | Tensor = 1.0,
        riflex: Riflex | None = None,
    ) -> Tensor:
        """Velocity, float32 [B, out_dim, T, h, w].

        Args:
            x: noisy latents [B, out_dim, T, h, w].
            t: timesteps [B], 0..1000, float32; 1000 = pure noise.
            cond: 4 mask channels (1 = given) and the latents of the masked video, [B, in_dim − out_dim, T, h, w].
            text: [B, L ≤ text_len, text_dim], zero rows past each prompt's true length.
            image: [B, image_tokens, image_dim]; zeros where there is no image.
            audio: `whisper` [B, N, A] on the regular grid of ``tokens_per_frame``; `preview` [B, 2·frames, A];
                `flash` [B, frames, window, layers, A]. None: no audio term. All zeros: the null sound of guidance.
            audio_frame0: `whisper`: row of the first token of video frame 0; one number or int64 [B].
            audio_valid: `whisper`: bool [B, N], False for padding rows.
            face_mask: M_face [B, T, tokens of a frame], or [B, tokens of a frame] for all frames.
            weights: PhDA's W(c, τ), from :func:`model.phda.weights`; None = 1.
            audio_scale: factor on the audio term, one number or [B].
            riflex: for videos longer than those of training.

        Raises:
            EchoForgeError: shapes that do not fit the configuration.
        """
        state = self.embed(
            x, t, cond=cond, text=text, image=image, audio=audio, audio_frame0=audio_frame0, audio_valid=audio_valid,
            face_mask=face_mask, weights=weights, audio_scale=audio_scale, riflex=riflex,
        )  # fmt: skip
        return self.project(self.run_blocks(state), state)

    def embed(
        self,
        x: Tensor,
        t: Tensor,
        *,
        cond: Tensor,
        text: Tensor,
        image: Tensor,
        audio: Tensor | None = None,
        audio_frame0: int | Tensor = 0,
        audio_valid: Tensor | None = None,
        face_mask: Tensor | None = None,
        weights: PhDAWeights | None = None,
        audio_scale: float | Tensor = 1.0,
        riflex: Riflex | None = None,
    ) -> Embedded:
        """Patches, time and conditions; arguments as in :meth:`forward`."""
        self._check_shapes(x, cond, text, image)
        dtype = self.patch_embedding.weight.dtype
        patches = self.patch_embedding(torch.cat([x.to(dtype), cond.to(dtype)], dim=1))
        grid = (patches.shape[2], patches.shape[3], patches.shape[4])
        tokens = patches.flatten(2).transpose(1, 2)
        e = self.time_embedding(t)
        gates = ones(t) if weights is None else weights
        given = Conditions(
            text=self.text_embedding(text.to(dtype)),
            image=self.img_emb(image.to(dtype)),
            audio=self._audio_tokens(audio, grid[0], audio_frame0, audio_valid),
            weights=gates._replace(audio=gates.audio * audio_scale),
            face_mask=_face_mask(face_mask, grid, tokens.dtype),
        )
        turn = rotation(grid, self.cfg.dim // self.cfg.num_heads, x.device, riflex)
        return Embedded(tokens, e, self.time_projection(e), turn, given, grid)

    def run_blocks(self, state: Embedded) -> Tensor:
        """Tokens after all blocks, [B, N, dim]."""
        tokens = state.tokens
        for block in self.blocks:
            tokens = block(tokens, state.e0, state.turn, state.given)
        return tokens

    def project(self, tokens: Tensor, state: Embedded) -> Tensor:
        """Tokens after the blocks → velocity, float32 [B, out_dim, T, h, w]."""
        (t, h, w), (pt, ph, pw) = state.grid, self.cfg.patch_size
        patches = self.head(tokens, state.e).view(-1, t, h, w, pt, ph, pw, self.cfg.out_dim)
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(-1, self.cfg.out_dim, t * pt, h * ph, w * pw)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initial values of every parameter; also after ``to_empty`` on a model built on the meta device.

        As Wan: Xavier for linear layers, small normal for the embeddings, zero for the head. Then :meth:`init_audio`.
        """
        _reset(self)
        for layer in (*self.text_embedding, *self.time_embedding):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        for module in (*self.blocks, self.head):
            nn.init.normal_(module.modulation, std=self.cfg.dim**-0.5)
        nn.init.zeros_(self.head.head.weight)
        self.init_audio()

    @torch.no_grad()
    def init_audio(self) -> None:
        """Initial values of the audio path alone: silent, so that the model equals its base bit for bit.

        Only the values (weight and bias) are zero. Released code zeroes the keys too, so that they cannot learn until
        the values have moved, and the norm at zero then multiplies their gradient by 1000.
        """
        if self.cfg.variant == "base":
            return
        _reset(getattr(self, PROJECTIONS[self.cfg.variant]))
        for block in self.blocks:
            experts = cast(Block, block).cross_attn
            for name, module in experts.named_children():
                if name.endswith("_audio"):
                    _reset(module)
            for value in experts.v_audio.parameters():
                nn.init.zeros_(value)

    def _audio_tokens(
        self, audio: Tensor | None, frames: int, frame0: int | Tensor, valid: Tensor | None
    ) -> AudioTokens | None:
        if audio is None:
            return None
        if self.cfg.variant == "base":
            raise EchoForgeError("the base transformer has no audio expert; use variant whisper, preview or flash.")
        if audio.shape[-1] != self.cfg.audio.dim:
            raise EchoForgeError(
                f"audio features have {audio.shape[-1]} channels, the transformer expects {self.cfg.audio.dim} "
                f"(transformer.audio.dim, variant {self.cfg.variant})."
            )
        projection = getattr(self, PROJECTIONS[self.cfg.variant])
        return projection(audio.to(self.patch_embedding.weight.dtype), frames, frame0, valid)

    def _check_shapes(self, x: Tensor, cond: Tensor, text: Tensor, image: Tensor) -> None:
        c = self.cfg
        if x.shape[1] != c.out_dim or cond.shape[1] != c.in_dim - c.out_dim or x.shape[2:] != cond.shape[2:]:
            raise EchoForgeError(
                f"latents {list(x.shape)} and condition {list(cond.shape)} must be [B, {c.out_dim}, T, h, w] and "
                f"[B, {c.in_dim - c.out_dim}, T, h, w]."
            )
        if any(size % patch for size, patch in zip(x.shape[2:], c.patch_size, strict=True)):
            raise EchoForgeError(f"latent size {list(x.shape[2:])} is not a multiple of the patch {c.patch_size}.")
        if text.shape[1] > c.text_len or text.shape[2] != c.text_dim:
            raise EchoForgeError(f"text {list(text.shape)} must be [B, at most {c.text_len}, {c.text_dim}].")
        if image.shape[1:] != (c.image_tokens, c.image_dim):
            raise EchoForgeError(f"image {list(image.shape)} must be [B, {c.image_tokens}, {c.image_dim}].")


def _reset(root: nn.Module) -> None:
    """Xavier and zero bias for linear layers and patches, one and zero for norms, everywhere below ``root``."""
    for module in root.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)


def _gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + gate·y, added in float32, kept in x's dtype."""
    return (x.float() + y.float() * gate[:, None]).to(x.dtype)


def _face_mask(mask: Tensor | None, grid: tuple[int, int, int], dtype: torch.dtype) -> Tensor | None:
    if mask is None:
        return None
    t, h, w = grid
    if mask.dim() == 2:
        mask = mask[:, None].expand(-1, t, -1)
    if mask.shape[1:] != (t, h * w):
        raise EchoForgeError(f"face mask {list(mask.shape)} must be [B, {t}, {h * w}]: one value per token.")
    return mask.to(dtype)


def _check(cfg: TransformerConfig) -> None:
    if cfg.dim % cfg.num_heads or (cfg.dim // cfg.num_heads) % 2:
        raise EchoForgeError(f"transformer.dim {cfg.dim} must give {cfg.num_heads} heads of an even width.")
    if cfg.patch_size[0] != 1:
        raise EchoForgeError("transformer.patch_size must be 1 in time: audio belongs to single latent frames.")
