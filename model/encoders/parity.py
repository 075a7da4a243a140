"""Parity of the encoders: the recipe's weights in the original layouts, converted, against recorded outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from model import layouts
from model.codecs.wan import WanCodec, from_original
from model.encoders import clip as clip_encoder
from model.encoders import umt5
from model.parity_recipe import Tensors, recipe_weights


def t5(tensors: Tensors, metadata: Mapping[str, str]) -> Tensors:
    """``out`` of ``input_ids`` and ``attention_mask``."""
    m = {
        key: int(metadata[key])
        for key in ("vocab", "dim", "dim_attn", "dim_ffn", "num_heads", "num_layers", "num_buckets")
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (m["vocab"], m["dim"]), "norm.weight": (m["dim"],)}
    for i in range(m["num_layers"]):
        block = f"blocks.{i}."
        shapes |= {f"{block}norm{n}.weight": (m["dim"],) for n in (1, 2)}
        shapes |= {f"{block}attn.{n}.weight": (m["dim_attn"], m["dim"]) for n in "qkv"}
        shapes |= {
            f"{block}attn.o.weight": (m["dim"], m["dim_attn"]),
            f"{block}ffn.gate.0.weight": (m["dim_ffn"], m["dim"]),
            f"{block}ffn.fc1.weight": (m["dim_ffn"], m["dim"]),
            f"{block}ffn.fc2.weight": (m["dim"], m["dim_ffn"]),
            f"{block}pos_embedding.embedding.weight": (m["num_buckets"], m["num_heads"]),
        }
    network = umt5.from_original(recipe_weights(shapes), "the fixture").eval()
    with torch.no_grad():
        out = network(input_ids=tensors["input_ids"].long(), attention_mask=tensors["attention_mask"].long())
    return {"out": out.last_hidden_state.float()}


def clip(tensors: Tensors, metadata: Mapping[str, str]) -> Tensors:
    """``out`` of the normalised picture ``x``."""
    dim, layers, patch = (int(metadata[key]) for key in ("dim", "num_layers", "patch_size"))
    hidden = int(float(metadata["mlp_ratio"]) * dim)
    tokens = (int(metadata["image_size"]) // patch) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "cls_embedding": (1, 1, dim),
        "pos_embedding": (1, tokens, dim),
        "head": (dim, int(metadata["out_dim"])),
        "patch_embedding.weight": (dim, 3, patch, patch),
    }
    for name in ("pre_norm", "post_norm"):
        shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
    for i in range(layers):
        block = f"transformer.{i}."
        for name, out, given in (
            ("attn.to_qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.0", hidden, dim),
            ("mlp.2", dim, hidden),
        ):
            shapes |= {f"{block}{name}.weight": (out, given), f"{block}{name}.bias": (out,)}
        shapes |= {f"{block}norm{n}.{part}": (dim,) for n in (1, 2) for part in ("weight", "bias")}
    named = layouts.clip(recipe_weights(shapes))
    tower = clip_encoder.from_named(named, "the fixture", int(metadata["num_heads"])).eval()
    with torch.no_grad():
        return {"out": clip_encoder.penultimate(tower, tensors["x"]).float()}


def vae(tensors: Tensors, metadata: Mapping[str, str]) -> Tensors:
    """``latents`` of ``video``, and ``decoded`` of the latents (the recorded ones where there are any)."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        empty: Any = AutoencoderKLWan(base_dim=int(metadata["dim"]), z_dim=int(metadata["z_dim"]))
        theirs = empty.state_dict()
    shapes = {name: tuple(theirs[key].shape) for name, key in original_vae_names(theirs).items()}
    codec = WanCodec(from_original(recipe_weights(shapes), "the fixture"), "", "cpu")
    computed: Tensors = {}
    if "video" in tensors:
        computed["latents"] = codec.encode(tensors["video"])
    with torch.no_grad():
        computed["decoded"] = codec.decode_unclamped(tensors.get("latents", computed.get("latents")))  # type: ignore[arg-type]
    return computed


def original_vae_names(theirs: Collection[str]) -> dict[str, str]:
    """Original name → diffusers name, for every tensor of a VAE whose diffusers names are ``theirs``."""
    candidates = _original_vae_keys()
    marked: dict[str, Any] = dict.fromkeys(candidates, None)
    renamed = list(layouts.vae(marked))
    names = dict(zip(candidates, renamed, strict=True))
    return {original: name for original, name in names.items() if name in theirs}


def _original_vae_keys() -> list[str]:
    """Every key that an original Wan VAE of any width can have, in any order (a superset)."""
    leaves = [f"residual.{n}.gamma" for n in (0, 3)] + [
        f"{m}.{p}"
        for m in ("residual.2", "residual.6", "shortcut", "resample.1", "time_conv")
        for p in ("weight", "bias")
    ]
    keys = [f"{c}.{p}" for c in ("conv1", "conv2") for p in ("weight", "bias")]
    for side, stack, count in (("encoder", "downsamples", 11), ("decoder", "upsamples", 15)):
        keys += [f"{side}.{c}.{p}" for c in ("conv1", "head.2") for p in ("weight", "bias")] + [f"{side}.head.0.gamma"]
        keys += [f"{side}.{stack}.{i}.{leaf}" for i in range(count) for leaf in leaves]
        keys += [f"{side}.middle.{i}.{leaf}" for i in (0, 2) for leaf in leaves]
        keys += [
            f"{side}.middle.1.{leaf}"
            for leaf in ("norm.gamma", "to_qkv.weight", "to_qkv.bias", "proj.weight", "proj.bias")
        ]
    return keys
