"""Reference image → image tokens. `clip` is the visual tower of CLIP ViT-H/14; `tiny` pools colour patches."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from model.config import ImageEncoderConfig


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
