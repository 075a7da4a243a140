"""Reading checkpoints, which strangers or bad disks may have changed: damage is named with what to do.

Nothing in a checkpoint is run, links in it are not followed, and what is read is compared with its digest first.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from configs import aliases, strict
from configs.errors import ConfigError, EchoForgeError
from configs.folders import PROGRESS_FILE
from configs.runtime import regular
from configs.runtime.shown import one_line
from train import parallel
from train.checkpoints import files, manifest, old_state, state_storage
from train.checkpoints.files import REMEDY, Damaged
from train.checkpoints.info import RUN_FILE, CheckpointInfo
from train.checkpoints.retention import committed, step_of
from train.checkpoints.state_storage import STATE, StateReader
from train.state import Progress, State, Weights


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
        os.close(regular.open_descriptor(path / name))
    return path / name


def digest(path: Path, weights: Weights) -> str:
    """The digest of the exported weights of a pinned checkpoint, 16 hex digits."""
    with _named(path):
        found = _info(path).digests.get(weights)
        if not isinstance(found, str):
            raise Damaged(f"{RUN_FILE} has no digest of the {weights} weights")
        return found


def read_info(path: Path) -> CheckpointInfo:
    """The run that made a checkpoint; its configuration with the names of today.

    Raises:
        EchoForgeError: ``run.json`` is damaged.
    """
    with _named(path):
        info = _info(path)
        return replace(info, model=aliases.modernise(info.model), train=aliases.modernise(info.train))


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


def _info(path: Path) -> CheckpointInfo:
    """Raises Damaged."""
    _check(path, lambda name: name == RUN_FILE)
    data = files.read_json(path / RUN_FILE)
    if files.is_deep(data):
        raise Damaged(f"{RUN_FILE} is nested too deeply")
    return CheckpointInfo.from_json(data)


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
        with parallel.one_process_is_meant():
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


def _restore(path: Path) -> str:
    """What to do about a damaged checkpoint."""
    older = [p.name for p in committed(path.parent) if step_of(p) < step_of(path)]
    return f"copy it anew, or delete this folder to go on from {older[-1]}" if older else REMEDY
