"""A transformer for generating, from whatever the user points at: a run, a checkpoint, or a file of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch.distributed.checkpoint.api import CheckpointException

from configs import folders
from configs.errors import EchoForgeError
from configs.schema import Config
from model.checkpoint import load_into, load_transformer, load_weights
from model.config import TransformerConfig
from model.transformer import EchoMimicTransformer
from train.checkpoints import loading, retention
from train.state import Weights

T = TypeVar("T")


def find(where: str | Path) -> Path:
    """The checkpoint folder or weights file that ``where`` stands for.

    Raises:
        EchoForgeError: it is neither a run with a checkpoint, a checkpoint, nor a file.
    """
    path = Path(where)
    if path.is_file() or retention.is_checkpoint(path):
        return path
    step = retention.latest(path) if path.is_dir() else None
    if step is None:
        what = folders.found(where, "run")
        raise EchoForgeError(
            f"'{where}' holds no checkpoint: {what}; give a run made by `train`, or a file of weights."
        )
    return step


def check_network(where: str | Path, config: Config) -> None:
    """Fail before anything is loaded: nothing at ``where``, or a checkpoint of another network than configured.

    Raises:
        EchoForgeError: as :func:`find`; else names the keys with both values.
    """

    def check(step: Path) -> None:
        if not step.is_file():
            info = loading.read_info(step)
            info.check_transformer(config.model.transformer, f"'{where}' does not fit", config.preset)

    _from_newest(where, check)


def _from_newest(where: str | Path, read: Callable[[Path], T]) -> T:
    """``read`` what :func:`find` finds; once more from the newer checkpoint when training deleted it meanwhile.

    Raises:
        EchoForgeError: as :func:`find`; a named checkpoint that was deleted.
    """
    while True:
        step = find(where)
        try:
            return read(step)
        except (Exception, CheckpointException) as error:  # torch's is no Exception
            if step.exists():
                raise
            if step == Path(where):
                raise EchoForgeError(
                    f"'{where}' was deleted while it was read; name its run for the newest."
                ) from error


def load_network(
    where: str | Path, cfg: TransformerConfig, device: str, weights: Weights = "ema"
) -> EchoMimicTransformer:
    """The transformer with fp32 weights, ready to generate.

    Args:
        where: a run's folder (its last checkpoint), a ``step-…`` folder, or a weights file.
        weights: of a checkpoint: the average or the raw ones.

    Raises:
        EchoForgeError: nothing there, or weights of another network.
    """

    def load(step: Path) -> EchoMimicTransformer:
        if step.is_file():
            return load_transformer(cfg, step, device=device, dtype=torch.float32).eval()
        network = EchoMimicTransformer(cfg)
        if exported := loading.exported(step, weights):
            load_into(network, load_weights(exported), source=str(exported))
        else:
            loading.load_weights(step, network, weights)
        return network.to(device).eval()

    return _from_newest(where, load)


def autocast_for(device: str) -> torch.dtype | None:
    """bf16 where it is fast: on GPUs, and on CPUs that multiply it natively."""
    if device.startswith("cuda") or (
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        return torch.bfloat16
    return None
