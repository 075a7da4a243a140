"""Checkpoints that appear whole or not at all: step-N.tmp → rename → LATEST.

A committed checkpoint holds ``state/`` (weights, Adam moments, EMA: safetensors, read back at any world size,
`train.checkpoints.state_storage`), ``progress.json``, ``run.json`` and the digests of all files; at the end of a stage also
``raw.safetensors`` and ``ema.safetensors`` under the released key names, and then it is pinned: retention never deletes
it. Nothing in a checkpoint is run, links in it are not followed, and what is read is compared with its digest first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
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
from configs.errors import ConfigError, EchoForgeError
from configs.folders import PROGRESS_FILE
from configs.runtime import disk
from configs.runtime.shown import one_line
from model.config import TransformerConfig
from train import parallel
from train.checkpoints import files, manifest, old_state, state_storage
from train.checkpoints.files import Damaged
from train.checkpoints.state_storage import StateReader, StateWriter
from train.ema import EMA

LATEST = "LATEST"
RUN_FILE = "run.json"
PIN_FILE = "pinned"
STATE = "state"
_NAME = re.compile(r"step-([0-9]{1,18})(\.tmp|\.old)?", re.ASCII)
"""A checkpoint, one that is being written, and one that is being deleted."""
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
    """Committed checkpoints of a run, oldest first.

    Raises:
        EchoForgeError: one of them is a link: it would be read, renamed and deleted somewhere else.
    """
    found = [p for p in _ours(run) if not _suffix(p) and is_checkpoint(p)]
    if link := next((p for p in found if p.is_symlink()), None):
        raise EchoForgeError(f"checkpoint {link.name} of {run} is a link; put the folder itself in its place.")
    return sorted(found, key=_step)


def latest(run: Path) -> Path | None:
    """The newest committed checkpoint, or None. (LATEST names it too, for other programs.)"""
    return paths[-1] if (paths := committed(run)) else None


def is_checkpoint(path: Path) -> bool:
    """Was this folder committed? (It may be damaged.)"""
    return any(os.path.lexists(path / name) for name in (PROGRESS_FILE, manifest.MANIFEST))


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
    writer = StateWriter(staging / STATE)
    with _alone_is_fine():
        dcp.save(state.tensors(), storage_writer=writer, no_dist=not distributed)
    exports = {kind: gather(state, kind) for kind in ("raw", "ema")} if pin is not None else {}

    def commit() -> None:
        digests = {kind: _export(tensors, staging / f"{kind}.safetensors") for kind, tensors in exports.items()}
        if pin is not None:
            (staging / PIN_FILE).write_text(pin + "\n", "utf-8")
        _write_json(staging / RUN_FILE, about | {"digests": digests})
        _write_json(staging / PROGRESS_FILE, asdict(state.progress))
        manifest.write(staging, {f"{STATE}/{name}": digest for name, digest in writer.digests.items()})
        _sync_tree(staging)
        replaced = final.with_name(final.name + ".old")
        if os.path.lexists(final):
            _remove(replaced)
            final.rename(replaced)
        staging.rename(final)
        _remove(replaced)
        disk.sync(run)
        pointer = run / (LATEST + ".tmp")
        files.write_new(pointer, final.name + "\n")
        pointer.replace(run / LATEST)
        retain(run, keep_last)

    parallel.on_main(commit, "committing a checkpoint")
    return final


def load(path: Path, state: State) -> None:
    """Read a checkpoint into the live state, at any world size; on all ranks together.

    Every file is compared with its digest; each rank takes a share of them, that of the state which it wrote.

    Raises:
        EchoForgeError: the checkpoint does not fit the network, or is damaged.
    """
    rank, world = parallel.rank_and_size()

    def check() -> None:
        _check(path, lambda name: state_storage.writer_of(name.removeprefix(f"{STATE}/")) % world == rank)

    parallel.on_all(check)
    progress = _progress(path)
    _load(path, state.tensors())
    state.progress.__dict__.update(asdict(progress))


def load_weights(path: Path, network: nn.Module, weights: Weights) -> None:
    """Read only the raw or averaged weights of a checkpoint into ``network`` (sharded or not).

    Raises:
        EchoForgeError: as :func:`load`; only the files that are read are compared with their digests.
    """
    prefix = "model." if weights == "raw" else "ema."
    named = {f"{prefix}{name}": p.detach() for name, p in network.named_parameters()}
    metadata = f"{STATE}/{state_storage.METADATA}"
    _check(path, lambda name: name == metadata)
    with _named(path):
        wanted = {f"{STATE}/{name}" for name in _reader(path).files_of(named)}
    _check(path, lambda name: name in wanted)
    _load(path, named)


def exported(path: Path, weights: Weights) -> Path | None:
    """The file of exported weights in a pinned checkpoint; None in others.

    Raises:
        EchoForgeError: it is damaged.
    """
    name = f"{weights}.safetensors"
    _check(path, lambda other: other == name)
    if not os.path.lexists(path / name):
        return None
    with _named(path):
        os.close(files.open_regular(path / name))
    return path / name


def digest(path: Path, weights: Weights) -> str:
    """The digest of the exported weights of a pinned checkpoint, 16 hex digits."""
    with _named(path):
        digests = _run(path).get("digests")
        if not isinstance(digests, dict) or not isinstance(digests.get(weights), str):
            raise Damaged(f"{RUN_FILE} has no digest of the {weights} weights")
        return str(digests[weights])


def read_about(path: Path) -> dict[str, Any]:
    """What ``run.json`` of a checkpoint says; its configuration with the names of today.

    Raises:
        EchoForgeError: it is damaged.
    """
    with _named(path):
        about = _run(path)
        for group in ("model", "train"):
            if not isinstance(about.get(group, {}), dict):
                raise Damaged(f"{RUN_FILE} holds no configuration under '{group}'")
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
    before, now = about.get("model", {}).get("transformer"), strict.to_dict(cfg)
    if not isinstance(before, dict):
        raise EchoForgeError(f"{what}: its {RUN_FILE} does not say of which network it is; {_restore()}.")
    if changes := difference.differences(before, now, "transformer"):
        why = difference.summary(changes, about.get("preset"), preset)
        raise EchoForgeError(f"{what}: its network is another one ({why}); use --preset and --set of that run.")


def clean(run: Path) -> None:
    """Remove what a killed process left half-written or half-deleted. Of a link only the link goes.

    Raises:
        EchoForgeError: a folder is in the place of LATEST, so that no commit could end.
    """
    if (pointer := run / LATEST).is_dir() and not pointer.is_symlink():
        raise EchoForgeError(f"{pointer} is a folder, where the name of the newest checkpoint is written; remove it.")
    leftover = [path for path in _ours(run) if _suffix(path)]
    for path in leftover:
        final = path.with_suffix("")
        if _suffix(path) == ".old" and not path.is_symlink() and not os.path.lexists(final) and is_pinned(path):
            path.rename(final)
        else:
            _remove(path)


def retain(run: Path, keep_last: int) -> None:
    """Delete the oldest unpinned checkpoints beyond ``keep_last`` (at least 1); the newest is never deleted."""
    loose = [p for p in committed(run) if not is_pinned(p)]
    for path in loose[: max(0, len(loose) - max(1, keep_last))]:
        doomed = path.with_name(path.name + ".old")
        _remove(doomed)
        path.rename(doomed)
        _remove(doomed)


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


def _ours(run: Path) -> list[Path]:
    """What lies in a run under the name of a checkpoint, whole or not."""
    return [path for path in run.glob("step-*") if _NAME.fullmatch(path.name)]


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _suffix(path: Path) -> str:
    match = _NAME.fullmatch(path.name)
    return (match[2] or "") if match else ""


def _check(path: Path, wanted: Callable[[str], bool]) -> None:
    """Compare files of a checkpoint with their digests; those made before there were any pass.

    Raises:
        EchoForgeError: one is damaged.
    """
    with _named(path):
        if os.path.lexists(path / STATE) and not stat.S_ISDIR(os.lstat(path / STATE).st_mode):
            raise Damaged(f"{STATE} is not a folder")
        if os.path.lexists(path / manifest.MANIFEST) or os.path.lexists(path / STATE / state_storage.METADATA):
            manifest.check(path, wanted)


def _run(path: Path) -> dict[str, Any]:
    _check(path, lambda name: name == RUN_FILE)
    about = files.read_json(path / RUN_FILE)
    if files.is_deep(about):
        raise Damaged(f"{RUN_FILE} is nested too deeply")
    return about


def _progress(path: Path) -> Progress:
    with _named(path):
        try:
            progress = strict.build(Progress, files.read_json(path / PROGRESS_FILE))
        except ConfigError as error:
            raise Damaged(f"{PROGRESS_FILE} is not what a run writes") from error
        if not all(0 <= number < 2**63 for number in (progress.step, progress.stage, progress.updates)):
            raise Damaged(f"{PROGRESS_FILE} counts {progress.step} steps, {progress.updates} updates")
        return progress


def _reader(path: Path) -> StateReader:
    """Raises Damaged."""
    old = not os.path.lexists(path / STATE / state_storage.METADATA) and os.path.lexists(
        path / STATE / old_state.METADATA
    )
    return (old_state if old else state_storage).read(path / STATE)


def _load(path: Path, tensors: dict[str, Tensor]) -> None:
    """Read ``tensors`` by name, in place; a collective where there are several ranks."""
    with _named(path):
        reader = _reader(path)
    try:
        with _alone_is_fine():
            dcp.load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except dcp.api.CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        with _named(path):
            if isinstance(cause, Damaged):
                raise cause from error
        first = one_line((str(cause).strip().splitlines() or [type(cause).__name__])[0])[:500]
        raise EchoForgeError(
            f"checkpoint {path.name} of {path.parent} cannot be read into this network: {first}"
        ) from error


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say of which checkpoint something is damaged, and what to do."""
    try:
        yield
    except (Damaged, OSError) as error:
        cause = error if isinstance(error, Damaged) else files.reason(error)
        raise EchoForgeError(
            f"checkpoint {path.name} of {path.parent} is damaged: {cause}; {_restore(path)}."
        ) from error


def _restore(path: Path | None = None) -> str:
    """What to do about a damaged checkpoint."""
    older = [p.name for p in committed(path.parent) if _step(p) < _step(path)] if path else []
    if older:
        return f"copy it anew, or delete this folder to go on from {older[-1]}"
    return "copy it anew, or train again into another folder"


def _remove(path: Path) -> None:
    """Delete a folder with all in it, or a file; of a link only the link. Whoever watches may keep a part."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    _remove(path)
    path.mkdir(parents=True)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", "utf-8")


def _sync_tree(root: Path) -> None:
    for path in [*root.rglob("*"), root]:
        disk.sync(path)
