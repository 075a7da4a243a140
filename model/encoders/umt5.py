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
from model.encoders.base import TextEncoder
from model.encoders.files import check_complete, digest, joined


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
    from transformers import UMT5EncoderModel

    where = locate("text_encoder.path", cfg.path, "umt5")
    words = locate("text_encoder.tokenizer", cfg.tokenizer, "umt5")
    tokenizer = load_tokenizer(words)
    library: Any = UMT5EncoderModel
    if where.is_dir():
        try:
            network, found = library.from_pretrained(where, dtype=dtype, output_loading_info=True)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise EchoForgeError(f"{where} is not a transformers folder of umT5 ({reason}).") from error
        check_complete(where, found["missing_keys"], found["mismatched_keys"])
    else:
        network = from_original(load_weights(where), str(where), dtype=dtype)
    if network.config.d_model != cfg.dim:
        raise EchoForgeError(f"{where} gives rows of {network.config.d_model}, text_encoder.dim is {cfg.dim}.")
    decisive = joined(digest(where), digest(words), cfg.max_tokens)
    return Umt5Encoder(network, tokenizer, decisive, cfg.max_tokens, device)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a ``tokenizer.json``, which needs no other file, or of the folder that holds one.

    Raises:
        MissingWeights: the folder holds none.
        EchoForgeError: the file cannot be read.
    """
    from transformers import PreTrainedTokenizerFast

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise MissingWeights(
            f"the umT5 tokenizer is not at {file}; let text_encoder.tokenizer name a tokenizer.json, or get the published "
            "one with `weights fetch umt5-tokenizer`."
        )
    try:
        return PreTrainedTokenizerFast(
            tokenizer_file=str(file), pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
        )
    except Exception as error:  # the tokenizers library raises plain Exception
        raise EchoForgeError(f"the umT5 tokenizer at {file} cannot be read ({str(error).splitlines()[0]}).") from error


def from_original(state: Mapping[str, Tensor], source: str, dtype: torch.dtype | None = None) -> Any:
    """A transformers encoder with the weights of an original state dict; its sizes are read off the shapes.

    Raises:
        EchoForgeError: names or shapes of another network.
    """
    from transformers import UMT5EncoderModel

    for name in ("token_embedding", "blocks.0.pos_embedding.embedding", "blocks.0.attn.q", "blocks.0.ffn.fc1"):
        if f"{name}.weight" not in state:
            raise EchoForgeError(f"{source} is not an umT5 encoder: it has no {name}.weight.")
    wanted = dtype or state["token_embedding.weight"].dtype
    named = layouts.t5({key: value.to(wanted) for key, value in state.items()})
    with torch.device("meta"):
        network = UMT5EncoderModel(sizes(state))
    layouts.require(list(network.state_dict()), named, source)
    try:
        network.load_state_dict(named, assign=True)
    except RuntimeError as error:
        raise EchoForgeError(f"{source} is not an umT5 encoder: {str(error).splitlines()[-1].strip()}") from error
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
