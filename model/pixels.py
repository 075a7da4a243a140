"""Pictures between the bytes that people see and the −1…1 that the codec takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def from_bytes(frames: np.ndarray) -> Tensor:
    """uint8 [..., F, H, W, 3] → float32 [..., 3, F, H, W] in −1..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, -4).float().div(127.5).sub(1)


def to_bytes(video: Tensor) -> np.ndarray:
    """[..., 3, F, H, W] in −1..1 → uint8 [..., F, H, W, 3], rounded and clipped."""
    return ((video + 1) * 127.5).round().clamp(0, 255).byte().movedim(-4, -1).cpu().numpy()
