"""Caption embeddings, each stored once: keyed by their text, in tars of their own beside the samples' tars.

The captions of a corpus repeat (templates, several clips of one video), and an umT5 row is 8 kB a token. Every distinct
text of a generation that no earlier one holds is encoded once and lies in ``gen-NNN/texts/texts-000000.tar`` as
``<key>.safetensors`` (``text`` [L, dim] bf16) and ``<key>.txt``. The index points each sample's ``text.k`` there, so
the loader does not notice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
import torch

from configs.dataset_schema import INDEX
from model.encoders import TextEncoder
from pipeline.dataset.files import save_tar
from pipeline.dataset.lists import joined
from pipeline.dataset.sample import captions
from pipeline.dataset.tar import ShardSample
from pipeline.engine.unit import Result, Unit, unit_id

TEXTS = pa.schema([("key", pa.string()), ("tensor", INDEX.field("tensors").type.value_type)])
FOLDER = "texts"
PER_TAR = 4096  # texts; with umT5 and 120 tokens a text, 4 GB
PER_BATCH = 32
BUDGET_PER_TEXT_S = 30.0
"""A text takes milliseconds on a GPU and seconds on a CPU."""


@dataclass(frozen=True)
class TextJob:
    """Texts that go into one tar (relative to the dataset)."""

    tar: str
    texts: tuple[str, ...]


def text_key(text: str, encoder: str) -> str:
    """16 hex digits of the sha256 of a text and of the encoder's digest."""
    return hashlib.sha256(f"{encoder}:{text}".encode()).hexdigest()[:16]


def text_units(plans: Mapping[str, pa.Table], encoder: str) -> list[Unit[TextJob]]:
    """What must be encoded: per generation, the texts that no earlier generation has, in a fixed order."""
    known: set[str] = set()
    units = []
    for generation, plan in plans.items():
        fresh = {text_key(text, encoder): text for sample in plan["sample"].to_pylist() for text in captions(sample)}
        keys = sorted(set(fresh) - known)
        known |= set(keys)
        for number, first in enumerate(range(0, len(keys), PER_TAR)):
            tar = f"{generation}/{FOLDER}/texts-{number:06d}.tar"
            texts = tuple(fresh[key] for key in keys[first : first + PER_TAR])
            units.append(
                Unit(
                    id=unit_id(tar, *texts),
                    payload=TextJob(tar, texts),
                    key=tar,
                    cost=0.1 * len(texts),
                    budget_s=BUDGET_PER_TEXT_S * (len(texts) + 1),
                )
            )
    return units


def encode_texts(out: str, job: TextJob, encoder: TextEncoder) -> Result:
    """Encode the texts of a job in batches and write their tar; returns tables :data:`TEXTS` and `files.TARS`."""
    keys = [text_key(text, encoder.digest) for text in job.texts]
    rows: list[torch.Tensor] = []
    with torch.inference_mode():
        for first in range(0, len(keys), PER_BATCH):
            rows += encoder.encode(job.texts[first : first + PER_BATCH])
    samples = (
        ShardSample(key, {"text": row.to(torch.bfloat16).cpu()}, {"txt": text.encode()})
        for key, text, row in zip(keys, job.texts, rows, strict=True)
    )
    found, written = save_tar(out, job.tar, samples)
    tensors = [asdict(found[key].tensors[0]) for key in keys]
    return Result(
        {"texts": pa.table([keys, pa.array(tensors, TEXTS.field("tensor").type)], schema=TEXTS), "tars": written}
    )


def join_texts(
    rows: pa.Table, plans: Iterable[pa.Table], tables: Iterable[pa.Table], encoder: str
) -> tuple[pa.Table, list[str]]:
    """Give rows of the index their ``text.k`` tensors.

    Returns:
        (the rows whose texts are all there, one sentence for each that is left out).
    """
    texts = pa.concat_tables([TEXTS.empty_table(), *tables]).combine_chunks()
    where = {key: row for row, key in enumerate(texts["key"].to_pylist())}
    keys = {
        name: [text_key(text, encoder) for text in captions(text)]
        for plan in plans
        for name, text in zip(plan["sample_id"].to_pylist(), plan["sample"].to_pylist(), strict=True)
    }
    names = rows["sample_id"].to_pylist()
    whole = [all(key in where for key in keys[name]) for name in names]
    left = [
        f"sample {name}: its caption could not be encoded; `shard` tries it again"
        for name, complete in zip(names, whole, strict=True)
        if not complete
    ]
    rows = rows.filter(pa.array(whole, pa.bool_()))
    found = [[where[key] for key in keys[name]] for name, complete in zip(names, whole, strict=True) if complete]
    counts = np.array([len(places) for places in found], np.int64)
    tensors = texts["tensor"].combine_chunks().take(pa.array(list(chain.from_iterable(found)), pa.int64()))
    named = _named(tensors, [f"text.{k}" for count in counts for k in range(count)])
    lengths = pa.array([shape[0] for shape in tensors.field("shape").to_pylist()], pa.int32())
    for name, column in (
        ("tensors", joined(rows["tensors"], np.repeat(np.arange(len(counts)), counts), named, "name")),
        ("n_captions", pa.array(counts, pa.int32())),
        ("text_lens", pa.ListArray.from_arrays(pa.array(np.cumsum([0, *counts]), pa.int32()), lengths)),
    ):
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
    return rows, left


def _named(tensors: pa.StructArray, names: list[str]) -> pa.StructArray:
    fields = list(tensors.type)
    parts = [pa.array(names, pa.string()) if field.name == "name" else tensors.field(field.name) for field in fields]
    return pa.StructArray.from_arrays(parts, fields=fields)
