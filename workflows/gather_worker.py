"""Generates negatives: one batch of held-out conditions → latents, videos, and the measures of both sides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save

from configs import aliases, strict
from configs.dataset_schema import NEGATIVES
from configs.errors import EchoForgeError
from configs.runtime.devices import usable
from configs.schema import Config
from curation.media.clip_writer import write_video
from evaluation import defects as judge
from model import pixels
from model.codecs import load_codec
from model.sampler import SamplerInputs, sample
from pipeline import storage
from pipeline.dataset import files as dataset_files
from pipeline.dataset.index import members_of
from pipeline.engine.unit import Result, unit_id
from train.checkpoints import loading, retention
from train.data import inputs
from train.data.index import SampleIndex, open_index
from train.data.loader import Loader
from train.state import Weights
from workflows.networks import autocast_for, load_network

SPLIT = "negatives"
"""Of the dataset; nothing trains on it."""
REAL = pa.schema([("sample_id", pa.string()), ("scores", NEGATIVES.field("scores").type)])
"""Measures of the real samples, after the same codec."""
_SECTIONS = ("sampler", "guidance")
"""Of the configuration: what a sample depends on and its row holds."""


@dataclass(frozen=True)
class GatherJob:
    """Samples to generate under one task: rows of the negatives split, their ids, and a seed for each."""

    rows: tuple[int, ...]
    ids: tuple[str, ...]
    seeds: tuple[int, ...]
    task: str


@dataclass(frozen=True)
class Generated:
    """One generated sample and its measures; latents and video lie in files."""

    negative_id: str
    sample_id: str
    prompt: str
    seed: int
    scores: Mapping[str, float]
    thumbnail: bytes


class GatherWorker:
    """Generates and measures. Built once per process: network, codec and index load once."""

    def __init__(self, config: Config, dataset: str, step: Path, stage: str, weights: Weights, folder: Path) -> None:
        self.config, self.dataset, self.step, self.stage, self.weights = config, dataset, step, stage, weights
        self.folder, self.device = folder, config.pipeline.gather.device
        usable(self.device, "gather.device", "gather.share.gpus=0")
        self.network = load_network(step, config.model.transformer, self.device, weights)
        self.codec = load_codec(config.model.codec, self.device)
        self.index = open_index(dataset, split=SPLIT, keep=config.train.loader.keep)
        self.prompts = inputs.read_prompts(dataset)
        self.digest = loading.digest(step, weights) if retention.is_pinned(step) else ""

    def run(self, payload: GatherJob) -> Result:
        """Latents and videos are written before this returns."""
        config, task = self.config, payload.task
        count = len(payload.rows)
        chosen = _subset(self.index, payload.rows)
        with Loader(
            self.dataset,
            config.train.loader,
            seed=0,
            global_batch=count,
            tasks=[task],
            once=True,
            pin=False,
            index=chosen,
        ) as source:
            batch = next(source)
        given = inputs.assemble(
            batch, [inputs.Keep()] * count, self.prompts, config.train.tasks,
            text_len=config.model.transformer.text_len, variant=config.model.transformer.variant,
            tasks=[task] * count,
        )  # fmt: skip
        seeds = [payload.seeds[payload.ids.index(name)] for name in batch.sample_ids]
        latents = sample(
            self.network, sampler_inputs(given, self.prompts, batch.tokens_per_frame), config.model.sampler,
            config.model.guidance, config.model.phda, seeds=seeds, device=self.device,
            autocast=autocast_for(self.device),
        ).cpu()  # fmt: skip
        videos, real = self._pixels(latents), self._pixels(given.real)
        made, known = [], []
        captions = _captions(chosen, batch.sample_ids)
        for k, name in enumerate(batch.sample_ids):
            boxes = batch["face_boxes"][k].numpy() if "face_boxes" in batch else None
            scores = judge.measure(videos[k], real[k][0], boxes)
            made.append(self._store(name, seeds[k], task, captions[name], videos[k], latents[k], scores))
            known.append(judge.measure(real[k], real[k][0], boxes))
        measured = pa.table([list(batch.sample_ids), pairs(known)], schema=REAL)
        return Result({"samples": self._table(task, made), "real": measured}, amount=count * batch.frames / 25)

    def _pixels(self, latents: torch.Tensor) -> np.ndarray:
        """uint8 [B, F, H, W, 3]."""
        with torch.inference_mode():
            return pixels.to_bytes(self.codec.decode(latents.to(self.device).float()))

    def _store(
        self, name: str, seed: int, task: str, caption: str, video: np.ndarray, latents: torch.Tensor,
        scores: Mapping[str, float],
    ) -> Generated:  # fmt: skip
        first = [
            json.dumps(aliases.as_first_named(strict.to_dict(getattr(self.config.model, key)), key), sort_keys=True)
            for key in _SECTIONS
        ]
        ident = unit_id(self.digest, self.stage, name, task, seed, *first)[:16]
        storage.write_bytes(str(self.folder / "latents" / f"{ident}.safetensors"), save({"latents": latents.float()}))
        write_video(self.folder / "videos" / f"{ident}.mp4", video, None)
        return Generated(ident, name, caption, seed, scores, _strip(video))

    def _table(self, task: str, made: Sequence[Generated]) -> pa.Table:
        """What is known before all samples are there; flags come by comparison."""
        model = self.config.model
        same = {
            "stage": self.stage,
            "step": int(self.step.name.removeprefix("step-")),
            "checkpoint_digest": self.digest,
            "weights": self.weights,
            "dataset_digest": "",
            "task": task,
            **{key: json.dumps(strict.to_dict(getattr(model, key)), sort_keys=True) for key in _SECTIONS},
            "phda": model.phda.schedule,
        }
        columns = {
            **{name: [value] * len(made) for name, value in same.items()},
            **{name: [getattr(item, name) for item in made] for name in ("negative_id", "sample_id", "prompt", "seed")},
            "audio_source": [item.sample_id for item in made],
            "prompt_hash": [strict.digest(item.prompt) for item in made],
            "scores": pairs([item.scores for item in made]),
            "real_quantiles": [[] for _ in made],
            "flags": [[] for _ in made],
            "thumbnail": [item.thumbnail for item in made],
            "video_path": [f"videos/{item.negative_id}.mp4" for item in made],
            "latents_path": [f"latents/{item.negative_id}.safetensors" for item in made],
        }
        return pa.table([pa.array(columns[field.name], field.type) for field in NEGATIVES], schema=NEGATIVES)


def sampler_inputs(given: inputs.Inputs, prompts: Mapping[str, torch.Tensor], tokens_per_frame: float) -> SamplerInputs:
    """What training assembles, as the sampler takes it; the prompts beside ``null`` are the negative ones."""
    return SamplerInputs(
        cond=given.cond, text=given.text, negatives={k: v for k, v in prompts.items() if k != "null"},
        image=given.image, audio=given.audio, audio_valid=given.audio_valid, audio_frame0=given.audio_frame0,
        tokens_per_frame=round(tokens_per_frame), face_mask=given.face_mask,
    )  # fmt: skip


def _subset(index: SampleIndex, rows: Sequence[int]) -> SampleIndex:
    """The same index with only the given rows."""
    table = index.table.take(pa.array(rows))
    buckets = np.asarray(table["bucket"].to_pylist())
    return replace(index, table=table, members={str(b): np.flatnonzero(buckets == b) for b in sorted(set(buckets))})


def _captions(index: SampleIndex, ids: tuple[str, ...]) -> dict[str, str]:
    """The main caption of each sample, read from its tar member."""
    held = dict(members_of(index.table))
    found = {}
    for name in ids:
        member = next((m for m in held[name] if m.ext == "txt"), None)
        if member is None:
            raise EchoForgeError(f"sample {name} of '{index.root}' has no caption; run `shards verify` on the dataset.")
        try:
            found[name] = dataset_files.read_member(index.root, member).decode()
        except UnicodeDecodeError as error:
            raise EchoForgeError(f"the caption of sample {name} of '{index.root}' is not UTF-8 text.") from error
    return found


def pairs(rows: Sequence[Mapping[str, float]]) -> pa.Array:
    """A column of measures by name."""
    content = [[{"name": name, "value": float(value)} for name, value in row.items()] for row in rows]
    return pa.array(content, NEGATIVES.field("scores").type)


def _strip(video: np.ndarray, count: int = 8) -> bytes:
    import cv2

    picks = video[np.linspace(0, len(video) - 1, min(count, len(video))).round().astype(int)]
    strip = cv2.cvtColor(np.concatenate(list(picks), axis=1), cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", strip, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])
