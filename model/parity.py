"""Compare with recorded outputs of the released code.

``python -m model.parity FILE.safetensors [--out OUT.safetensors]``

A fixture holds inputs and outputs of one network at a small size; its metadata says which network and how large. The
weights are not stored: each is a pure function of its name and shape (`model.parity_recipe`). What this package
computes is written under the names of the fixture's outputs. Where the fixture has them, the last line printed is the
largest absolute error, and the exit status is 1 when that is above 1e-4.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from configs.errors import EchoForgeError
from model.checkpoint import write_safetensors
from model.config import AudioNetConfig, TransformerConfig, Variant
from model.encoders import parity as encoders
from model.parity_recipe import Tensors, recipe_weights
from model.transformer import EchoMimicTransformer

TOLERANCE = 1e-4
Metadata = dict[str, str]
Run = Callable[[Tensors, Metadata], Tensors]


def transformer(tensors: Tensors, metadata: Metadata) -> Tensors:
    """The released transformer (`preview`, `flash`) with W ≡ 1, float32."""
    cfg = transformer_config(tensors, metadata)
    with torch.device("meta"):
        model = EchoMimicTransformer(cfg)
    weights = recipe_weights({name: value.shape for name, value in model.state_dict().items()})
    model.load_state_dict(weights, strict=True, assign=True)
    extra = {}
    if cfg.variant == "preview":  # the released flash ignores both
        extra = {"face_mask": tensors.get("face_mask"), "audio_scale": float(tensors.get("audio_scale", 1.0))}
    texts = [tensors[f"text_{i}"] for i in range(tensors["x"].shape[0])]
    with torch.no_grad():
        out = model(
            tensors["x"],
            tensors["t"],
            cond=tensors["y"],
            text=torch.nn.utils.rnn.pad_sequence(texts, batch_first=True),
            image=tensors["clip_fea"],
            audio=tensors.get("audio"),
            **extra,
        )
    return {"out": out}


def transformer_config(tensors: Tensors, metadata: Metadata) -> TransformerConfig:
    """Sizes from the metadata and the inputs; what neither tells is as released."""
    variant: Variant = metadata.get("variant", "base")  # type: ignore[assignment]
    audio = tensors.get("audio", torch.empty(0, 768))
    window, layers = audio.shape[2:4] if variant == "flash" else (5, 12)
    return TransformerConfig(
        variant=variant,
        dim=int(metadata["dim"]),
        ffn_dim=int(metadata["ffn_dim"]),
        num_heads=int(metadata["num_heads"]),
        num_layers=int(metadata.get("layers", metadata.get("num_layers", ""))),
        in_dim=int(metadata["in_dim"]),
        out_dim=tensors["x"].shape[1],
        patch_size=(1, 2, 2),
        freq_dim=int(metadata.get("freq_dim", 256)),
        text_dim=int(metadata["text_dim"]),
        text_len=int(metadata.get("text_len", 512)),
        image_dim=tensors["clip_fea"].shape[2],
        image_tokens=tensors["clip_fea"].shape[1],
        eps=float(metadata.get("eps", 1e-6)),
        audio=AudioNetConfig(dim=audio.shape[-1], layers=layers, window=window),
    )


KINDS: dict[str, Run] = {
    "preview": transformer,
    "flash": transformer,
    "t5": encoders.t5,
    "clip": encoders.clip,
    "vae": encoders.vae,
}
"""Kind of fixture → the function that computes its outputs from its tensors and its metadata."""


def kind_of(tensors: Tensors, metadata: Metadata) -> str:
    """Which network a fixture is of.

    Raises:
        EchoForgeError: none that is known here.
    """
    if metadata.get("variant") in KINDS:
        return metadata["variant"]
    for kind, signs in (("t5", {"input_ids"}), ("vae", {"video"}), ("vae", {"z_dim"}), ("clip", {"image_size"})):
        if signs <= {*tensors, *metadata}:
            return kind
    raise EchoForgeError(f"this fixture is of no known kind ({', '.join(KINDS)}); its metadata is {metadata}.")


def run(path: Path) -> tuple[Tensors, float | None]:
    """Compute a fixture's outputs.

    Returns:
        The computed tensors, and the largest absolute error against those recorded; None when there are none.

    Raises:
        EchoForgeError: the file cannot be read, or is of no known kind.
    """
    tensors, metadata = _read(path)
    computed = KINDS[kind_of(tensors, metadata)](tensors, metadata)
    errors = []
    for name in sorted(computed.keys() & tensors.keys()):
        difference = (computed[name].double() - tensors[name].double()).abs()
        if name == "out" and "attention_mask" in tensors:  # padded rows of a text encoder mean nothing
            difference = difference[tensors["attention_mask"].bool()]
        errors.append(difference.max().item())
        print(f"{name} {list(computed[name].shape)}: max abs error {errors[-1]:.3g}")
    return computed, max(errors, default=None)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 = agrees or nothing to compare with, 1 = differs, 2 = unusable input."""
    parser = argparse.ArgumentParser(prog="python -m model.parity", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, help="write the computed tensors here")
    options = parser.parse_args(arguments)
    try:
        computed, error = run(options.file)
        if options.out is not None:
            write_safetensors(computed, options.out)
    except EchoForgeError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    if error is None:
        print(f"computed {', '.join(sorted(computed))}; the fixture has no recorded output to compare with")
        return 0
    print(f"{error:.3g}")
    return 0 if error <= TOLERANCE else 1


def _read(path: Path) -> tuple[Tensors, Metadata]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise EchoForgeError(f"'{path}' cannot be read as safetensors: {error}.") from error


if __name__ == "__main__":
    sys.exit(main())
