"""Parallelism applied to the network from outside, in this order: checkpointing → compile per block → FSDP2.

One process without torchrun is the plain path: nothing is wrapped. Under torchrun the same code shards over the ranks
(HSDP when ``optim.shard`` is smaller than the world): fp32 parameters, bf16 by autocast, fp32 gradient reduction.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from configs.errors import ConfigError, EchoForgeError
from model.attention import fused_operators
from train.config import OptimConfig

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Who this process is. ``mesh`` is None in the plain single-process path."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None

    @property
    def main(self) -> bool:
        """Does this rank write files and print?"""
        return self.rank == 0


def start(cfg: OptimConfig, device: str | None = None) -> World:
    """Join the process group when torchrun started us, choose the device, set the CPU threads.

    Raises:
        ConfigError: ``optim.shard`` does not divide the number of ranks.
        EchoForgeError: the environment names a part of what torchrun sets.
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_environment()
    if "RANK" not in os.environ:
        return World(0, 1, torch.device(kind), None)
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("cuda:nccl,cpu:gloo" if kind == "cuda" else "gloo", timeout=timedelta(minutes=30))
    size = dist.get_world_size()
    shard = cfg.shard or size
    if size % shard:
        raise ConfigError(
            f"optim.shard is {shard}, which does not divide the {size} ranks; use a divisor, or 0 for all."
        )
    mesh = init_device_mesh(kind, (size // shard, shard), mesh_dim_names=("replicate", "shard"))
    where = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
    return World(dist.get_rank(), size, where, mesh)


def _check_environment() -> None:
    """Raise when only some of torchrun's variables are there: every process would wait, or train alone."""
    numbers = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    if numbers["RANK"] is None:
        if numbers["WORLD_SIZE"] in (None, "1"):
            return
        raise EchoForgeError(
            f"WORLD_SIZE is {numbers['WORLD_SIZE']}, but RANK is not set; start ranks with torchrun, or unset WORLD_SIZE."
        )
    for name, value in (numbers | {"MASTER_ADDR": os.environ.get("MASTER_ADDR")}).items():
        if not value:
            raise EchoForgeError(f"RANK is set, but {name} is not; start ranks with torchrun, or unset RANK.")
        if name in numbers and not value.isdigit():
            raise EchoForgeError(f"{name} is '{value}', not a number; start ranks with torchrun, which sets it.")


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def apply(network: nn.Module, cfg: OptimConfig, world: World) -> None:
    """Prepare ``network`` (with its ``blocks``) in place; parameter names stay as they are."""
    blocks: Any = network.blocks
    for block in blocks:
        if cfg.activation_checkpoint != "none":
            block.forward = _checkpointed(block.forward, cfg.activation_checkpoint == "selective")
        if cfg.compile:
            block.compile(fullgraph=True)
    if world.mesh is None:
        return
    mesh = world.mesh["shard"] if world.mesh.size(0) == 1 else world.mesh
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def sync_gradients(network: nn.Module, on: bool) -> None:
    """Reduce gradients after the next backward, or only accumulate them on this rank."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(on)


def on_main(action: Callable[[], T], what: str) -> T | None:
    """Run ``action`` on rank 0 alone, and let every rank learn of its failure, so that nobody waits for a dead peer.

    Returns its result on rank 0, None elsewhere.

    Raises:
        EchoForgeError: it failed on rank 0.
    """
    result, failure = None, [None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            result = action()
        except Exception as error:
            if not dist.is_initialized():
                raise
            said = str(error) if isinstance(error, EchoForgeError) else f"{type(error).__name__}: {error}"
            failure = [said]  # type: ignore[list-item]
    if dist.is_initialized():
        dist.broadcast_object_list(failure, src=0)
        if failure[0] is not None:
            raise EchoForgeError(f"{what} failed on rank 0: {failure[0]}")
    return result


def on_all(action: Callable[[], None]) -> None:
    """Run ``action`` on every rank at once; where it fails on one, all raise the same, and nobody waits for a dead peer.

    Raises:
        EchoForgeError: that of the first rank that raised one.
    """
    failure = ""
    try:
        action()
    except EchoForgeError as error:
        if not dist.is_initialized():
            raise
        failure = str(error)
    if dist.is_initialized():
        failures: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
        if first := next(filter(None, failures), None):
            raise EchoForgeError(first)


@contextmanager
def one_process_is_meant() -> Iterator[None]:
    """Saving and loading from one process without the warning that torch.distributed is off."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def rank_and_size() -> tuple[int, int]:
    """This process among those that train together; (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def any_of(value: bool) -> bool:
    """Whether ``value`` holds on any rank: one byte over gloo, 0.2 ms between two ranks of one machine."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    flag = torch.tensor([value], dtype=torch.uint8)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def mean(value: float) -> float:
    """Mean of one number over the ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return float(sum(values) / len(values))


def _checkpointed(forward: Callable[..., Any], selective: bool) -> Callable[..., Any]:
    if not selective:
        return lambda *a, **k: checkpoint(forward, *a, use_reentrant=False, **k)
    saved = fused_operators()

    def policy(_ctx: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in saved else CheckpointPolicy.PREFER_RECOMPUTE

    def contexts() -> Any:
        return create_selective_checkpoint_contexts(policy)

    return lambda *a, **k: checkpoint(forward, *a, use_reentrant=False, context_fn=contexts, **k)
