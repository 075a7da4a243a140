"""The whole configuration: one dataclass per package, read from one flat preset file.

The top level of a preset holds every section of every package once (``sync:``, ``transformer:``, ``stages:`` …);
the package that a section belongs to is the one whose dataclass has a field of that name.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from configs import strict
from configs.errors import ConfigError
from curation.config import CurationConfig
from evaluation.config import EvaluationConfig
from model.config import ModelConfig
from pipeline.config import PipelineConfig
from train.config import TrainConfig

PRESETS = ("tiny", "wan2.1-fun-1.3b")
_GROUPS: dict[str, type] = {
    "curation": CurationConfig,
    "pipeline": PipelineConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "evaluation": EvaluationConfig,
}


@dataclass(frozen=True)
class Config:
    """Everything a run depends on. ``preset`` names the file that the values started from."""

    preset: str
    seed: int
    curation: CurationConfig
    pipeline: PipelineConfig
    model: ModelConfig
    train: TrainConfig
    evaluation: EvaluationConfig


def load(preset: str = "tiny", overrides: list[str] | None = None) -> Config:
    """Read a preset (a name in :data:`PRESETS` or the path of a YAML file) and apply ``key=value`` overrides.

    Raises:
        ConfigError: no such preset, unknown key, wrong type.
    """
    return from_mapping(strict.override(read_preset(preset), overrides or []))


def read_preset(preset: str) -> dict[str, Any]:
    """The flat mapping of a preset file, with its name under ``preset``."""
    if preset in PRESETS:
        text, name = resources.files("configs").joinpath(f"{preset}.yaml").read_text("utf-8"), preset
    else:
        path = Path(preset)
        if not path.is_file():
            raise ConfigError(f"preset '{preset}' is neither a file nor one of: {', '.join(PRESETS)}.")
        text, name = path.read_text("utf-8"), path.stem
    data = yaml.safe_load(text)
    if not isinstance(data, dict):
        raise ConfigError(f"preset '{preset}' does not hold a mapping of sections.")
    return {"preset": name} | data


def from_mapping(data: dict[str, Any]) -> Config:
    """Build a :class:`Config` from the flat mapping of a preset or of a saved run."""
    grouped: dict[str, Any] = {name: {} for name in _GROUPS}
    owner = {field.name: group for group, cls in _GROUPS.items() for field in dataclasses.fields(cls)}
    known = set(owner) | {"preset", "seed"}
    for key, value in data.items():
        if key not in known:
            raise ConfigError(strict._unknown(key, key, dict.fromkeys(known)))
        if key in owner:
            grouped[owner[key]][key] = value
    built: dict[str, Any] = {group: strict.build(cls, grouped[group]) for group, cls in _GROUPS.items()}
    return Config(preset=str(data.get("preset", "custom")), seed=int(data.get("seed", 0)), **built)


def to_mapping(config: Config) -> dict[str, Any]:
    """The flat mapping that :func:`from_mapping` reads back; what is saved with every output."""
    flat: dict[str, Any] = {"preset": config.preset, "seed": config.seed}
    for group in _GROUPS:
        flat |= strict.to_dict(getattr(config, group))
    return flat
