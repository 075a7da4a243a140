"""What a step changes: the network, its optimizer, the average of its weights, and how far the run is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from train.ema import EMA

Weights = Literal["raw", "ema"]


@dataclass
class Progress:
    """Where a run stands. The position of the data and every random draw follow from ``step``."""

    step: int = 0  # the next step to do
    stage: int = 0  # index of the stage that it belongs to
    updates: int = 0  # optimizer updates done, for the EMA's warm-up
    guard: dict[str, float] = field(default_factory=dict)
    method: dict[str, float] = field(default_factory=dict)


@dataclass
class State:
    """Everything a step changes."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA
    progress: Progress

    def tensors(self) -> dict[str, Tensor]:
        """Flat names → the live (D)Tensors; loading writes into them."""
        named = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        flat = {f"model.{name}": tensor.detach() for name, tensor in named.items()}
        flat |= {f"ema.{name}": tensor for name, tensor in self.ema.state.items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                flat[f"optim.{name}.{key}"] = value
        return flat

    def checkpoint_bytes(self) -> int:
        """Of one checkpoint at the end of a stage: every tensor of the state, and the weights once more, raw and averaged.

        It is written beside the one that it replaces. Checkpoints that are kept add up; they are not counted here.
        """
        tensors = self.tensors()
        weights = sum(t.numel() * t.element_size() for name, t in tensors.items() if name.startswith("model."))
        return 2 * weights + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
