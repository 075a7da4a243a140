"""From noise to latents along the flow: which noise levels, and how one step is taken.

σ = s·u / (1 + (s−1)·u) for u falling evenly from 1 to 0. `euler` reproduces diffusers' FlowMatchEuler as the released
script configures it (its smallest u is itself shifted once before: the last non-zero σ is 0.0244 at s = 5). `unipc` and
`dpmpp` are diffusers' multistep solvers, given these levels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.errors import ConfigError
from model.config import SamplerConfig

TRAIN_STEPS = 1000  # of the released schedulers; fixes the smallest u


class Solver:
    """Takes the steps of one sampling run; ``sigmas`` float64 [steps + 1], the last one 0."""

    def __init__(self, cfg: SamplerConfig) -> None:
        if cfg.steps < 1:
            raise ConfigError(f"sampler.steps is {cfg.steps}; at least 1 is needed.")
        self.sigmas = noise_levels(cfg)
        self._multistep = None if cfg.scheduler == "euler" else _diffusers(cfg, self.sigmas)

    def step(self, number: int, velocity: Tensor, x: Tensor) -> Tensor:
        """x at σ[number + 1] from x and its velocity at σ[number]; float32, steps in order."""
        if self._multistep is None:
            return x + float(self.sigmas[number + 1] - self.sigmas[number]) * velocity
        t = self._multistep.timesteps[number]
        moved: Tensor = self._multistep.step(velocity, t, x, return_dict=False)[0]
        return moved


def noise_levels(cfg: SamplerConfig) -> Tensor:
    """σ of every evaluation and a final 0, float64 [steps + 1]."""
    shift = cfg.shift
    if cfg.scheduler == "euler":
        low = _shifted(np.array(1 / TRAIN_STEPS), shift)  # diffusers: σ_min is shifted at construction …
        u = np.linspace(1.0, float(low), cfg.steps)  # … and again with the rest
    else:
        top = 1.0 - 1 / TRAIN_STEPS if cfg.scheduler == "unipc" else 1.0
        u = np.linspace(top, 0.0, cfg.steps + 1)[:-1]
    return torch.tensor(np.append(_shifted(u, shift), 0.0))


def _shifted(u: np.ndarray, shift: float) -> np.ndarray:
    return np.asarray(shift * u / (1 + (shift - 1) * u))


def _diffusers(cfg: SamplerConfig, sigmas: Tensor) -> Any:
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    common = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": TRAIN_STEPS}
    solver: Any
    if cfg.scheduler == "unipc":
        solver = UniPCMultistepScheduler(solver_order=2, solver_type="bh2", **common)
    else:
        solver = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_type="midpoint", **common)
    solver.set_timesteps(cfg.steps)
    solver.sigmas = sigmas.float()
    solver.timesteps = sigmas[:-1].float() * TRAIN_STEPS
    solver.set_begin_index(0)
    return solver
