"""Exponential moving average of the weights: fp32, sharded as the weights are, updated by one fused lerp.

The averages of DTensor parameters are DTensors, so a distributed checkpoint stores every shard and loads them back
at any world size; plain tensors stay plain. The average lives on across the switches of task mix: it is what the
paper calls Soup-of-Tasks' inter-task EMA.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from train.config import EMAConfig


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class EMA:
    """Averages of a module's floating-point parameters. ``state`` maps parameter names to fp32 (D)Tensors."""

    def __init__(self, module: nn.Module, cfg: EMAConfig) -> None:
        self.cfg = cfg
        self._sharded = [m for m in module.modules() if isinstance(m, FSDPModule)]
        self._parameters = {n: p for n, p in module.named_parameters() if p.is_floating_point()}
        self.state: dict[str, Tensor] = {n: p.detach().float().clone() for n, p in self._parameters.items()}

    def decay(self, updates: int, ceiling: float | None = None) -> float:
        """The decay of update number ``updates`` (0-based): min(decay, (1 + n) / (10 + n)) with warm-up."""
        limit = self.cfg.decay if ceiling is None else ceiling
        return min(limit, (1 + updates) / (10 + updates)) if self.cfg.warmup else limit

    @torch.no_grad()
    def update(self, updates: int, ceiling: float | None = None) -> None:
        """average ← average + (1 − decay) (weight − average), on each rank's own shards."""
        averages = [_local(t) for t in self.state.values()]
        weights = [_local(self._parameters[n].detach()).float() for n in self.state]
        torch._foreach_lerp_(averages, weights, 1.0 - self.decay(updates, ceiling))

    @contextmanager
    @torch.no_grad()
    def swapped(self) -> Iterator[None]:
        """The module computes with the averages inside the block; the weights are back after it, bit for bit.

        Values are exchanged in place (not pointers), so a compiled forward sees them.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self.state.items():
            mine, theirs = _local(average), _local(self._parameters[name].detach())
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)
        for module in self._sharded:
            module.reshard()  # FSDP keeps the root's gathered weights after a forward; the next one gathers them again
