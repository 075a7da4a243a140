"""The image encoder that a configuration names: `clip` is the visual tower of CLIP ViT-H/14; `tiny` pools colour patches."""

from __future__ import annotations

import torch

from model.config import ImageEncoderConfig
from model.encoders.base import ImageEncoder


def load_image_encoder(
    cfg: ImageEncoderConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ImageEncoder:
    """The image encoder that ``cfg`` names, computing in ``dtype`` on ``device``.

    Raises:
        MissingWeights: `clip` without its file.
        EchoForgeError: the file is not CLIP ViT-H/14, or `tiny` cannot give the configured shape.
    """
    if cfg.kind == "tiny":
        from model.encoders.tiny import TinyImageEncoder

        return TinyImageEncoder(cfg.tokens, cfg.dim, device)
    from model.encoders.clip import load_clip

    return load_clip(cfg, device, dtype)
