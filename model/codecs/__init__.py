"""Codecs: pixels ↔ latents, behind one interface. `wan` is the Wan2.1 VAE, `dct` a weight-free stand-in of its shape."""

from __future__ import annotations

import torch

from model.codecs.base import Codec
from model.config import CodecConfig

__all__ = ["Codec", "load_codec"]


def load_codec(cfg: CodecConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Codec:
    """The codec that ``cfg`` names, on ``device``; its networks compute in ``dtype``.

    Raises:
        MissingWeights: `wan` without its file.
        EchoForgeError: the file is not a Wan2.1 VAE.
    """
    if cfg.kind == "dct":
        from model.codecs.dct import DctCodec

        return DctCodec(device)
    from model.codecs.wan import load_wan

    return load_wan(cfg.path, device, dtype)
