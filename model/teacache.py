"""TeaCache: skip the blocks of a step whose time embedding has hardly moved, and reuse the last residual.

The distance is mean|e − e_last| / mean|e_last| of the modulation signal, rescaled by a polynomial that was fitted to
Wan 1.3B, and accumulated until it passes the threshold. Every guidance branch (and every window) has its own residual:
the released flash code shares one between its two branches, so that their predictions coincide on skipped steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import TeaCacheConfig
from model.transformer import EchoMimicTransformer


class TeaCache:
    """Runs the network through the cache; one instance per sampling run."""

    def __init__(self, cfg: TeaCacheConfig) -> None:
        self.cfg = cfg
        self.skipped = 0
        self._signal: dict[str, Tensor] = {}
        self._moved: dict[str, float] = {}
        self._residual: dict[str, Tensor] = {}

    def __call__(
        self, network: EchoMimicTransformer, key: str, step: int, x: Tensor, t: Tensor, **given: Any
    ) -> Tensor:
        """The network's velocity; ``key`` names the branch and window."""
        if self.cfg.threshold <= 0:
            return network(x, t, **given)
        state = network.embed(x, t, **given)
        if self._compute(key, step, state.e0):
            tokens = network.run_blocks(state)
            self._residual[key] = tokens - state.tokens
        else:
            self.skipped += 1
            tokens = state.tokens + self._residual[key]
        return network.project(tokens, state)

    def _compute(self, key: str, step: int, signal: Tensor) -> bool:
        last = self._signal.get(key)
        self._signal[key] = signal
        if step < self.cfg.warmup or last is None or last.shape != signal.shape:
            self._moved[key] = 0.0
            return True
        relative = float((signal - last).abs().mean() / last.abs().mean().clamp(min=torch.finfo(torch.float32).tiny))
        self._moved[key] += float(np.polyval(self.cfg.coefficients, relative))
        if self._moved[key] < self.cfg.threshold:
            return False
        self._moved[key] = 0.0
        return True
