"""A transformer small enough for a CPU test, random everywhere, and inputs that fit it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from configs import strict
from configs.schema import read_preset
from model.config import PhDAConfig, TransformerConfig, Variant
from model.transformer import EchoMimicTransformer


@pytest.fixture(scope="session")
def phda_cfg() -> PhDAConfig:
    return strict.build(PhDAConfig, read_preset("wan2.1-fun-1.3b")["phda"])


@pytest.fixture(scope="session")
def full_cfg() -> Callable[[Variant], TransformerConfig]:
    """The real sizes, per variant."""

    def make(variant: Variant) -> TransformerConfig:
        cfg = strict.build(TransformerConfig, read_preset("wan2.1-fun-1.3b")["transformer"])
        dim = 384 if variant == "whisper" else 768
        return dataclasses.replace(cfg, variant=variant, audio=dataclasses.replace(cfg.audio, dim=dim))

    return make


@pytest.fixture(scope="session")
def tiny_cfg() -> Callable[[Variant], TransformerConfig]:
    def make(variant: Variant) -> TransformerConfig:
        cfg = strict.build(TransformerConfig, read_preset("tiny")["transformer"])
        return dataclasses.replace(
            cfg, variant=variant, dim=48, ffn_dim=64, num_heads=2, num_layers=2, patch_size=(1, 2, 2)
        )

    return make


@pytest.fixture
def tiny_model(tiny_cfg: Callable[[Variant], TransformerConfig]) -> Callable[..., EchoMimicTransformer]:
    """A model with every parameter random, the released zeros included, so that nothing is silent by accident."""

    def make(variant: Variant, seed: int = 0) -> EchoMimicTransformer:
        torch.manual_seed(seed)
        model = EchoMimicTransformer(tiny_cfg(variant)).eval()
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(torch.randn_like(value) * 0.1 + ("norm" in name and name.endswith("weight")))
        return model

    return make


@pytest.fixture
def inputs() -> Callable[..., dict[str, Any]]:
    """Keyword arguments of the forward, ``x`` and ``t`` among them."""

    def make(cfg: TransformerConfig, batch: int = 2, latent: tuple[int, int, int] = (3, 4, 6)) -> dict[str, Any]:
        g = torch.Generator().manual_seed(1)

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=g)

        frames, audio = 4 * (latent[0] - 1) + 1, cfg.audio
        given: dict[str, Any] = {
            "x": randn(batch, cfg.out_dim, *latent),
            "t": torch.linspace(900.5, 100.25, batch),
            "cond": randn(batch, cfg.in_dim - cfg.out_dim, *latent),
            "text": randn(batch, 7, cfg.text_dim),
            "image": randn(batch, cfg.image_tokens, cfg.image_dim),
        }
        if cfg.variant == "flash":
            given["audio"] = randn(batch, frames, audio.window, audio.layers, audio.dim)
        elif cfg.variant != "base":
            given["audio"] = randn(batch, audio.tokens_per_frame * frames, audio.dim)
        return given

    return make
