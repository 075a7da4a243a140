"""The audio encoder that a configuration names, and its rows as the transformer takes them."""

from __future__ import annotations

import torch
from torch import Tensor

from configs.errors import EchoForgeError
from model.audio_windows import neighbourhoods
from model.config import AudioEncoderConfig
from model.encoders.base import AudioEncoder


def network_audio(
    variant: str, tokens: Tensor, frame0: int, valid: tuple[int, int], frames: int, tokens_per_frame: int
) -> tuple[Tensor, Tensor | None, int]:
    """Stored rows of one clip → what the transformer's ``audio``, ``audio_valid`` and ``audio_frame0`` take.

    `whisper` sees the context and a mask of what exists; the released variants see the clip alone, as released.

    Args:
        tokens: [N, …], with ``frame0`` and ``valid`` as in :class:`AudioSlice`.
        frames: video frames F of the clip.

    Returns:
        `whisper`: [N, A], bool [N], frame0. `preview`: [2F, A], None, 0. `flash`: [F, 5, 12, A], None, 0.
    """
    if variant == "whisper":
        rows = torch.arange(len(tokens), device=tokens.device)
        return tokens, (rows >= valid[0]) & (rows < valid[1]), frame0
    clip = tokens[frame0 : frame0 + frames * tokens_per_frame]
    return (clip if variant == "preview" else neighbourhoods(clip)), None, 0


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
