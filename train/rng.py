"""Randomness as a function: every draw comes from hash(seed, step, slot, purpose).

No generator state is carried from step to step, so none is saved; the draws of a global slot are the same at any
world size and after any number of resumes. All draws are made on the CPU in fp32, so they do not depend on the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """A CPU generator whose stream is a pure function of its arguments."""
    text = "\x1f".join([str(int(seed)), *(f"{type(k).__name__[0]}{k}" for k in keys)])
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(number & (2**63 - 1))


def uniform(seed: int, *keys: int | str) -> float:
    """One number in [0, 1)."""
    return float(torch.rand((), generator=generator(seed, *keys), dtype=torch.float64))


def choice(weights: Mapping[str, float], seed: int, *keys: int | str) -> str:
    """One name with probability proportional to its weight; the mapping's order does not matter."""
    names = sorted(name for name, weight in weights.items() if weight > 0)
    point = uniform(seed, *keys) * sum(weights[name] for name in names)
    for name in names[:-1]:
        point -= weights[name]
        if point < 0:
            return name
    return names[-1]


def noise(shape: Sequence[int], seed: int, *keys: int | str) -> Tensor:
    """Standard normal fp32 on the CPU."""
    return torch.randn(tuple(shape), generator=generator(seed, *keys))


def stratified(slot: int, slots: int, seed: int, step: int) -> float:
    """The timestep draw u in [0, 1) of one slot: slot i of n draws from [i/n, (i+1)/n), so every batch covers all t."""
    return (slot + uniform(seed, step, slot, "t")) / slots
