"""The work of `shard`: units of samples, one tar each, and the worker that encodes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from curation.schema import FPS
from model.config import ModelConfig
from pipeline.config import EncodeConfig
from pipeline.dataset import files, index, sample, texts
from pipeline.dataset.encode import Encoders, LeftOut, encode_group, load_encoders
from pipeline.dataset.index import IndexRow
from pipeline.dataset.sample import PlannedSample
from pipeline.dataset.texts import TextJob
from pipeline.engine.unit import Result, Unit, unit_id

FAILED = pa.schema(
    [("sample_id", pa.string()), ("video_id", pa.string()), ("source_uri", pa.string()), ("cause", pa.string())]
)
BUDGET_PER_SAMPLE_S = 120.0
"""A sample takes seconds; a unit that needs this long for each of its samples hangs."""


def ledger_tables() -> dict[str, pa.Schema]:
    """What the ledger of `shard` holds."""
    return {"samples": index.encoded_schema(), "failed": FAILED, "texts": texts.TEXTS, "tars": files.TARS}


@dataclass(frozen=True)
class SampleJob:
    """Planned samples (JSON) that go into one tar (relative to the dataset)."""

    tar: str
    generation: str
    samples: tuple[str, ...]


Job = SampleJob | TextJob


class ShardWorker:
    """Encodes one group of samples, or of texts, and writes its tar. Built once per process: the networks load once.

    Args:
        encoders: loaded already; None: this loads them.
    """

    def __init__(self, out: str, model: ModelConfig, cfg: EncodeConfig, encoders: Encoders | None = None):
        self.out, self.cfg = out, cfg
        self.context_frames = model.audio_encoder.context_frames
        self.encoders = encoders or load_encoders(model, cfg)

    def run(self, payload: Job) -> Result:
        """The tar is there whole before this returns."""
        if isinstance(payload, TextJob):
            return texts.encode_texts(self.out, payload, self.encoders.text)
        samples = [PlannedSample.from_json(text) for text in payload.samples]
        encoded, failed = encode_group(samples, self.encoders, self.cfg, self.context_frames)
        tables = {"failed": _failed(failed)}
        if encoded:
            found, tables["tars"] = files.save_tar(self.out, payload.tar, (item.written for item in encoded))
            rows = [
                IndexRow(item.sample, payload.generation, item.audio, found[item.sample.sample_id]) for item in encoded
            ]
            tables["samples"] = index.encoded_table(rows)
        return Result(tables, amount=sum(planned.frames for planned in samples) / FPS)


def _failed(left: list[LeftOut]) -> pa.Table:
    rows = [(item.sample.sample_id, item.sample.source.video_id, item.sample.source.uri, item.cause) for item in left]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(FAILED)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, FAILED, strict=True)], schema=FAILED)


def sample_units(generation: str, plan: pa.Table, now: Mapping[str, str]) -> list[Unit[SampleJob]]:
    """One unit per tar. Its id is that of the plan; ``now`` says where the source of each clip lies today."""
    groups: dict[str, list[str]] = {}
    for tar, text in zip(plan["tar"].to_pylist(), plan["sample"].to_pylist(), strict=True):
        groups.setdefault(tar, []).append(text)
    return [
        Unit(
            id=unit_id(tar, *group),
            payload=SampleJob(tar, generation, tuple(sample.at_source(text, now) for text in group)),
            key=tar,
            cost=float(len(group)),
            budget_s=BUDGET_PER_SAMPLE_S * (len(group) + 1),
        )
        for tar, group in groups.items()
    ]
