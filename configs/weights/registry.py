"""The registry of pretrained files: where each comes from, its licence, size and digest."""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.errors import EchoForgeError

FUN_INP = "alibaba-pai/Wan2.1-Fun-V1.1-1.3B-InP"
ECHOMIMIC = "BadToBest/EchoMimicV3"
VGG = "https://www.robots.ox.ac.uk/~vgg/software/lipsync/data"

Checked = Literal["missing", "size differs", "digest differs", "ok", "present (no digest known)", "present (a folder)"]


@dataclass(frozen=True)
class WeightFile:
    """One pretrained file. ``bytes`` and ``sha256`` are None where no public figure could be found."""

    name: str
    what: str
    path: str  # below the weights folder: where `fetch` puts it and where the real preset looks
    licence: str
    repo: str | None = None  # hub repository …
    file: str | None = None  # … and file in it
    url: str | None = None  # or a plain address
    bytes: int | None = None
    sha256: str | None = None
    derived_bytes: int | None = None  # parameters times their width, where no size is published; shown, never checked
    beside: tuple[str, ...] = ()  # names of the files that its loader reads from the same folder

    @property
    def address(self) -> str:
        """Where it is downloaded from. ``$HF_ENDPOINT`` names another hub, as in huggingface_hub."""
        if self.url:
            return self.url
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{hub}/{self.repo}/resolve/main/{urllib.parse.quote(str(self.file))}"

    def check(self, path: Path) -> Checked:
        """Compare what is at ``path`` with the published size and digest; reads the whole file."""
        if not path.is_file():
            return "present (a folder)" if path.is_dir() else "missing"
        if self.bytes is not None and path.stat().st_size != self.bytes:
            return "size differs"
        if self.sha256 is None:
            return "present (no digest known)"
        with path.open("rb") as stream:
            return "ok" if hashlib.file_digest(stream, "sha256").hexdigest() == self.sha256 else "digest differs"


