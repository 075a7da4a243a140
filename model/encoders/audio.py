"""The audio encoder that a configuration names, and its rows as the transformer takes them."""

from __future__ import annotations

import torch

from configs.errors import EchoForgeError
from model.config import AudioEncoderConfig
from model.encoders.base import AudioEncoder


def load_audio_encoder(
    cfg: AudioEncoderConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> AudioEncoder:
    """The audio encoder that ``cfg`` names, computing in ``dtype`` on ``device``.

    Raises:
        MissingWeights: `whisper` or `wav2vec2` without its files.
        EchoForgeError: the file is of another model, or kind and variant do not go together.
    """
    if cfg.kind == "tiny":
        from model.encoders.tiny import TinyAudioEncoder

        return TinyAudioEncoder(cfg.variant, cfg.dim, device)
    if (cfg.kind == "whisper") != (cfg.variant == "whisper"):
        raise EchoForgeError(
            f"audio_encoder.kind '{cfg.kind}' does not give features for variant '{cfg.variant}'; "
            "whisper goes with whisper, wav2vec2 with preview or flash."
        )
    if cfg.kind == "whisper":
        from model.encoders.whisper import load_whisper

        return load_whisper(cfg, device, dtype)
    from model.encoders.wav2vec2 import load_wav2vec2

    return load_wav2vec2(cfg, device, dtype)
