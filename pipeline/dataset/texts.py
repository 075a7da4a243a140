"""Caption embeddings, each stored once: keyed by their text, in tars of their own beside the samples' tars.

The captions of a corpus repeat (templates, several clips of one video), and an umT5 row is 8 kB a token. Every distinct
text of a generation that no earlier one holds is encoded once and lies in ``gen-NNN/texts/texts-000000.tar`` as
``<key>.safetensors`` (``text`` [L, dim] bf16) and ``<key>.txt``. The index points each sample's ``text.k`` there, so
the loader does not notice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from configs.dataset_schema import INDEX
from model.encoders import TextEncoder
from pipeline.dataset.files import save_tar
from pipeline.dataset.tar import ShardSample
from pipeline.engine.unit import Unit, unit_id

TEXTS = pa.schema([("key", pa.string()), ("tensor", INDEX.field("tensors").type.value_type)])
FOLDER = "texts"
PER_TAR = 4096  # texts; with umT5 and 120 tokens a text, 4 GB
PER_BATCH = 32
BUDGET_PER_TEXT_S = 30.0
"""A text takes milliseconds on a GPU and seconds on a CPU."""


def text_key(text: str, encoder: str) -> str:
    """16 hex digits of the sha256 of a text and of the encoder's digest."""
    return hashlib.sha256(f"{encoder}:{text}".encode()).hexdigest()[:16]


def text_units(plans: Mapping[str, pa.Table], encoder: str) -> list[Unit]:
    """What must be encoded: per generation, the texts that no earlier generation has, in a fixed order."""
    known: set[str] = set()
    units = []
    for generation, plan in plans.items():
        fresh = {text_key(text, encoder): text for sample in plan["sample"].to_pylist() for text in captions(sample)}
        keys = sorted(set(fresh) - known)
        known |= set(keys)
        for number, first in enumerate(range(0, len(keys), PER_TAR)):
            tar = f"{generation}/{FOLDER}/texts-{number:06d}.tar"
            texts = [fresh[key] for key in keys[first : first + PER_TAR]]
            units.append(
                Unit(
                    id=unit_id(tar, *texts),
                    payload={"tar": tar, "texts": texts},
                    key=tar,
                    cost=0.1 * len(texts),
                    budget_s=BUDGET_PER_TEXT_S * (len(texts) + 1),
                )
            )
    return units


def captions(sample: str) -> list[str]:
    """The captions of a planned sample (JSON)."""
    return list(json.loads(sample)["captions"])


def encode_texts(out: str, tar: str, texts: Sequence[str], encoder: TextEncoder) -> dict[str, list[dict[str, Any]]]:
    """Encode ``texts`` in batches and write their tar; returns the rows of :data:`TEXTS` and of `dataset.TARS`."""
    keys = [text_key(text, encoder.digest) for text in texts]
    rows: list[torch.Tensor] = []
    with torch.inference_mode():
        for first in range(0, len(texts), PER_BATCH):
            rows += encoder.encode(texts[first : first + PER_BATCH])
    samples = (
        ShardSample(key, {"text": row.to(torch.bfloat16).cpu()}, {"txt": text.encode()})
        for key, text, row in zip(keys, texts, rows, strict=True)
    )
    found, written = save_tar(out, tar, samples)
    return {"texts": [{"key": key, "tensor": found[key]["tensors"][0]} for key in keys], "tars": [written]}


def join_texts(
    rows: list[dict[str, Any]], plans: Iterable[pa.Table], tables: Iterable[pa.Table], encoder: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Give index rows their ``text.k`` tensors.

    Returns:
        (the rows whose texts are all there, one sentence for each that is left out).
    """
    where = {row["key"]: row["tensor"] for table in tables for row in table.to_pylist()}
    said = {
        sample_id: captions(sample)
        for plan in plans
        for sample_id, sample in zip(plan["sample_id"].to_pylist(), plan["sample"].to_pylist(), strict=True)
    }
    complete, left = [], []
    for row in rows:
        found = [where.get(text_key(text, encoder)) for text in said[row["sample_id"]]]
        if None in found:
            left.append(f"sample {row['sample_id']}: its caption could not be encoded; `shard` tries it again")
            continue
        tensors = [tensor | {"name": f"text.{k}"} for k, tensor in enumerate(found) if tensor is not None]
        lens = [tensor["shape"][0] for tensor in tensors]
        complete.append(row | {"tensors": [*row["tensors"], *tensors], "n_captions": len(lens), "text_lens": lens})
    return complete, left
