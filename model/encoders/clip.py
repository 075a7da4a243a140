"""CLIP ViT-H/14 visual tower through open_clip: the tokens after all blocks but the last, no post-norm, no projection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from configs.errors import EchoForgeError
from configs.weights import locate
from model import layouts
from model.checkpoint import load_weights
from model.config import ImageEncoderConfig
from model.encoders.base import ImageEncoder
from model.encoders.files import digest

_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's published statistics
_STD = (0.26862954, 0.26130258, 0.27577711)
_HEADS = 16  # ViT-H/14


class ClipEncoder(ImageEncoder):
    """Images → tokens of the last block but one."""

    name = "CLIP ViT-H/14"

    def __init__(self, tower: Any, digest: str, device: torch.device | str) -> None:
        self.tower, self.digest, self._device = tower.to(device).eval(), digest, device
        self.tokens, self.dim = tower.positional_embedding.shape
        self._mean = torch.tensor(_MEAN, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(_STD, device=device).view(1, 3, 1, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """See :meth:`ImageEncoder.encode`. Resized to the tower's square without keeping the aspect, as released."""
        side = self.tower.image_size[0]
        small = F.interpolate(images.to(self._device).float(), size=(side, side), mode="bicubic", align_corners=False)
        return self.features(((small * 0.5 + 0.5) - self._mean) / self._std)

    def features(self, normalised: Tensor) -> Tensor:
        """Tokens float32 [B, tokens, dim] of pictures that are normalised already."""
        return penultimate(self.tower, normalised.to(self.tower.conv1.weight.dtype)).float()


def penultimate(tower: Any, x: Tensor) -> Tensor:
    """All blocks but the last."""
    x = tower._embeds(x)
    for block in tower.transformer.resblocks[:-1]:
        x = block(x)
    return x


def load_clip(cfg: ImageEncoderConfig, device: torch.device | str, dtype: torch.dtype) -> ClipEncoder:
    """Load the tower from the original file, or from an open_clip state dict.

    Raises:
        MissingWeights: nothing there.
        EchoForgeError: the file is not CLIP ViT-H/14, or gives other shapes than configured.
    """
    where = locate("image_encoder.path", cfg.path, "clip")
    state = load_weights(where)
    original = any(key.endswith("patch_embedding.weight") for key in state)
    named = layouts.clip(state) if original else {
        k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")
    }  # fmt: skip
    encoder = ClipEncoder(from_named(named, str(where), _HEADS).to(dtype), digest(Path(where)), device)
    if (encoder.tokens, encoder.dim) != (cfg.tokens, cfg.dim):
        raise EchoForgeError(
            f"{where} gives {encoder.tokens} tokens of {encoder.dim}; image_encoder asks for {cfg.tokens} of {cfg.dim}."
        )
    return encoder


def from_named(named: Mapping[str, Tensor], source: str, heads: int) -> Any:
    """open_clip's tower with the given state dict; sizes are read off the shapes.

    Raises:
        EchoForgeError: names or shapes of another network.
    """
    from open_clip.transformer import VisionTransformer

    for name in ("conv1.weight", "positional_embedding", "proj", "transformer.resblocks.0.mlp.c_fc.weight"):
        if name not in named:
            raise EchoForgeError(f"{source} is not a CLIP visual tower: it has no {name}.")
    width, patch = named["conv1.weight"].shape[0], named["conv1.weight"].shape[-1]
    grid = round((named["positional_embedding"].shape[0] - 1) ** 0.5)
    layers = sum(key.endswith(".ln_1.weight") for key in named)
    ratio = named["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width
    with torch.device("meta"):
        tower = VisionTransformer(
            image_size=grid * patch, patch_size=patch, width=width, layers=layers, heads=heads, mlp_ratio=ratio,
            output_dim=named["proj"].shape[1],
        )  # fmt: skip
    layouts.require(list(tower.state_dict()), named, source)
    try:
        tower.load_state_dict({k: v.float() for k, v in named.items()}, assign=True)
    except RuntimeError as error:
        raise EchoForgeError(f"{source} is not a CLIP tower: {str(error).splitlines()[-1].strip()}") from error
    return tower
