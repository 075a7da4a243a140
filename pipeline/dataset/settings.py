"""What decides the bytes of a dataset: with other values nothing can be added to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from configs import aliases, difference, strict
from configs.dataset_description import Description, MadeWith
from configs.dataset_files import Damaged
from configs.dataset_schema import DATASET_FILE, SCHEMA_VERSION
from configs.errors import EchoForgeError
from model.config import ModelConfig
from pipeline.config import PipelineConfig
from pipeline.dataset import files
from pipeline.dataset.encode import Encoders

ENCODERS = ("codec", "text_encoder", "image_encoder", "audio_encoder")
"""Sections of the configuration that decide what the tensors hold."""
CONTINUES = ("shard", "shards add")
"""Commands that were perhaps interrupted while they replaced the index, and that `shard` finishes."""


def read_described(dataset: str, *unfinished: str) -> Description:
    """`dataset.json` of a dataset that says which encoders made it; its settings with the names of today."""
    description = files.read_description(dataset, unfinished=unfinished)
    if not description.encoders:
        raise Damaged(dataset, DATASET_FILE, "it does not say which encoders made the dataset")
    return replace(description, plans=description.plans or (), settings=aliases.modernise(description.settings or {}))


class Settings(Protocol):
    """The parts of the configuration that sharding reads."""

    @property
    def preset(self) -> str: ...
    @property
    def pipeline(self) -> PipelineConfig: ...
    @property
    def model(self) -> ModelConfig: ...


def parameters(cfg: PipelineConfig, encoders: Encoders) -> dict[str, str]:
    """Digests of what decides the bytes; the ledger and every plan hold them."""
    settings = {k: v for k, v in strict.to_dict(cfg.encode).items() if k != "device"}
    return {"encoders": encoders.digest, "encode": strict.digest(settings, "encode"), "format": str(SCHEMA_VERSION)}


def made_with(config: Settings) -> MadeWith:
    """The same values, readable, for `dataset.json`."""
    encoders = {name: strict.to_dict(getattr(config.model, name)) for name in ENCODERS}
    encode = {k: v for k, v in strict.to_dict(config.pipeline.encode).items() if k != "device"}
    return MadeWith(config.preset, encoders | {"encode": encode})


def check_settings(out: str, config: Settings, digests: dict[str, str] | None) -> None:
    """Compare ``config`` with what the dataset at ``out`` was made with, where a `dataset.json` says it.

    Args:
        digests: :func:`parameters` of ``config``; None before the encoders are loaded: then only encoders of another
            kind count.

    Raises:
        EchoForgeError: other settings; names the keys with both values, and the preset that made the dataset.
    """
    saved = Description()
    if files.exists(out, DATASET_FILE):
        saved = files.read_description(out, unfinished=CONTINUES)
    before, now = saved.made_with, made_with(config)
    if before is None or saved.parameters == digests:
        return
    changes = difference.differences(before.values, now.values)
    if changes and (digests is not None or any(".kind " in change for change in changes)):
        why = difference.summary(changes, before.preset, now.preset)
        raise EchoForgeError(f"dataset '{out}' was made with other settings ({why}): use those, or give another --out.")
