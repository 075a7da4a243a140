"""Checkpoints that appear whole or not at all: step-N.tmp → rename → LATEST.

A committed checkpoint holds ``state/`` (torch.distributed.checkpoint: weights, Adam moments, EMA; tensors only, read
back at any world size), ``progress.json`` and ``run.json``; at the end of a stage also ``raw.safetensors`` and
``ema.safetensors`` under the released key names, and then it is pinned: retention never deletes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from configs import aliases, difference, strict
from configs.errors import EchoForgeError
from configs.folders import PROGRESS_FILE
from model.config import TransformerConfig
from train import parallel
from train.ema import EMA

LATEST = "LATEST"
RUN_FILE = "run.json"
PIN_FILE = "pinned"
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


def committed(run: Path) -> list[Path]:
    """Committed checkpoints of a run, oldest first."""
    found = [p for p in run.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit()]
    return sorted((p for p in found if (p / PROGRESS_FILE).is_file()), key=lambda p: int(p.name.removeprefix("step-")))


def latest(run: Path) -> Path | None:
    """The newest committed checkpoint, or None. (LATEST names it too, for other programs.)"""
    return paths[-1] if (paths := committed(run)) else None


def is_pinned(path: Path) -> bool:
    """Was the checkpoint committed at the end of a stage?"""
    return (path / PIN_FILE).is_file()


def save(run: Path, state: State, about: dict[str, Any], *, keep_last: int, pin: str | None = None) -> Path:
    """Commit the state as ``run/step-N``; on all ranks together.

    Args:
        about: what ``run.json`` says besides digests of the exported weights.
        keep_last: unpinned checkpoints to keep.
        pin: name of the stage that ends here: exports the weights and pins the checkpoint.

    Raises:
        EchoForgeError: the disk refused; what was committed before is untouched.
    """
    final = run / f"step-{state.progress.step:06d}"
    staging = final.with_name(final.name + ".tmp")
    parallel.on_main(lambda: _clear(staging), "preparing a checkpoint")
    distributed = dist.is_initialized()
    with _alone_is_fine():
        dcp.save(state.tensors(), checkpoint_id=str(staging / "state"), no_dist=not distributed)
    exports = {kind: gather(state, kind) for kind in ("raw", "ema")} if pin is not None else {}

    def commit() -> None:
        digests = {kind: _export(tensors, staging / f"{kind}.safetensors") for kind, tensors in exports.items()}
        if pin is not None:
            (staging / PIN_FILE).write_text(pin + "\n", "utf-8")
        _write_json(staging / RUN_FILE, about | {"digests": digests})
        _write_json(staging / PROGRESS_FILE, asdict(state.progress))
        _sync_tree(staging)
        replaced = final.with_name(final.name + ".old")
        if final.exists():
            final.rename(replaced)
        staging.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
        _sync(run)
        pointer = run / (LATEST + ".tmp")
        pointer.write_text(final.name + "\n", "utf-8")
        pointer.replace(run / LATEST)
        retain(run, keep_last)

    parallel.on_main(commit, "committing a checkpoint")
    return final


def load(path: Path, state: State) -> None:
    """Read a checkpoint into the live state, at any world size.

    Raises:
        EchoForgeError: the checkpoint does not fit the network, or is damaged.
    """
    try:
        with _alone_is_fine():
            dcp.load(state.tensors(), checkpoint_id=str(path / "state"), no_dist=not dist.is_initialized())
        data = json.loads((path / PROGRESS_FILE).read_text("utf-8"))
    except (RuntimeError, OSError, ValueError, KeyError, dcp.api.CheckpointException) as error:
        first = str(error).strip().splitlines()[0]
        raise EchoForgeError(
            f"checkpoint {path.name} of {path.parent} cannot be read into this network: {first}"
        ) from error
    state.progress.__dict__.update(asdict(Progress(**data)))


def load_weights(path: Path, network: nn.Module, weights: Weights) -> None:
    """Read only the raw or averaged weights of a checkpoint into ``network`` (sharded or not)."""
    prefix = "model." if weights == "raw" else "ema."
    named = {f"{prefix}{name}": p.detach() for name, p in network.named_parameters()}
    with _alone_is_fine():
        dcp.load(dict(named), checkpoint_id=str(path / "state"), no_dist=not dist.is_initialized())


def digest(path: Path, weights: Weights) -> str:
    """The digest of the exported weights of a pinned checkpoint, 16 hex digits."""
    return str(json.loads((path / RUN_FILE).read_text("utf-8"))["digests"][weights])


def read_about(path: Path) -> dict[str, Any]:
    """What ``run.json`` of a checkpoint says; its configuration with the names of today."""
    about: dict[str, Any] = json.loads((path / RUN_FILE).read_text("utf-8"))
    return about | {group: aliases.modernise(about[group]) for group in ("model", "train") if group in about}


def check_transformer(about: dict[str, Any], cfg: TransformerConfig, what: str, preset: str | None) -> None:
    """Compare the network of a checkpoint with a configuration, before either is loaded.

    Args:
        about: from :func:`read_about`.
        what: begins the message.
        preset: where ``cfg`` comes from.

    Raises:
        EchoForgeError: another network; names the keys with both values, and the preset that made the checkpoint.
    """
    before, now = about["model"]["transformer"], strict.to_dict(cfg)
    if changes := difference.differences(before, now, "transformer"):
        why = difference.summary(changes, about.get("preset"), preset)
        raise EchoForgeError(f"{what}: its network is another one ({why}); use --preset and --set of that run.")


def clean(run: Path) -> None:
    """Remove what a killed process left half-written or half-deleted."""
    for path in run.glob("step-*.old"):
        if not (final := path.with_suffix("")).exists() and is_pinned(path):
            path.rename(final)
    for path in [*run.glob("step-*.tmp"), *run.glob("step-*.old")]:
        shutil.rmtree(path, ignore_errors=True)


def retain(run: Path, keep_last: int) -> None:
    """Delete the oldest unpinned checkpoints beyond ``keep_last`` (at least 1); the newest is never deleted."""
    loose = [p for p in committed(run) if not is_pinned(p)]
    for path in loose[: max(0, len(loose) - max(1, keep_last))]:
        doomed = path.with_name(path.name + ".old")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def gather(state: State, weights: Weights) -> dict[str, Tensor]:
    """Whole weights on the CPU of rank 0 (an empty dict elsewhere); a collective."""
    source = state.ema.state if weights == "ema" else {n: p.detach() for n, p in state.network.named_parameters()}
    whole: dict[str, Tensor] = {}
    for name, tensor in source.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if not dist.is_initialized() or dist.get_rank() == 0:
            whole[name] = full.detach().cpu().contiguous().clone()
    return whole


def _export(tensors: dict[str, Tensor], path: Path) -> str:
    save_file(tensors, path, metadata={"format": "pt"})
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """Saving from one process is meant: no warning that torch.distributed is off."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _clear(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", "utf-8")


def _sync_tree(root: Path) -> None:
    for path in [*root.rglob("*"), root]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
