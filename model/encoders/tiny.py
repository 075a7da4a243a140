"""Stand-ins for the three encoders: deterministic, without weights, and no substitute for learned ones.

They carry what a small network can use: which words, which colours where, how loud and of what timbre.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from configs.errors import EchoForgeError
from model.encoders.base import SAMPLE_RATE, AudioEncoder, ImageEncoder, TextEncoder, as_sound

VERSION = 1  # of everything below: raise it when a number changes
END = "</s>"


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(("tiny", VERSION, *parts)).encode()).hexdigest()[:16]


class TinyTextEncoder(TextEncoder):
    """Hashed words, a stand-in: each word's row is its own hash plus half its predecessor's, then an end row."""

    name = "tiny text (stand-in without weights)"

    def __init__(self, dim: int, max_tokens: int, device: torch.device | str = "cpu") -> None:
        self.dim, self.max_tokens, self.device = dim, max_tokens, device
        self.digest = _digest("text", dim, max_tokens)

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """See :meth:`TextEncoder.encode`. Case and punctuation do not count; rows have unit variance."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> Tensor:
        words = [*re.findall(r"\w+", text.lower())[: self.max_tokens - 1], END]
        own = torch.stack([self._word(word) for word in words])
        before = F.pad(own, (0, 0, 1, 0))[:-1]
        return ((own + 0.5 * before) / math.sqrt(1.25)).to(self.device)

    def _word(self, word: str) -> Tensor:
        raw = np.frombuffer(hashlib.shake_256(word.encode()).digest(self.dim), dtype=np.uint8)
        return torch.from_numpy((raw.astype(np.float32) - 127.5) / 73.9)


class TinyImageEncoder(ImageEncoder):
    """Colours of a 16×16 thumbnail, a stand-in: the whole picture as 4×4 colours, then its 16 patches likewise."""

    name = "tiny image (stand-in without weights)"

    def __init__(self, tokens: int, dim: int, device: torch.device | str = "cpu") -> None:
        if (tokens, dim) != (17, 48):
            raise EchoForgeError(f"the tiny image encoder gives 17 tokens of 48, not {tokens} of {dim}.")
        self.tokens, self.dim, self.device = tokens, dim, device
        self.digest = _digest("image")

    def encode(self, images: Tensor) -> Tensor:
        """See :meth:`ImageEncoder.encode`."""
        small = F.adaptive_avg_pool2d(images.to(self.device, torch.float32), 16)
        whole = F.avg_pool2d(small, 4).flatten(1)[:, None]
        patches = F.unfold(small, kernel_size=4, stride=4).transpose(1, 2)
        return torch.cat([whole, patches], dim=1)


class TinyAudioEncoder(AudioEncoder):
    """Cepstra at 50 Hz, a stand-in: log-mel spectrum below the sound's own level, then a cosine transform.

    Feature 0 is loudness, the next few the shape of the mouth, the rest pitch and noise.
    """

    name = "tiny audio (stand-in without weights)"
    tokens_per_frame = 2

    def __init__(self, variant: str, dim: int, device: torch.device | str = "cpu") -> None:
        if variant == "flash":
            raise EchoForgeError("the tiny audio encoder has one layer, so it has no flash features.")
        self.variant, self.dim, self.device = variant, dim, device
        self._mel = mel_filters(dim).to(device)
        self._cosines = cosine_transform(dim).to(device)
        self._window = torch.hann_window(self.WINDOW, device=device)
        self.digest = _digest("audio", dim)

    HOP, WINDOW, FFT = 320, 480, 512  # 20, 30 and 32 ms
    RANGE, QUIET, FLOOR = 4.0, -2.0, -6.0  # decades kept below the loud parts; the least that counts as loud; silence

    def encode(self, pcm: NDArray[np.float32] | Tensor) -> Tensor:
        """See :meth:`AudioEncoder.encode`. Feature k is centred on the middle of its 20 ms."""
        sound = as_sound(pcm, self.device)
        margin = (self.FFT - self.HOP) // 2
        frames = F.pad(sound, (margin, margin)).unfold(0, self.FFT, self.HOP)
        side = (self.FFT - self.WINDOW) // 2
        power = torch.fft.rfft(frames * F.pad(self._window, (side, side))).abs().square()
        level = (power @ self._mel).clamp_min(10**self.FLOOR).log10()
        loud = torch.quantile(level.amax(dim=1), 0.95).clamp_min(self.QUIET)
        level = (level - loud).clamp_min(-self.RANGE) / self.RANGE * 2 + 1.5  # −0.5 silent … 1.5 loud
        return level @ self._cosines


def mel_filters(bands: int, low: float = 60.0, high: float = 7600.0, fft: int = 512) -> Tensor:
    """Triangular filters on the mel scale (O'Shaughnessy), float32 [fft/2+1, bands], each summing to one or zero."""

    def mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    edges = 700 * (10 ** (torch.linspace(mel(low), mel(high), bands + 2, dtype=torch.float64) / 2595) - 1)
    hz = torch.arange(fft // 2 + 1, dtype=torch.float64)[:, None] * SAMPLE_RATE / fft
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp_min(0)
    return (filters / filters.sum(dim=0).clamp_min(1e-9)).float()


def cosine_transform(size: int) -> Tensor:
    """DCT-II by columns, float32 [size, size]: column 0 is three times the mean over bands, the others 4√2 times."""
    k = torch.arange(size, dtype=torch.float64)
    x = (torch.arange(size, dtype=torch.float64) + 0.5)[:, None]
    matrix = torch.cos(math.pi * k * x / size) * math.sqrt(2) / size * 4
    matrix[:, 0] = 3 / size
    return matrix.float()
