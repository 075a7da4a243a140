"""Checkpoints that appear whole or not at all: step-N.tmp → rename → LATEST.

A committed checkpoint holds ``state/`` (weights, Adam moments, EMA: safetensors, read back at any world size,
`train.checkpoints.state_storage`), ``progress.json``, ``run.json`` and the digests of all files; at the end of a stage also
``raw.safetensors`` and ``ema.safetensors`` under the released key names, and then it is pinned: retention never deletes
it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from configs.folders import PROGRESS_FILE
from configs.runtime import disk
from train import parallel
from train.checkpoints import files, manifest, retention
from train.checkpoints.info import RUN_FILE, CheckpointInfo
from train.checkpoints.state_storage import STATE, StateWriter
from train.state import State, Weights


def save(run: Path, state: State, info: CheckpointInfo, *, keep_last: int, pin: str | None = None) -> Path:
    """Commit the state as ``run/step-N``; on all ranks together.

    Args:
        info: of the run; the digests of exported weights are added.
        keep_last: unpinned checkpoints to keep.
        pin: name of the stage that ends here: exports the weights and pins the checkpoint.

    Raises:
        EchoForgeError: the disk refused; what was committed before is untouched.
    """
    final = run / f"step-{state.progress.step:06d}"
    staging = final.with_name(final.name + ".tmp")
    parallel.on_main(lambda: _clear(staging), "preparing a checkpoint")
    distributed = dist.is_initialized()
    writer = StateWriter(staging / STATE)
    with parallel.one_process_is_meant():
        dcp.save(state.tensors(), storage_writer=writer, no_dist=not distributed)
    exports = {kind: gather(state, kind) for kind in ("raw", "ema")} if pin is not None else {}

    def commit() -> None:
        digests = {kind: _export(tensors, staging / f"{kind}.safetensors") for kind, tensors in exports.items()}
        if pin is not None:
            (staging / retention.PIN_FILE).write_text(pin + "\n", "utf-8")
        (staging / RUN_FILE).write_text(replace(info, digests=digests).to_json(), "utf-8")
        progress = json.dumps(asdict(state.progress), indent=2, sort_keys=True)
        (staging / PROGRESS_FILE).write_text(progress + "\n", "utf-8")
        manifest.write(staging, {f"{STATE}/{name}": digest for name, digest in writer.digests.items()})
        _sync_tree(staging)
        replaced = final.with_name(final.name + ".old")
        if os.path.lexists(final):
            retention.remove(replaced)
            final.rename(replaced)
        staging.rename(final)
        retention.remove(replaced)
        disk.sync(run)
        pointer = run / (retention.LATEST + ".tmp")
        files.write_new(pointer, final.name + "\n")
        pointer.replace(run / retention.LATEST)
        retention.retain(run, keep_last)

    parallel.on_main(commit, "committing a checkpoint")
    return final


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


def _clear(path: Path) -> None:
    retention.remove(path)
    path.mkdir(parents=True)


def _sync_tree(root: Path) -> None:
    for path in [*root.rglob("*"), root]:
        disk.sync(path)
