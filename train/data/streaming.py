"""The plain way to read shards: webdataset's own stream, for those who want it. Its promises are weaker.

What it does not promise, unlike `train.data.loader`: the same order at another number of ranks or workers; resuming in the
middle of an epoch (start at an epoch's beginning, or repeat samples); each sample exactly once on every rank when tars
do not divide evenly; batches of one bucket unless the tars are of one; digests checked. It reads whole samples, also
the tensors that a task does not need. What it does promise: nothing in a tar is executed (webdataset's secure mode is
demanded, and only safetensors, JSON and UTF-8 are decoded). Captions and fields that were added later are read beside.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from configs import dataset_files
from configs.errors import EchoForgeError
from configs.members import BadMember
from train.config import KeepConfig
from train.data.index import SampleIndex, open_index
from train.data.reader import Source, open_source, read_tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamedSample:
    """One whole sample; ``metadata`` is its JSON, as `shard` wrote it."""

    sample_id: str
    tensors: dict[str, Tensor]
    metadata: Mapping[str, object]
    caption: str


def stream(
    dataset: str | Path, *, split: str = "train", keep: KeepConfig | None = None, shuffle: int = 100, seed: int = 0
) -> Iterator[StreamedSample]:
    """Samples of ``split`` one by one, once.

    Tars are shuffled by ``seed``, then samples in a buffer of ``shuffle``. A tar that is missing or no file of the
    dataset, and a sample that cannot be decoded, is named in the log and left out.

    Raises:
        EchoForgeError: no such dataset, none of its tars can be read, or webdataset is not installed.
    """
    os.environ["WDS_SECURE"] = "1"  # read when webdataset is first imported
    try:
        import webdataset as wds
    except ImportError as error:
        raise EchoForgeError("webdataset is not installed; use train.data.loader, which does not need it.") from error
    wds.utils.enforce_security = True
    index = open_index(dataset, split=split, keep=keep or KeepConfig())
    wanted = set(index.table.column("sample_id").to_pylist())
    tars = sorted({str(member["tar"]) for row in index.table.column("members").to_pylist() for member in row or []})
    elsewhere = open_source(index.root)
    urls = [f"{index.root}/{tar}" for tar in tars if _inside(elsewhere, tar)]
    if not urls:
        raise EchoForgeError(f"no tar of '{index.root}' can be read; `shards verify` says why.")
    rows = {sample: row for row, sample in enumerate(index.table.column("sample_id").to_pylist())}
    source = wds.WebDataset(urls, shardshuffle=len(urls), seed=seed, handler=wds.warn_and_continue, empty_check=False)
    for item in source.shuffle(shuffle, seed=seed) if shuffle else source:
        if item["__key__"] in wanted:
            try:
                yield StreamedSample(
                    item["__key__"],
                    load(item["safetensors"]) | _side(elsewhere, index, rows[item["__key__"]]),
                    json.loads(item["json"]),
                    item["txt"].decode("utf-8"),
                )
            except Exception as error:  # safetensors raises its own kinds
                log.warning("skipping a bad sample: %s: %s", item["__key__"], error)


def _inside(source: Source, tar: str) -> bool:
    """Whether ``tar`` is a regular file of the dataset: webdataset opens whatever it is given, commands included."""
    try:
        source.size(dataset_files.check_tar(tar))
    except (BadMember, OSError) as error:
        log.warning("skipping a tar: %s", error)
        return False
    return True


def _side(source: Source, index: SampleIndex, row: int) -> dict[str, Tensor]:
    """The tensors of a sample that lie in other tars than its own: captions, and fields added later."""
    record = index.record(row)
    own = {member["tar"] for member in index.table.column("members")[row].as_py()}
    found: dict[str, Tensor] = {}
    for name, ref in record.tensors.items():
        if ref.tar not in own:
            found[name] = torch.empty(ref.shape, dtype=ref.dtype)
            read_tensor(source, ref, found[name], sample=record.sample_id, digest=True)
    return found
