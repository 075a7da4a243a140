"""Every pretrained file that a preset can name: where it comes from, its licence, size and digest, and whether it is here.

Nothing is fetched behind the user's back: a command that lacks a file stops with one sentence (:func:`locate`), and
``python cli.py weights fetch`` is the only thing that downloads.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import EchoForgeError, MissingWeights

FUN_INP = "alibaba-pai/Wan2.1-Fun-V1.1-1.3B-InP"
ECHOMIMIC = "BadToBest/EchoMimicV3"
VGG = "https://www.robots.ox.ac.uk/~vgg/software/lipsync/data"


@dataclass(frozen=True)
class WeightFile:
    """One pretrained file. ``bytes`` and ``sha256`` are None where no trustworthy figure is known to us."""

    name: str
    what: str
    path: str  # below the weights folder: where `fetch` puts it and where the real preset looks
    licence: str
    repo: str | None = None  # hub repository …
    file: str | None = None  # … and file in it
    url: str | None = None  # or a plain address
    bytes: int | None = None
    sha256: str | None = None

    @property
    def source(self) -> str:
        """Where a person finds the file."""
        return self.url or f"{self.repo}: {self.file}"


REGISTRY: tuple[WeightFile, ...] = (
    WeightFile(
        "fun-inp-transformer",
        "Wan2.1-Fun 1.3B InP transformer, the base that training starts from",
        "Wan2.1-Fun-V1.1-1.3B-InP/diffusion_pytorch_model.safetensors",
        "Apache-2.0",
        FUN_INP,
        "diffusion_pytorch_model.safetensors",
    ),
    WeightFile(
        "wan-vae",
        "Wan2.1 VAE: latents of the shards, decoding of generated video",
        "Wan2.1-Fun-V1.1-1.3B-InP/Wan2.1_VAE.pth",
        "Apache-2.0",
        FUN_INP,
        "Wan2.1_VAE.pth",
    ),
    WeightFile(
        "umt5-xxl",
        "umT5-xxl encoder: caption embeddings",
        "Wan2.1-Fun-V1.1-1.3B-InP/models_t5_umt5-xxl-enc-bf16.pth",
        "Apache-2.0",
        FUN_INP,
        "models_t5_umt5-xxl-enc-bf16.pth",
    ),
    WeightFile(
        "umt5-tokenizer",
        "umT5 tokenizer",
        "Wan2.1-Fun-V1.1-1.3B-InP/google/umt5-xxl/tokenizer.json",
        "Apache-2.0",
        FUN_INP,
        "google/umt5-xxl/tokenizer.json",
    ),
    WeightFile(
        "clip-vit-h14",
        "CLIP ViT-H/14 visual tower: reference-image tokens",
        "Wan2.1-Fun-V1.1-1.3B-InP/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        "MIT",
        FUN_INP,
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    ),
    WeightFile(
        "whisper-tiny",
        "Whisper tiny encoder: audio features of the `whisper` variant (the paper's)",
        "whisper/tiny.pt",
        "MIT",
        url="https://openaipublic.azureedge.net/main/whisper/models/"
        "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9/tiny.pt",
        bytes=75_572_083,
        sha256="65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9",
    ),
    WeightFile(
        "echomimicv3-preview",
        "EchoMimicV3 preview transformer: generate with it, or fine-tune it",
        "EchoMimicV3/transformer/diffusion_pytorch_model.safetensors",
        "Apache-2.0",
        ECHOMIMIC,
        "transformer/diffusion_pytorch_model.safetensors",
    ),
    WeightFile(
        "wav2vec2-base-960h",
        "wav2vec2: audio features of the `preview` variant",
        "wav2vec2-base-960h/model.safetensors",
        "Apache-2.0",
        "facebook/wav2vec2-base-960h",
        "model.safetensors",
    ),
    WeightFile(
        "wav2vec2-base-960h-config",
        "its configuration",
        "wav2vec2-base-960h/config.json",
        "Apache-2.0",
        "facebook/wav2vec2-base-960h",
        "config.json",
    ),
    WeightFile(
        "chinese-wav2vec2-base",
        "wav2vec2: audio features of the `flash` variant",
        "chinese-wav2vec2-base/pytorch_model.bin",
        "MIT",
        "TencentGameMate/chinese-wav2vec2-base",
        "pytorch_model.bin",
    ),
    WeightFile(
        "chinese-wav2vec2-base-config",
        "its configuration",
        "chinese-wav2vec2-base/config.json",
        "MIT",
        "TencentGameMate/chinese-wav2vec2-base",
        "config.json",
    ),
    WeightFile(
        "syncnet-v2",
        "SyncNet v2: audio-visual sync confidence and offset",
        "syncnet/syncnet_v2.model",
        "CC-BY (research), see the VGG page",
        url=f"{VGG}/syncnet_v2.model",
    ),
    WeightFile(
        "s3fd",
        "S3FD face detector, the one SyncNet was evaluated with",
        "syncnet/sfd_face.pth",
        "see the VGG page",
        url=f"{VGG}/sfd_face.pth",
    ),
    WeightFile(
        "yunet",
        "YuNet face detector (2023mar)",
        "yunet/face_detection_yunet_2023mar.onnx",
        "MIT",
        url="https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/face_detection_yunet_2023mar.onnx",
        bytes=232_589,
        sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    ),
)


@dataclass(frozen=True)
class Need:
    """A place in the configuration that names a file: ``key`` holds ``configured``; ``known`` is our entry for it."""

    key: str
    configured: str
    known: WeightFile | None

    @property
    def path(self) -> Path:
        """The local path that the configuration means (relative ones below the weights folder, else as given)."""
        return resolve(self.configured)

    @property
    def present(self) -> bool:
        """Is it on this machine?"""
        return self.path.exists()


def folder() -> Path:
    """The weights folder: ``$ECHOFORGE_WEIGHTS``, else ``weights`` in the current directory."""
    return Path(os.environ.get("ECHOFORGE_WEIGHTS", "weights"))


def resolve(configured: str) -> Path:
    """``weights:NAME/…`` → a path below :func:`folder`; anything else is a path as it stands."""
    prefix, sep, rest = configured.partition("weights:")
    return folder() / rest if sep and not prefix else Path(configured)


def needs(mapping: Mapping[str, Any], prefix: str = "") -> list[Need]:
    """All values of the form ``weights:…`` in a configuration mapping, in order."""
    by_path = {file.path: file for file in REGISTRY}
    found: list[Need] = []
    for key, value in mapping.items():
        dotted = f"{prefix}.{key}" if prefix else key
        if isinstance(value, Mapping):
            found += needs(value, dotted)
        elif isinstance(value, str) and value.startswith("weights:"):
            rest = value.removeprefix("weights:")
            known = by_path.get(rest) or next((f for f in REGISTRY if f.path.startswith(rest + "/")), None)
            found.append(Need(dotted, value, known))
    return found


def locate(what: str, configured: str | None) -> Path:
    """The local file or folder that a configuration value names.

    Args:
        what: for the message, e.g. ``"the Wan VAE (codec.path)"``.
        configured: a local path, ``weights:PATH`` for one below the weights folder, or a hub id: ``hub:ORG/NAME`` for
            a whole repository, ``hub:ORG/NAME/FILE`` for one file of it (downloaded into the hub's own cache).

    Raises:
        MissingWeights: nothing configured, or nothing there; the sentence says how to get it.
    """
    remedy = "`python cli.py weights list` says where it comes from, `weights fetch` downloads it"
    if not configured:
        raise MissingWeights(f"No file is configured for {what}; {remedy}.")
    if configured.startswith("hub:"):
        return _from_hub(what, configured.removeprefix("hub:"))
    path = resolve(configured)
    if not path.exists():
        raise MissingWeights(f"{what} is not at {path}; {remedy}, or set its configuration key to a local path.")
    return path


def _from_hub(what: str, name: str) -> Path:
    """A repository or a file of it, through huggingface_hub's cache."""
    from huggingface_hub import hf_hub_download, snapshot_download

    parts = name.split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise EchoForgeError(f"{what}: 'hub:{name}' is not of the form hub:ORG/NAME or hub:ORG/NAME/FILE.")
    repo = "/".join(parts[:2])
    try:
        return Path(hf_hub_download(repo, parts[2]) if len(parts) == 3 else snapshot_download(repo))
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise MissingWeights(
            f"{what} could not be had from the hub ({repo}: {reason}); download it by hand and configure its local path."
        ) from error


def check(file: WeightFile, path: Path) -> str:
    """'missing' | 'size differs' | 'digest differs' | 'ok' | 'present (no digest known)'."""
    if not path.is_file():
        return "present (a folder)" if path.is_dir() else "missing"
    if file.bytes is not None and path.stat().st_size != file.bytes:
        return "size differs"
    if file.sha256 is None:
        return "present (no digest known)"
    with path.open("rb") as stream:
        return "ok" if hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256 else "digest differs"


def fetch(file: WeightFile, report: Callable[[int, int], None] | None = None) -> Path:
    """Download one file to its place below the weights folder; whole or not at all.

    Args:
        report: called with (bytes so far, bytes in all or 0).

    Raises:
        EchoForgeError: the source cannot be reached, or what came has another digest.
    """
    target = folder() / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    address = file.url or f"https://huggingface.co/{file.repo}/resolve/main/{file.file}"
    try:
        with urllib.request.urlopen(address, timeout=60) as response, part.open("wb") as out:
            total, done = int(response.headers.get("Content-Length") or 0), 0
            while block := response.read(1 << 20):
                out.write(block)
                done += len(block)
                if report:
                    report(done, total)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise EchoForgeError(
            f"{file.name} could not be fetched from {file.source} ({error}); get it by hand and put it at {target}."
        ) from error
    if (state := check(file, part)) in ("size differs", "digest differs"):
        part.unlink()
        raise EchoForgeError(f"{file.name} from {file.source} came damaged ({state}); nothing was kept, try again.")
    part.replace(target)
    return target