REGISTRY: tuple[WeightFile, ...] = (
    WeightFile(
        "fun-inp-transformer",
        "Wan2.1-Fun 1.3B InP transformer: what training starts from",
        "Wan2.1-Fun-V1.1-1.3B-InP/diffusion_pytorch_model.safetensors",
        "Apache-2.0",
        FUN_INP,
        "diffusion_pytorch_model.safetensors",
        bytes=3_128_957_992,
        sha256="4ec199076538b946935ebcb3ba808d3c427e638f29519a3c3c98d31d821e5eed",
    ),
    WeightFile(
        "wan-vae",
        "Wan2.1 VAE: latents of the shards, decoding of generated video",
        "Wan2.1-Fun-V1.1-1.3B-InP/Wan2.1_VAE.pth",
        "Apache-2.0",
        FUN_INP,
        "Wan2.1_VAE.pth",
        bytes=507_609_880,
        sha256="38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981",
    ),
    WeightFile(
        "umt5-xxl",
        "umT5-xxl encoder: caption embeddings",
        "Wan2.1-Fun-V1.1-1.3B-InP/models_t5_umt5-xxl-enc-bf16.pth",
        "Apache-2.0",
        FUN_INP,
        "models_t5_umt5-xxl-enc-bf16.pth",
        bytes=11_361_920_418,
        sha256="7cace0da2b446bbbbc57d031ab6cf163a3d59b366da94e5afe36745b746fd81d",
    ),
    WeightFile(
        "umt5-tokenizer",
        "umT5 tokenizer",
        "Wan2.1-Fun-V1.1-1.3B-InP/google/umt5-xxl/tokenizer.json",
        "Apache-2.0",
        FUN_INP,
        "google/umt5-xxl/tokenizer.json",
        bytes=16_837_417,
        sha256="6e197b4d3dbd71da14b4eb255f4fa91c9c1f2068b20a2de2472967ca3d22602b",
    ),
    WeightFile(
        "clip-vit-h14",
        "CLIP ViT-H/14 visual tower: reference-image tokens",
        "Wan2.1-Fun-V1.1-1.3B-InP/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        "MIT",
        FUN_INP,
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        bytes=4_772_359_047,
        sha256="628c9998b613391f193eb67ff68da9667d75f492911e4eb3decf23460a158c38",
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
        bytes=3_414_541_616,
        sha256="ba25a75c7511ba57a346480d50567b57270282c1f3ab121558c07b65a97adf1f",
    ),
    WeightFile(
        "wav2vec2-base-960h",
        "wav2vec2: audio features of the `preview` variant",
        "wav2vec2-base-960h/model.safetensors",
        "Apache-2.0",
        "facebook/wav2vec2-base-960h",
        "model.safetensors",
        bytes=377_607_901,
        sha256="8aa76ab2243c81747a1f832954586bc566090c83a0ac167df6f31f0fa917d74a",
        beside=("wav2vec2-base-960h-config",),
    ),
    WeightFile(
        "wav2vec2-base-960h-config",
        "its configuration",
        "wav2vec2-base-960h/config.json",
        "Apache-2.0",
        "facebook/wav2vec2-base-960h",
        "config.json",
        bytes=1_596,
        sha256="d3ec255c063d9f95057b553b19c20135b259875834a4fe9deb218a6be25b4cf3",
    ),
    WeightFile(
        "chinese-wav2vec2-base",
        "wav2vec2: audio features of the `flash` variant",
        "chinese-wav2vec2-base/pytorch_model.bin",
        "MIT",
        "TencentGameMate/chinese-wav2vec2-base",
        "pytorch_model.bin",
        bytes=380_261_837,
        sha256="be2da40c9e7ae26bfc904a3ed79ebb9e8f060bec6dba85d6a6ae86114bc38901",
        beside=("chinese-wav2vec2-base-config",),
    ),
    WeightFile(
        "chinese-wav2vec2-base-config",
        "its configuration",
        "chinese-wav2vec2-base/config.json",
        "MIT",
        "TencentGameMate/chinese-wav2vec2-base",
        "config.json",
        bytes=1_951,
        sha256="dc2cd2f989104b9510ce9e43a343a6f1fe55aa60baa1fcfca0c5908e6590b8b6",
    ),
    WeightFile(
        "syncnet-v2",
        "SyncNet v2: audio-visual sync confidence and offset",
        "syncnet/syncnet_v2.model",
        "see the VGG page",
        url=f"{VGG}/syncnet_v2.model",
        bytes=54_573_114,
        sha256="961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
    ),
    WeightFile(
        "s3fd",
        "S3FD face detector, the one SyncNet was evaluated with",
        "syncnet/sfd_face.pth",
        "see the VGG page",
        url=f"{VGG}/sfd_face.pth",
        bytes=89_844_381,
        sha256="d54a87c2b7543b64729c9a25eafd188da15fd3f6e02f0ecec76ae1b30d86c491",
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
    WeightFile(
        "clip-vit-l14",
        "OpenAI's CLIP ViT-L/14 as open_clip stores it: the optional aesthetic score",
        "aesthetic/open_clip_model.safetensors",
        "MIT",
        "timm/vit_large_patch14_clip_224.openai",
        "open_clip_model.safetensors",
        derived_bytes=1_710_466_052,  # 427,616,513 float32 parameters
    ),
    WeightFile(
        "aesthetic-head",
        "LAION's linear head: the optional aesthetic score",
        "aesthetic/sac+logos+ava1-l14-linearMSE.pth",
        "Apache-2.0",
        url="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
        "sac%2Blogos%2Bava1-l14-linearMSE.pth",
        bytes=3_714_759,
        sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    ),
)
# Sizes and digests: the Git LFS pointers on the hub's file pages, and public lists that agree with them (2026-11). Of
# the two configurations of wav2vec2, of S3FD and of SyncNet: public lists only.


def by_name() -> dict[str, WeightFile]:
    """The registry by the names of its files."""
    return {file.name: file for file in REGISTRY}


def with_beside(files: Iterable[WeightFile]) -> list[WeightFile]:
    """The files and those that their loaders read beside them, each once."""
    known = by_name()
    return list(dict.fromkeys(part for file in files for part in (file, *(known[name] for name in file.beside))))


def named(names: Iterable[str]) -> list[WeightFile]:
    """Registry entries by name, with the files beside them.

    Raises:
        EchoForgeError: no such name; the sentence lists them.
    """
    known, names = by_name(), list(names)
    if unknown := [name for name in names if name not in known]:
        raise EchoForgeError(f"no pretrained file is called '{unknown[0]}'; known: {', '.join(known)}.")
    return with_beside(known[name] for name in names)
