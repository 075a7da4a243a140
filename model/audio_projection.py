"""From audio features to the audio tokens of each latent frame, [B, T, K, dim]: one module per variant.

`whisper` is the paper's: features through an MLP, windows of the centre feature ± (r + e), absent features masked.
`preview` and `flash` are the released ones, kept exactly, zero rows and all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.audio_windows import flash_groups, gather_windows, segment_windows, video_frames
from model.config import AudioNetConfig
from model.embeddings import feature_mlp, sinusoid


class AudioTokens(NamedTuple):
    """Tokens [B, T, K, dim], and bool [B, T, K] of those that exist, or None where all are attended to."""

    tokens: Tensor
    valid: Tensor | None


class WhisperProjection(nn.Module):
    """The paper's: [B, N, A] features at α per video frame → 2(r+e)+1 tokens per latent frame."""

    def __init__(self, cfg: AudioNetConfig, dim: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.proj = feature_mlp(cfg.dim, cfg.hidden, dim)

    def forward(self, audio: Tensor, latent_frames: int, frame0: int | Tensor, valid: Tensor | None) -> AudioTokens:
        index = segment_windows(latent_frames, self.cfg)
        tokens, present = gather_windows(self.proj(audio), index, frame0, valid)
        if self.cfg.positions == "sinusoidal":
            place = sinusoid(torch.arange(tokens.shape[2], device=tokens.device), tokens.shape[3])
            tokens = tokens + place.to(tokens.dtype)
        return AudioTokens(tokens, present)


class PreviewProjection(nn.Module):
    """Released preview: [B, 2·frames, A] → 17 tokens per latent frame.

    Features outside the clip become zero rows *after* projection and norm, and are attended to: their keys are 0, so
    they take part of the attention and damp the audio term of the first two latent frames and the last. (Released code
    appends them at the end of the window; attention does not see the order.) A feature too many is dropped and one too
    few is such a row.
    """

    def __init__(self, cfg: AudioNetConfig, dim: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.proj = nn.Linear(cfg.dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim)

    def forward(self, audio: Tensor, latent_frames: int, frame0: int | Tensor, valid: Tensor | None) -> AudioTokens:
        count = self.cfg.tokens_per_frame * video_frames(latent_frames, self.cfg.reduction)
        tokens = self.norm(self.proj(audio[:, :count]))
        return AudioTokens(gather_windows(tokens, segment_windows(latent_frames, self.cfg))[0], None)


class FlashProjection(nn.Module):
    """Released flash: [B, F, 5, 12, A] windows of all encoder layers → 32 tokens per latent frame."""

    def __init__(self, cfg: AudioNetConfig, dim: int) -> None:
        super().__init__()
        self.cfg = cfg
        per_frame = cfg.layers * cfg.dim
        self.proj1 = nn.Linear(cfg.window * per_frame, cfg.hidden)
        self.proj1_vf = nn.Linear((cfg.window + cfg.reduction - 1) * per_frame, cfg.hidden)
        self.proj2 = nn.Linear(cfg.hidden, cfg.hidden)
        self.proj3 = nn.Linear(cfg.hidden, cfg.tokens * dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, audio: Tensor, latent_frames: int, frame0: int | Tensor, valid: Tensor | None) -> AudioTokens:
        first, later = flash_groups(audio, self.cfg.reduction)
        hidden = torch.cat([F.relu(self.proj1(first.flatten(2))), F.relu(self.proj1_vf(later.flatten(2)))], dim=1)
        tokens = self.proj3(F.relu(self.proj2(hidden)))
        return AudioTokens(self.norm(tokens.unflatten(-1, (self.cfg.tokens, -1))), None)
