"""umT5-xxl encoder through transformers, from the original ``.pth`` or a transformers folder.

A batch is padded to its longest text and masked, so a text gives the same rows alone and in a batch; padded rows are
cut off. The transformer pads on with zeros, as released.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.errors import EchoForgeError, MissingWeights
from configs.weights import locate
from model import layouts
from model.checkpoint import load_weights
from model.config import TextEncoderConfig
from model.encoders.files import digest
from model.encoders.text import TextEncoder


class Umt5Encoder(TextEncoder):
    """Captions → umT5 rows."""

    name = "umT5-xxl"

    def __init__(self, network: Any, tokenizer: Any, digest: str, max_tokens: int, device: torch.device | str) -> None:
        self.network, self.tokenizer, self.digest = network.to(device).eval(), tokenizer, digest
        self.dim, self._max, self._device = network.config.d_model, max_tokens, device

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """See :meth:`TextEncoder.encode`."""
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._max,
            add_special_tokens=True,
            return_tensors="pt",
        )
        mask = tokens["attention_mask"].to(self._device)
        rows = self.network(input_ids=tokens["input_ids"].to(self._device), attention_mask=mask).last_hidden_state
        return [row[: int(n)].float() for row, n in zip(rows, mask.sum(1), strict=True)]


def load_umt5(cfg: TextEncoderConfig, device: torch.device | str, dtype: torch.dtype) -> Umt5Encoder:
    """Load encoder and tokenizer.

    Raises:
        MissingWeights: one of them is not there.
        EchoForgeError: the file is not an umT5 encoder, or not of the configured width.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel

    where = locate("the umT5 encoder (text_encoder.path)", cfg.path)
    words = locate("the umT5 tokenizer (text_encoder.tokenizer)", cfg.tokenizer)
    try:
        tokenizer = AutoTokenizer.from_pretrained(words.parent if words.is_file() else words)
    except (OSError, ValueError) as error:
        raise MissingWeights(f"the umT5 tokenizer at {words} cannot be read ({error}).") from error
    if where.is_dir():
        network: Any = UMT5EncoderModel.from_pretrained(where, dtype=dtype)
    else:
        network = from_original(load_weights(where), str(where), dtype=dtype)
    if network.config.d_model != cfg.dim:
        raise EchoForgeError(f"{where} gives rows of {network.config.d_model}, text_encoder.dim is {cfg.dim}.")
    return Umt5Encoder(network, tokenizer, digest(Path(where)), cfg.max_tokens, device)


def from_original(
    state: Mapping[str, Tensor], source: str, dim_head: int | None = None, dtype: torch.dtype | None = None
) -> Any:
    """A transformers encoder with the weights of an original state dict; its sizes are read off the shapes.

    Raises:
        EchoForgeError: names of another network.
    """
    from transformers import UMT5EncoderModel

    if "token_embedding.weight" not in state or "blocks.0.pos_embedding.embedding.weight" not in state:
        raise EchoForgeError(f"{source} is not an umT5 encoder: it has no token_embedding or per-layer pos_embedding.")
    named = layouts.t5(state)
    with torch.device("meta"):
        network = UMT5EncoderModel(sizes(state))
    layouts.require(list(network.state_dict()), named, source)
    wanted = dtype or state["token_embedding.weight"].dtype
    network.load_state_dict({k: v.to(wanted) for k, v in named.items()}, assign=True)
    return network


def sizes(state: Mapping[str, Tensor]) -> Any:
    """The transformers configuration that the shapes of an original state dict ask for."""
    from transformers import UMT5Config

    vocabulary, dim = state["token_embedding.weight"].shape
    buckets, heads = state["blocks.0.pos_embedding.embedding.weight"].shape
    return UMT5Config(
        vocab_size=vocabulary,
        d_model=dim,
        d_kv=state["blocks.0.attn.q.weight"].shape[0] // heads,
        d_ff=state["blocks.0.ffn.fc1.weight"].shape[0],
        num_layers=sum(key.endswith(".attn.q.weight") for key in state),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=128,
        dropout_rate=0.0,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="gated-gelu",  # tanh approximation, as the original
    )
