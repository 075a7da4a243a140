"""The weights of the parity fixtures, which are not stored: each is a pure function of its name and shape."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]
"""Tensors by name."""


def recipe_weights(shapes: Mapping[str, tuple[int, ...] | torch.Size]) -> Tensors:
    """The fixtures' weights, float32, from names and shapes alone."""
    return {name: _recipe(name, tuple(shape)) for name, shape in shapes.items()}


def _recipe(name: str, shape: tuple[int, ...]) -> Tensor:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    value = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        value *= np.float32(1 / np.sqrt(np.prod(shape[1:])))
    elif "norm" in name and name.endswith("weight"):
        value = 1 + np.float32(0.1) * value
    else:
        value *= np.float32(0.1)
    return torch.from_numpy(value)
