"""What every encoder offers: text, image and sound → rows for the transformer.

A whole sound is encoded once, then sliced: the same in sharding and in generation, so that what is normalised over the
sound (wav2vec2's mean and variance, the stand-in's level) is the same number in both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import EchoForgeError

SAMPLE_RATE = 16_000
FRAME_SAMPLES = 640  # one video frame at 25 fps


class TextEncoder(ABC):
    """Captions → rows.

    Attributes:
        name: for people; a stand-in says so.
        digest: 16 hex of what decides the numbers.
        dim: channels of a row.
    """

    name: str
    digest: str
    dim: int

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """One float32 tensor [L_i, dim] per text on the encoder's device, without padding rows; L_i ≥ 1 (end token).

        A text gives the same rows alone and in a batch.
        """


class ImageEncoder(ABC):
    """Images → tokens.

    Attributes:
        name: for people; a stand-in says so.
        digest: 16 hex of what decides the numbers.
        tokens, dim: shape of one image's result. No image (T2V) is zeros of that shape.
    """

    name: str
    digest: str
    tokens: int
    dim: int

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in −1..1, any H and W → float32 [B, tokens, dim] on the encoder's device."""


@dataclass(frozen=True)
class AudioSlice:
    """Features of one clip, with context on both sides.

    Attributes:
        tokens: [N, …] rows; those outside the sound are zero.
        frame0: row of the first feature of the clip's video frame 0.
        tokens_per_frame: rows per video frame.
        valid: (first, end) rows that come from the sound.
    """

    tokens: Tensor
    frame0: int
    tokens_per_frame: int
    valid: tuple[int, int]

    @property
    def mask(self) -> Tensor:
        """bool [N], True where a row comes from the sound."""
        rows = torch.arange(len(self.tokens), device=self.tokens.device)
        return (rows >= self.valid[0]) & (rows < self.valid[1])


class AudioEncoder(ABC):
    """Sound → features.

    Attributes:
        name: for people; a stand-in says so.
        digest: 16 hex of what decides the numbers.
        variant: the transformer's audio path that the features are for: whisper, preview or flash.
        tokens_per_frame: features per video frame at 25 fps.
    """

    name: str
    digest: str
    variant: str
    tokens_per_frame: int

    @abstractmethod
    def encode(self, pcm: NDArray[np.float32] | Tensor) -> Tensor:
        """A whole sound, float32 mono 16 kHz in −1..1, [N] → float32 features [ceil(N / 640) · tokens_per_frame, …].

        Shape past the first axis: [dim] (`whisper`, `preview`) or [12, dim] (`flash`).

        Raises:
            EchoForgeError: not one channel of sound, or empty.
        """

    def slice(self, features: Tensor, start_frame: int, frames: int, context_frames: int) -> AudioSlice:
        """Rows of video frames [start_frame − context, start_frame + frames + context); see :class:`AudioSlice`."""
        rate = self.tokens_per_frame
        first, end = (start_frame - context_frames) * rate, (start_frame + frames + context_frames) * rate
        low, high = min(max(first, 0), len(features)), max(min(end, len(features)), 0)
        tokens = features.new_zeros(end - first, *features.shape[1:])
        if low < high:
            tokens[low - first : high - first] = features[low:high]
        valid = (low - first, high - first) if low < high else (0, 0)
        return AudioSlice(tokens, context_frames * rate, rate, valid)


def as_sound(pcm: NDArray[np.float32] | Tensor, device: torch.device | str) -> Tensor:
    """Check a sound and pad it with silence to whole video frames: float32 [640·frames] on ``device``."""
    sound = torch.as_tensor(pcm, dtype=torch.float32, device=device)
    if sound.dim() != 1 or not len(sound):
        raise EchoForgeError(f"the audio encoder takes one channel of 16 kHz sound [N], got {list(sound.shape)}.")
    return torch.nn.functional.pad(sound, (0, -len(sound) % FRAME_SAMPLES))
