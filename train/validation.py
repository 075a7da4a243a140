"""Held-out loss at fixed noise levels with fixed noise: the one curve that can be compared over a run and between runs.

The noise of a sample depends on its id and the level alone, so it is the same at every step, world size and resume.
Nothing is dropped, no draw depends on the step, and the training draws are untouched.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.errors import EchoForgeError
from model import flow
from train import rng
from train.config import LoaderConfig
from train.data.index import open_index
from train.data.inputs import Inputs, Keep, assemble
from train.data.loader import Loader
from train.objectives.base import Context, predict, squared_error

SPLIT = "val"


class Validation:
    """The held-out samples, read once and kept as network inputs on the CPU; each rank holds every world-th one.

    Sharded ranks compute together, so all of them hold equally many: where samples are left over, some hold one that
    another rank counts.
    """

    def __init__(
        self, dataset: str | Path, loader: LoaderConfig, context: Context, *, task: str, rank: int, world: int
    ) -> None:
        self.context, self.task = context, task
        self.levels = context.cfg.log.validation_sigmas
        found = [item for item in self._read(dataset, loader) if item is not None]
        places = range(rank, -(-len(found) // world) * world, world)
        self.inputs = [(found[min(k, len(found) - 1)], k < len(found)) for k in places]  # and whether it counts here

    def _read(self, dataset: str | Path, loader: LoaderConfig) -> list[Inputs]:
        limit = self.context.cfg.log.validation_samples
        try:
            index = open_index(dataset, split=SPLIT, keep=loader.keep)
        except EchoForgeError as error:
            raise EchoForgeError(
                f"no held-out loss can be taken ({error}); add videos of split '{SPLIT}', or set log.validation_samples=0."
            ) from error
        found: list[Inputs] = []
        with Loader(
            dataset, loader, seed=0, global_batch=1, tasks=[self.task], once=True, pin=False, index=index
        ) as source:
            for stored in source:
                if len(found) >= limit:
                    break
                found.append(
                    assemble(
                        stored,
                        [Keep()],
                        self.context.prompts,
                        self.context.cfg.tasks,
                        text_len=self.context.text_len,
                        variant=self.context.variant,
                        tasks=[self.task],
                    )
                )
        return found

    @torch.no_grad()
    def losses(self, network: nn.Module | None = None) -> dict[str, float]:
        """``loss`` and ``loss/s0.1`` …: means over the held-out samples of all ranks."""
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for inputs, counts in self.inputs:
            moved = inputs.to(self.context.device)
            for level in self.levels:
                value = float(self._loss(moved, level, network)[0])
                for name in ("loss", f"loss/s{level:g}") if counts else ():
                    sums[name][0] += value
                    sums[name][1] += 1
        parts: list[Any] = [dict(sums)]
        if dist.is_initialized() and dist.get_world_size() > 1:
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, dict(sums))
        names = sorted({name for part in parts for name in part})
        return {n: sum(p[n][0] for p in parts if n in p) / sum(p[n][1] for p in parts if n in p) for n in names}

    def _loss(self, inputs: Inputs, level: float, network: nn.Module | None) -> Tensor:
        noise = rng.noise(inputs.latents.shape[1:], 0, inputs.sample_ids[0], f"validation {level:g}")
        noise = noise[None].to(inputs.latents.device)
        sigma = torch.full((1,), level, device=inputs.latents.device)
        x = flow.interpolate(inputs.latents, noise, sigma)
        prediction = predict(self.context, inputs, x, sigma, network=network)
        return squared_error(prediction, flow.velocity_target(inputs.latents, noise), torch.ones_like(inputs.generated))
