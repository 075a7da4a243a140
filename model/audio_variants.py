"""The audio paths of the transformer by name: which stored rows each takes, how many, and how a long sound is cut.

`whisper` (the paper's) sees the sound around a clip as far as it exists. The released `preview` and `flash` see the
clip alone, `flash` every frame among its neighbours. `base` is no path and has no entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from model.audio_windows import neighbourhoods, video_frames
from model.config import AudioNetConfig


class AudioInputs(NamedTuple):
    """``audio`` [B, …], ``audio_valid`` bool [B, N] or None, and ``audio_frame0``, as the transformer takes them."""

    audio: Tensor
    valid: Tensor | None
    frame0: int


@dataclass(frozen=True)
class AudioVariant:
    """One audio path.

    Attributes:
        rows_per_frame: features that an encoder makes of one video frame at 25 fps.
        context: it sees the rows around the clip, and a mask of those that exist; else the clip's rows alone.
        neighbours: a row is one video frame, all encoder layers of it, and is seen with the frames around it.
    """

    rows_per_frame: int
    context: bool
    neighbours: bool

    def inputs(self, rows: Tensor, valid: Tensor, frame0: int, frames: int, rows_per_frame: int) -> AudioInputs:
        """What the transformer takes of stored rows.

        Args:
            rows: [B, N, …]; valid: bool [B, N], False for padding; frame0: row of the clip's video frame 0.
            frames: video frames F of the clip.

        Returns:
            ``audio`` of `whisper` [B, N, A], of `preview` [B, 2F, A], of `flash` [B, F, 5, 12, A].
        """
        if self.context:
            return AudioInputs(rows, valid, frame0)
        clip = rows[:, frame0 : frame0 + frames * rows_per_frame]
        return AudioInputs(torch.stack([neighbourhoods(one) for one in clip]) if self.neighbours else clip, None, 0)

    def part(self, audio: Tensor, frame0: int, first: int, frames: int, rows_per_frame: int) -> tuple[Tensor, int]:
        """``audio`` and ``audio_frame0`` of the video frames [first, first + frames) of a longer video."""
        if self.context:
            return audio, frame0 + first * rows_per_frame
        rate = 1 if self.neighbours else rows_per_frame
        return audio[:, first * rate : (first + frames) * rate], frame0

    def tokens(self, cfg: AudioNetConfig) -> int:
        """Audio tokens K of one latent frame: released preview 17, flash 32."""
        return cfg.tokens if self.neighbours else 2 * (cfg.reduction + cfg.overlap) + 1

    def shape(self, cfg: AudioNetConfig, latent_frames: int) -> tuple[int, ...]:
        """Shape, without the batch, of ``audio`` for exactly one clip; `whisper` may hold context on top."""
        frames = video_frames(latent_frames, cfg.reduction)
        if self.neighbours:
            return frames, cfg.window, cfg.layers, cfg.dim
        return cfg.tokens_per_frame * frames, cfg.dim


AUDIO_VARIANTS = {
    "whisper": AudioVariant(rows_per_frame=2, context=True, neighbours=False),
    "preview": AudioVariant(rows_per_frame=2, context=False, neighbours=False),
    "flash": AudioVariant(rows_per_frame=1, context=False, neighbours=True),
}
