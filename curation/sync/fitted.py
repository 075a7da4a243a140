"""A small SyncNet that the toolkit fits itself (`sync fit`): mouth windows and log-mel windows into one space.

Both encoders see 5 frames (200 ms). Embeddings have unit length; the distance lies in 0..2. The file is safetensors
with a card in its metadata: domain, data digest, held-out AUC, threshold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from configs.errors import EchoForgeError
from configs.runtime import disk
from configs.weights import locate
from curation.config import SyncConfig
from curation.schema import SAMPLE_RATE, SAMPLES_PER_FRAME
from curation.sync.base import CropNeed, SyncScore, checked, distance_matrix, summarise

WINDOW = 5  # frames, as SyncNet's
MELS = 40
_HOP, _FFT = 160, 512  # 100 spectra a second, 32 ms each
_PER_FRAME = SAMPLES_PER_FRAME // _HOP
KIND = "echoforge-sync-fitted-1"
CROP = CropNeed("mouth", 32, gray=True)
_LEAST = 8  # comparisons below which a shift is not judged


class SmallSyncNet(nn.Module):
    """Encoders of mouth [N, 5, 32, 32] (0..1) and sound [N, 40, 20] (log-mel); 0.4 M parameters."""

    def __init__(self, dim: int = 128) -> None:
        super().__init__()
        self.lips = nn.Sequential(
            *_conv(WINDOW, 32), *_conv(32, 48), *_conv(48, 96), nn.Flatten(), nn.Linear(96 * 16, dim)
        )
        self.sound = nn.Sequential(
            *_conv(1, 24), *_conv(24, 48), *_conv(48, 64), nn.Flatten(), nn.Linear(64 * 5 * 3, dim)
        )
        self.scale = nn.Parameter(torch.tensor(2.3))

    def embed_lips(self, windows: Tensor) -> Tensor:
        """float [N, 5, 32, 32] in 0..1 → unit vectors [N, dim]. Each window is freed of its own mean and contrast."""
        centred = windows - windows.mean((1, 2, 3), keepdim=True)
        contrast = centred.pow(2).mean((1, 2, 3), keepdim=True).sqrt()
        return functional.normalize(self.lips(centred / (contrast + 0.02)).float(), dim=-1)

    def embed_sound(self, windows: Tensor) -> Tensor:
        """float [N, 40, 20] → unit vectors [N, dim]."""
        return functional.normalize(self.sound(windows[:, None]).float(), dim=-1)


def _conv(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Halve both axes. Group norm: no statistics to carry from fitting to use."""
    return nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(4, outputs), nn.SiLU()


@cache
def _mel_bank() -> Tensor:
    """Triangular filters, float32 [40, 257], 60..7600 Hz on the mel scale of O'Shaughnessy."""
    low, high = (2595 * math.log10(1 + f / 700) for f in (60.0, 7600.0))
    mel = np.linspace(low, high, MELS + 2)
    hz = 700 * (10 ** (mel / 2595) - 1)
    bins = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    rise = (bins - hz[:-2, None]) / (hz[1:-1] - hz[:-2])[:, None]
    fall = (hz[2:, None] - bins) / (hz[2:] - hz[1:-1])[:, None]
    return torch.from_numpy(np.maximum(np.minimum(rise, fall), 0).astype(np.float32))


