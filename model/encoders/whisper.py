"""Whisper's encoder through openai-whisper: the paper's audio features, 50 a second.

One log-mel spectrogram is made of the whole sound, as `whisper.transcribe` does, and cut into the plain 30-second blocks
that Whisper was trained on, without overlap; each block is encoded by itself, so a feature never sees beyond its block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from configs.errors import EchoForgeError
from configs.weights import locate
from model.config import AudioEncoderConfig
from model.encoders.base import FRAME_SAMPLES, AudioEncoder, as_sound
from model.encoders.files import digest, joined

_BLOCK_S = 30
_MEL_FRAMES = 3000  # of one block
_BATCH = 8  # blocks at a time: an hour of sound needs no more memory than four minutes


class WhisperEncoder(AudioEncoder):
    """Whole sounds → [N, dim]; ``layers`` 'last' is the normalised output, 'all' the embedding and every block."""

    name = "Whisper"
    variant = "whisper"
    tokens_per_frame = 2

    def __init__(
        self, network: Any, layers: str, digest: str, device: torch.device | str, dtype: torch.dtype = torch.float32
    ) -> None:
        self.network, self.digest = network.to(device).eval(), joined(digest, layers)
        self._layers, self._device, self._dtype = layers, device, dtype

    @torch.no_grad()
    def encode(self, pcm: NDArray[np.float32] | Tensor) -> Tensor:
        """See :meth:`AudioEncoder.encode`."""
        from whisper import log_mel_spectrogram

        sound = as_sound(pcm, self._device)
        frames = len(sound) // FRAME_SAMPLES
        block = _BLOCK_S * 16_000
        mel = log_mel_spectrogram(F.pad(sound, (0, -len(sound) % block)), self.network.dims.n_mels)
        blocks = mel.unfold(1, _MEL_FRAMES, _MEL_FRAMES).transpose(0, 1)
        features = torch.cat([self._features(part).float() for part in blocks.split(_BATCH)])
        return features.flatten(0, 1)[: frames * self.tokens_per_frame]

    def _features(self, mel: Tensor) -> Tensor:
        """[blocks, mels, 3000] → [blocks, 1500, dim]."""
        encoder = self.network.encoder
        x = F.gelu(encoder.conv1(mel.to(self._dtype)))  # weights stay float32: Whisper's layers cast them
        x = F.gelu(encoder.conv2(x)).transpose(1, 2)
        x = (x + encoder.positional_embedding).to(x.dtype)
        seen = [x]
        for layer in encoder.blocks:
            x = layer(x)
            seen.append(x)
        return torch.cat(seen, dim=-1) if self._layers == "all" else encoder.ln_post(x)


def load_whisper(cfg: AudioEncoderConfig, device: torch.device | str, dtype: torch.dtype) -> WhisperEncoder:
    """Load an openai-whisper file (``tiny.pt``); nothing is unpickled but tensors and numbers.

    Raises:
        MissingWeights: nothing there.
        EchoForgeError: not a Whisper file, or features of another width than configured.
    """
    from whisper.model import ModelDimensions, Whisper

    where = locate("audio_encoder.path", cfg.path, "whisper", cfg.variant)
    try:
        saved = torch.load(where, map_location="cpu", weights_only=True)
        network = Whisper(ModelDimensions(**saved["dims"]))
        network.load_state_dict(saved["model_state_dict"])
    except Exception as error:
        raise EchoForgeError(f"{where} is not an openai-whisper file: {str(error).splitlines()[0]}") from error
    dims = network.dims
    width = dims.n_audio_state * (dims.n_audio_layer + 1 if cfg.layers == "all" else 1)
    if width != cfg.dim:
        raise EchoForgeError(f"{where} gives features of {width}, audio_encoder.dim is {cfg.dim}.")
    del network.decoder
    return WhisperEncoder(network.float(), cfg.layers, digest(Path(where)), device, dtype)
