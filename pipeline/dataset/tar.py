"""Writes one shard: a plain WebDataset tar, byte for byte the same for the same samples, or not at all.

USTAR members in a fixed order with fixed metadata (no time, owner 0, mode 0444). `webdataset.TarWriter` sorts the
extensions of a sample and so cannot keep the tensors first; the tar is written by the standard library instead and
read back by webdataset, `datasets` and tarfile in the tests.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO

import torch
from safetensors.torch import save

from configs.errors import EchoForgeError

EXTENSIONS = ("safetensors", "json", "txt", "jpg", "flac", "mp4")
"""Members of a sample, in this order; `.mp4` is optional and side tars hold `.safetensors` alone."""


@dataclass(frozen=True)
class ShardSample:
    """What is written for one sample: its tensors and its other members as bytes by extension."""

    sample_id: str
    tensors: Mapping[str, torch.Tensor]
    files: Mapping[str, bytes] = field(default_factory=dict)


def pack(tensors: Mapping[str, torch.Tensor], where: str) -> bytes:
    """The safetensors file of ``tensors``; the same bytes for the same tensors in any order.

    Raises:
        EchoForgeError: a tensor other than a box holds NaN or infinite values.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not name.endswith("_boxes") and not bool(torch.isfinite(tensor).all()):
            raise EchoForgeError(f"{where}: tensor '{name}' holds NaN or infinite values and was not written.")
    return save({name: tensors[name].contiguous() for name in sorted(tensors)})


def write_tar(stream: IO[bytes], samples: Iterable[ShardSample]) -> int:
    """Write all samples to ``stream`` and close the archive (not the stream). Returns the number of samples."""
    count = 0
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            if unknown := set(sample.files) - set(EXTENSIONS):
                raise ValueError(f"unknown members: {sorted(unknown)}")
            data = {**sample.files, "safetensors": pack(sample.tensors, f"sample {sample.sample_id}")}
            for extension in EXTENSIONS:
                if extension in data:
                    _add(tar, f"{sample.sample_id}.{extension}", data[extension])
            count += 1
    return count


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o444, 0
    tar.addfile(info, io.BytesIO(data))