def log_mel(pcm: Tensor) -> Tensor:
    """Sound float32 [n] → [40, n // 160], loudness taken out: zero mean over the clip, scaled by a constant."""
    spectrum = torch.stft(
        pcm, _FFT, _HOP, window=torch.hann_window(_FFT), center=True, pad_mode="constant", return_complex=True
    )
    power = _mel_bank() @ spectrum.abs().pow(2)
    level = power.mean().clamp_min(1e-7)
    logs = (power / level + 1e-4).log()
    return ((logs - logs.mean()) / 3.0)[:, : len(pcm) // _HOP]


def sound_windows(mel: Tensor, frames: int) -> Tensor:
    """log-mel [40, 4 · frames] → [frames − 4, 40, 20]: the same 200 ms as the picture windows."""
    return mel[:, : frames * _PER_FRAME].unfold(1, WINDOW * _PER_FRAME, _PER_FRAME).permute(1, 0, 2)


def lip_windows(crops: Tensor) -> Tensor:
    """Mouths uint8 or float [F, 32, 32] in 0..255 → [F − 4, 5, 32, 32] in 0..1 (a view, divided)."""
    return (crops.float() / 255.0).unfold(0, WINDOW, 1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Card:
    """What the file of a fitted SyncNet says of it: what it was fitted on, and how well it does on clips held out."""

    domain: str  # what the clips are, in words
    clips: int
    held_out_clips: int
    minutes: float  # of the clips fitted on
    data_digest: str
    seed: int
    steps: int
    parameters: int
    held_out_auc: float  # in sync against ≥ 3 frames (120 ms) off
    held_out_foreign_auc: float  # … against another clip's sound
    held_out_within_one_frame: float  # share of the offsets found
    threshold: float  # confidence between those of true and of foreign sound
    seconds: float  # that the fit took


class FittedSync:
    """Backend ``fitted``. Without a card (a network that is being fitted) its confidences are reported as they are."""

    name = "fitted"
    crop = CROP

    def __init__(self, net: SmallSyncNet, cfg: SyncConfig, card: Card | None = None, device: str = "cpu") -> None:
        self._net = net.eval().requires_grad_(False).to(device)
        self._cfg = cfg
        self._device = device
        self.card = card
        self.unit = max(card.threshold, 1e-6) if card else 1.0

    @classmethod
    def load(cls, cfg: SyncConfig, device: str = "cpu") -> FittedSync:
        """From the file that ``sync.fitted`` names.

        Raises:
            MissingWeights: none is named, or it is not there.
            EchoForgeError: the file is not one that `sync fit` wrote.
        """
        net, card = read(locate("sync.fitted", cfg.fitted, "fitted"))
        return cls(net, cfg, card, device)

    def score(self, crops: np.ndarray, pcm: np.ndarray) -> SyncScore:
        """See :class:`curation.sync.base.SyncBackend`."""
        return self.score_many([(crops, pcm)])[0]

    @torch.inference_mode()
    def score_many(self, clips: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[SyncScore]:
        """All windows of all clips in common batches."""
        frames = [checked(crops, pcm, self.crop, WINDOW + _LEAST) for crops, pcm in clips]
        lips, sound = [], []
        for (crops, pcm), count in zip(clips, frames, strict=True):
            lips.append(lip_windows(torch.from_numpy(np.ascontiguousarray(crops[:count]))))
            heard = torch.from_numpy(np.asarray(pcm[: count * SAMPLES_PER_FRAME], np.float32))
            sound.append(sound_windows(log_mel(heard), count))
        sizes = [count - WINDOW + 1 for count in frames]
        seen = self._run(self._net.embed_lips, torch.cat(lips)).split(sizes)
        heard_all = self._run(self._net.embed_sound, torch.cat(sound)).split(sizes)
        return [
            summarise(distance_matrix(v, a, self._cfg.vshift, padded=False), self._cfg.vshift, _LEAST)
            for v, a in zip(seen, heard_all, strict=True)
        ]

    def _run(self, encode: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
        parts = windows.split(self._cfg.batch_size * 8)
        return torch.cat([encode(part.contiguous().to(self._device)).cpu() for part in parts])


def write(path: Path, net: SmallSyncNet, card: Card) -> None:
    """Safetensors with the card as metadata; by rename."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    with disk.replacing(path) as part:
        save_file(state, part, metadata={"kind": KIND, "card": json.dumps(asdict(card))})


def read(path: Path) -> tuple[SmallSyncNet, Card]:
    """(network, card) of a fitted file.

    Raises:
        EchoForgeError: not a file of this kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if meta.get("kind") != KIND:
            raise EchoForgeError(f"{path} is not a fitted SyncNet; `sync fit` makes one.")
        net = SmallSyncNet()
        net.load_state_dict(state)
    except (SafetensorError, OSError, RuntimeError) as error:
        message = f"{path} is not a fitted SyncNet ({error}); `sync fit` makes one."
        raise EchoForgeError(message) from error
    return net, Card(**json.loads(meta["card"]))
