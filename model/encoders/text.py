"""The text encoder that a configuration names, and padding of its rows: `umt5` is what Wan was trained with; `tiny` hashes words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model.config import TextEncoderConfig
from model.encoders.base import TextEncoder


def load_text_encoder(
    cfg: TextEncoderConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """The text encoder that ``cfg`` names, computing in ``dtype`` on ``device``.

    Raises:
        MissingWeights: `umt5` without its weights or tokenizer.
        EchoForgeError: the file is not an umT5 encoder.
    """
    if cfg.kind == "tiny":
        from model.encoders.tiny import TinyTextEncoder

        return TinyTextEncoder(cfg.dim, cfg.max_tokens, device)
    from model.encoders.umt5 import load_umt5

    return load_umt5(cfg, device, dtype)


def pad_text(rows: Sequence[Tensor]) -> Tensor:
    """Rows [L_i, dim] of several texts → [B, max L, dim] with zero rows past each true length.

    The transformer pads on to its ``text_len`` with zeros and attends to those rows: released behaviour, so an encoder's
    own output for padding must never get here.
    """
    return pad_sequence(list(rows), batch_first=True)
