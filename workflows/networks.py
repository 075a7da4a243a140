"""A transformer for generating, from whatever the user points at: a run, a checkpoint, or a file of weights."""

from __future__ import annotations

from pathlib import Path

import torch

from configs import folders
from configs.errors import EchoForgeError
from configs.schema import Config
from model.checkpoint import load_into, load_transformer, load_weights
from model.config import TransformerConfig
from model.transformer import EchoMimicTransformer
from train import checkpoint


def find(where: str | Path) -> Path:
    """The checkpoint folder or weights file that ``where`` stands for.

    Raises:
        EchoForgeError: it is neither a run with a checkpoint, a checkpoint, nor a file.
    """
    path = Path(where)
    if path.is_file() or checkpoint.is_checkpoint(path):
        return path
    step = checkpoint.latest(path) if path.is_dir() else None
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
    step = find(where)
    if not step.is_file():
        about = checkpoint.read_about(step)
        checkpoint.check_transformer(about, config.model.transformer, f"'{where}' does not fit", config.preset)


def load_network(
    where: str | Path, cfg: TransformerConfig, device: str, weights: checkpoint.Weights = "ema"
) -> EchoMimicTransformer:
    """The transformer with fp32 weights, ready to generate.

    Args:
        where: a run's folder (its last checkpoint), a ``step-…`` folder, or a weights file.
        weights: of a checkpoint: the average or the raw ones.

    Raises:
        EchoForgeError: nothing there, or weights of another network.
    """
    step = find(where)
    if step.is_file():
        return load_transformer(cfg, step, device=device, dtype=torch.float32).eval()
    network = EchoMimicTransformer(cfg)
    if exported := checkpoint.exported(step, weights):
        load_into(network, load_weights(exported), source=str(exported))
    else:
        checkpoint.load_weights(step, network, weights)
    return network.to(device).eval()


def autocast_for(device: str) -> torch.dtype | None:
    """bf16 where it is fast: on GPUs, and on CPUs that multiply it natively."""
    if device.startswith("cuda") or (
        torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        return torch.bfloat16
    return None
