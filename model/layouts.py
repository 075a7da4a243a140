"""Key names of the original weight files → those of the libraries that we compute with. Names only; no tensor changes
its values, and only the two CLIP embeddings change their shape.

    Wan2.1_VAE.pth                                          → diffusers' AutoencoderKLWan
    models_t5_umt5-xxl-enc-bf16.pth                         → transformers' UMT5EncoderModel
    models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth → open_clip's VisionTransformer (the `visual.` part)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from configs.errors import EchoForgeError

State = dict[str, Tensor]

_RESIDUAL = {"0": "norm1", "2": "conv1", "3": "norm2", "6": "conv2"}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_VAE: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.head\.0\.", r"\1.norm_out."),
    (r"^(encoder|decoder)\.head\.2\.", r"\1.conv_out."),
    (r"\.middle\.([012])\.", lambda m: f".mid_block.{_MIDDLE[m[1]]}."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.upsamples\.(\d+)\.", lambda m: _up_block(int(m[1]))),
    (r"\.residual\.([0236])\.", lambda m: f".{_RESIDUAL[m[1]]}."),
    (r"\.shortcut\.", ".conv_shortcut."),
]
_T5: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
]
_CLIP: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^cls_embedding$", "class_embedding"),
    (r"^pos_embedding$", "positional_embedding"),
    (r"^head$", "proj"),
    (r"^patch_embedding\.", "conv1."),
    (r"^pre_norm\.", "ln_pre."),
    (r"^post_norm\.", "ln_post."),
    (r"^transformer\.(\d+)\.norm([12])\.", r"transformer.resblocks.\1.ln_\2."),
    (r"^transformer\.(\d+)\.attn\.to_qkv\.", r"transformer.resblocks.\1.attn.in_proj_"),
    (r"^transformer\.(\d+)\.attn\.proj\.", r"transformer.resblocks.\1.attn.out_proj."),
    (r"^transformer\.(\d+)\.mlp\.0\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^transformer\.(\d+)\.mlp\.2\.", r"transformer.resblocks.\1.mlp.c_proj."),
]


def vae(state: Mapping[str, Tensor]) -> State:
    """Original Wan VAE → diffusers."""
    return _renamed(state, _VAE)


def t5(state: Mapping[str, Tensor]) -> State:
    """Original umT5 encoder → transformers (the embedding appears under both of its names)."""
    named = _renamed(state, _T5)
    if "shared.weight" not in named:
        return named
    return named | {"encoder.embed_tokens.weight": named["shared.weight"]}


def clip(state: Mapping[str, Tensor]) -> State:
    """The `visual.` part of the original CLIP file → open_clip's tower; keys without the prefix are taken as they are."""
    visual = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")} or dict(state)
    named = _renamed(visual, _CLIP)
    for name in ("class_embedding", "positional_embedding"):
        if name in named:
            named[name] = named[name].reshape(named[name].shape[-1 if name == "class_embedding" else -2 :])
    return named


def require(own: Sequence[str], state: Mapping[str, Tensor], source: str) -> None:
    """Refuse a state dict that does not have exactly the names ``own``.

    Raises:
        EchoForgeError: names are missing or unknown; says how many and the first of each.
    """
    missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or unknown:
        first = ", ".join([*(f"no {n}" for n in missing[:1]), *(f"unknown {n}" for n in unknown[:1])])
        raise EchoForgeError(
            f"{source} is of another network: {len(missing)} tensors missing, {len(unknown)} unknown ({first})."
        )


def _renamed(state: Mapping[str, Tensor], rules: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]) -> State:
    result: State = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        result[key] = value
    return result


def _up_block(number: int) -> str:
    """Original: 3 residuals and an upsampler per stage, in one list."""
    stage, place = divmod(number, 4)
    return f".up_blocks.{stage}.resnets.{place}." if place < 3 else f".up_blocks.{stage}.upsamplers.0."
