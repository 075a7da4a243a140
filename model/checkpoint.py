"""Weights in and out, under the key names of Wan2.1-Fun-InP and of the released EchoMimicV3. Nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from configs.errors import EchoForgeError, MissingWeights
from configs.runtime import disk
from configs.runtime.shown import one_line
from configs.strict import to_dict
from model.config import TransformerConfig, Variant
from model.transformer import PROJECTIONS, EchoMimicTransformer

_WRAPPERS = ("state_dict", "model", "module")
_SIGNS: dict[str, Variant] = {
    "audio_proj.proj.1.weight": "whisper",
    "audio2token.proj.weight": "preview",
    "audio_injection.proj1.weight": "flash",
}


@dataclass(frozen=True)
class Loaded:
    """What :func:`load_into` found: the variant of the file, and the keys that were initialised instead of loaded."""

    variant: Variant
    initialised: list[str]


def load_weights(path: Path | str, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read a state dict: ``.safetensors`` (one file, or a folder or ``.index.json`` of shards), or ``.pth``/``.pt``.

    A dict wrapped in ``state_dict``, ``model`` or ``module`` is unwrapped, in either format. Dtypes are kept.

    Raises:
        MissingWeights: no such file.
        EchoForgeError: not a weights file, or one that would execute code when read.
    """
    path = Path(path)
    if not path.exists():
        raise MissingWeights(f"weights '{path}' do not exist; give the path of a .safetensors or .pth file.")
    if path.is_dir() or path.name.endswith(".index.json"):
        return _load_shards(path, device)
    if not path.is_file():  # a pipe or a device would be read for ever
        raise EchoForgeError(f"weights '{path}' are no regular file; give the path of a .safetensors or .pth file.")
    if path.suffix == ".safetensors":
        return _unwrap(_read_safetensors(path, device))
    try:
        return _unwrap(torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path)))
    except EchoForgeError:
        raise
    except Exception as error:  # pickles fail in many ways
        clear = isinstance(error, (pickle.UnpicklingError, RuntimeError)) and str(error)  # others: text, read as pickle
        reason = one_line(str(error).splitlines()[0].rstrip(".")) if clear else "it holds something else"
        raise EchoForgeError(f"'{path}' is not a plain file of weights: {reason}; give a .safetensors file.") from error


def detect_variant(state: Mapping[str, Tensor]) -> Variant:
    """Which audio path a state dict belongs to; `base` when it has none."""
    return next((variant for key, variant in _SIGNS.items() if key in state), "base")


def load_transformer(
    cfg: TransformerConfig,
    path: Path | str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> EchoMimicTransformer:
    """Build the transformer and load a file into it; a Fun-InP file into any variant leaves the audio experts silent.

    Args:
        dtype: of all parameters; None keeps the file's (bfloat16 for the released ones).

    Raises:
        EchoForgeError: the file is of another variant or other sizes.
    """
    state = load_weights(path, device)
    with torch.device("meta"):
        model = EchoMimicTransformer(cfg)
    model.to(dtype or next(iter(state.values())).dtype).to_empty(device=device)
    load_into(model, state, source=str(path))
    return model


def load_into(model: EchoMimicTransformer, state: Mapping[str, Tensor], *, source: str = "the file") -> Loaded:
    """Copy a state dict into a model; the audio experts of a Fun-InP file are initialised (values zero).

    Raises:
        EchoForgeError: unknown keys, missing keys other than the new ones of the variant, or other shapes.
    """
    variant, wanted = detect_variant(state), model.cfg.variant
    if variant not in (wanted, "base"):
        raise EchoForgeError(f"{source} holds a {variant} transformer, the configuration asks for {wanted}.")
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    new = new_keys(own) if variant == "base" else set()
    problems = [key for key in missing if key not in new]
    shapes = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if problems or unknown or shapes:
        raise EchoForgeError(
            f"{source} does not fit transformer.* of the configuration: {len(problems)} keys missing{_some(problems)}, "
            f"{len(unknown)} unknown{_some(unknown)}, {len(shapes)} of another shape{_some(sorted(shapes))}."
        )
    if missing:
        model.init_audio()
    model.load_state_dict(state, strict=False)
    return Loaded(variant, missing)


def new_keys(keys: Mapping[str, Tensor]) -> set[str]:
    """Keys of a variant that Wan2.1-Fun-InP does not have."""
    prefixes = tuple(f"{name}." for name in PROJECTIONS.values())
    return {key for key in keys if key.startswith(prefixes) or "_audio." in key}


def export(model: EchoMimicTransformer, path: Path | str, dtype: torch.dtype | None = None) -> Path:
    """Write a model as one safetensors file under the released key names; the configuration goes into its metadata."""
    state = {name: value.detach().to("cpu", dtype or value.dtype) for name, value in model.state_dict().items()}
    return export_state(state, model.cfg, path)


def export_state(state: Mapping[str, Tensor], cfg: TransformerConfig, path: Path | str) -> Path:
    """Write a full (not sharded) state dict as :func:`export` does; for weights gathered elsewhere, an EMA say."""
    metadata = {"format": "pt", "variant": cfg.variant, "config": json.dumps(to_dict(cfg))}
    return write_safetensors(dict(state), Path(path), metadata)


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write tensors so that ``path`` appears whole or not at all."""
    with disk.replacing(path) as part:
        save_file({name: value.contiguous() for name, value in tensors.items()}, part, metadata)
    return path


def _load_shards(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    folder = path if path.is_dir() else path.parent
    files = sorted(folder.glob("*.safetensors")) if path.is_dir() else _indexed(path)
    if not files:
        raise MissingWeights(f"folder '{folder}' holds no .safetensors file.")
    state: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise MissingWeights(f"'{file}', named by '{path}', does not exist.")
        part = _read_safetensors(file, device)
        if state.keys() & part.keys():
            raise EchoForgeError(f"folder '{folder}' holds several models; give the path of one file.")
        state |= part
    return _unwrap(state)


def _indexed(path: Path) -> list[Path]:
    """The files that an ``.index.json`` names; they lie beside it."""
    try:
        names = {str(name) for name in json.loads(path.read_text("utf-8"))["weight_map"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise EchoForgeError(f"'{path}' is not an index of weights; get it again, or give the folder.") from error
    if elsewhere := next((name for name in sorted(names) if Path(name).name != name or "\0" in name), None):
        raise EchoForgeError(
            f"'{path}' names '{one_line(elsewhere)[:200]}', which does not lie beside it; get it again."
        )
    return sorted(path.parent / name for name in names)


def _read_safetensors(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise EchoForgeError(f"'{path}' cannot be read as safetensors: {error}.") from error


def _unwrap(state: object) -> dict[str, Tensor]:
    for _ in _WRAPPERS:  # not for ever: a pickled dict can hold itself
        if isinstance(state, dict):
            state = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise EchoForgeError("the file holds no state dict of tensors.")
    for prefix in (f"{name}." for name in _WRAPPERS):
        if all(key.startswith(prefix) for key in state):
            return {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _some(keys: list[str]) -> str:
    return f" ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})" if keys else ""
