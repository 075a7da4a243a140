"""The whole configuration: one dataclass per package, read from presets.

A preset is a YAML file that begins with ``extends:`` (the name of another preset, or the path of one relative to the
file) and holds what differs from it. ``base.yaml`` is where they all end. Sections merge; every other value replaces
the inherited one whole: numbers, lists, and the tables whose keys are free (:func:`tables`, e.g. ``tasks.mix``).

The top level holds every section of every package once (``sync:``, ``transformer:``, ``stages:`` …); the package that
a section belongs to is the one whose dataclass has a field of that name. What is saved with outputs is the same mapping
whole, without ``extends``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from configs import aliases, strict
from configs.errors import ConfigError
from curation.config import CurationConfig
from evaluation.config import EvaluationConfig
from model.config import ModelConfig
from pipeline.config import PipelineConfig
from train.config import TrainConfig

PRESETS = ("tiny", "wan2.1-fun-1.3b")
BASE = "base"
"""What the presets share. Not whole, so not a preset itself."""
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


def load(preset: str = "tiny", overrides: list[str] | None = None, note: Callable[[str], None] | None = None) -> Config:
    """Read a preset (a name in :data:`PRESETS` or the path of a YAML file) and apply ``key=value`` overrides.

    Args:
        note: is given a sentence for every override that uses an older name of a key.

    Raises:
        ConfigError: no such preset, unknown key, wrong type.
    """
    try:
        config = from_mapping(read_preset(preset))
    except ConfigError as error:
        if preset in PRESETS or str(error).startswith("preset "):
            raise
        raise ConfigError(f"preset '{preset}': {error}") from error
    return override(config, overrides or [], note)


def override(config: Config, overrides: list[str], note: Callable[[str], None] | None = None) -> Config:
    """``config`` with ``key=value`` overrides applied; see :func:`load`."""
    if not overrides:
        return config
    current = aliases.translate(overrides, note)
    return from_mapping(strict.override(to_mapping(config), current, tables()))


def named(overrides: list[str]) -> set[str]:
    """Dotted names of the keys that ``key=value`` overrides set, by their names of today."""
    return {item.partition("=")[0].strip() for item in aliases.translate(overrides)}


def read_preset(preset: str) -> dict[str, Any]:
    """The flat mapping of a preset with all that it extends, and its name under ``preset``.

    Raises:
        ConfigError: no such preset, not YAML, ``extends`` missing, wrong or in a circle.
    """
    if preset in PRESETS:
        name = preset
    else:
        if preset == BASE:
            raise ConfigError(f"preset '{BASE}' is only what presets share; use one of: {', '.join(PRESETS)}.")
        if not Path(preset).is_file():
            raise ConfigError(f"preset '{preset}' is neither a file nor one of: {', '.join(PRESETS)}.")
        name = Path(preset).stem
    return {"preset": name} | _resolved(preset if preset in PRESETS else Path(preset), ())


def _resolved(preset: str | Path, below: tuple[str | Path, ...]) -> dict[str, Any]:
    """A preset merged over what it extends; ``below`` are those that led here."""
    data = modernised(_parsed(preset))
    if preset == BASE:
        return data
    if "extends" not in data:
        raise ConfigError(
            f"preset '{preset}' does not say what it extends; begin it with `extends: {PRESETS[0]}` "
            f"(or {', '.join((*PRESETS[1:], BASE))}, or another preset's path)."
        )
    parent = _parent(preset, data.pop("extends"))
    chain = (*below, preset)
    if parent in chain:
        circle = " → ".join(f"'{item}'" for item in (*chain[chain.index(parent) :], parent))
        raise ConfigError(f"presets extend each other in a circle: {circle}; one of them must extend `{BASE}`.")
    inherited = _resolved(parent, chain)
    inherited.pop("preset", None)
    return _merged(inherited, data)


def _parent(preset: str | Path, extends: Any) -> str | Path:
    """What ``preset`` extends: a name, or an absolute path."""
    if not isinstance(extends, str):
        raise ConfigError(f"preset '{preset}': `extends` must be the name or the path of one preset, got {extends!r}.")
    if extends in (BASE, *PRESETS):
        return extends
    path = Path(extends)
    if isinstance(preset, Path):
        path = preset.resolve().parent / path
    if not path.is_file():
        raise ConfigError(
            f"preset '{preset}' extends '{extends}', which is neither a file (looked for at {path}) nor one of: "
            f"{', '.join((BASE, *PRESETS))}."
        )
    return path.resolve()


_MOST_BYTES = 1 << 20  # of a preset; ours have 15 kB


def _parsed(preset: str | Path) -> dict[str, Any]:
    """The mapping in one file, as it stands there."""
    try:
        if isinstance(preset, Path):
            if preset.stat().st_size > _MOST_BYTES:
                raise ConfigError(f"preset '{preset}' has more than {_MOST_BYTES} bytes; is it a preset at all?")
            text = preset.read_text("utf-8")
        else:
            text = resources.files("configs").joinpath(f"{preset}.yaml").read_text("utf-8")
        data = strict.parse(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"preset '{preset}' is not valid YAML{where}: {problem}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"preset '{preset}' cannot be read as text: {error}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"preset '{preset}' does not hold a mapping of sections.")
    return data


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: the first value would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no key of ours: the conversion says so
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _merged(under: dict[str, Any], over: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """``over`` laid on ``under``: sections merge, every other value replaces."""
    result = dict(under)
    for key, value in over.items():
        path = f"{where}.{key}" if where else str(key)
        if isinstance(value, dict) and isinstance(under.get(key), dict) and path not in tables():
            value = _merged(under[key], value, path)
        result[key] = value
    return result


@cache
def tables() -> frozenset[str]:
    """Dotted names of the mappings whose keys are free: values, not sections."""
    return frozenset(name for cls in _GROUPS.values() for name in strict.tables(cls))


@cache
def known_keys() -> tuple[str, ...]:
    """Dotted names of all sections and keys; of lists the item number 0."""
    return ("preset", "seed", *(name for cls in _GROUPS.values() for name in strict.known_keys(cls)))


def modernised(data: Mapping[str, Any]) -> dict[str, Any]:
    """A flat mapping, whole or in part, with the names of today (:mod:`configs.aliases`)."""
    return aliases.modernise(data)


def from_mapping(data: Mapping[str, Any]) -> Config:
    """Build a :class:`Config` from the flat mapping of a preset or of a saved run.

    Raises:
        ConfigError: unknown key (with the nearest ones of the whole configuration), missing key, or a wrong type.
    """
    data = modernised(data)
    grouped: dict[str, Any] = {name: {} for name in _GROUPS}
    owner = {field.name: group for group, cls in _GROUPS.items() for field in dataclasses.fields(cls)}
    for key, value in data.items():
        if key in owner:
            grouped[owner[key]][key] = value
        elif key not in ("preset", "seed"):
            raise strict.UnknownKey(str(key), known_keys())
    try:
        built: dict[str, Any] = {group: strict.build(cls, grouped[group]) for group, cls in _GROUPS.items()}
    except strict.UnknownKey as error:
        raise strict.UnknownKey(error.path, known_keys()) from error
    seed = strict.convert(data.get("seed", 0), int, "seed")
    return Config(preset=str(data.get("preset", "custom")), seed=seed, **built)


def sections(config: Config) -> dict[str, strict.Section]:
    """Every section of every package by its name, as :func:`configs.weights.needs` takes them."""
    groups = [getattr(config, group) for group in _GROUPS]
    return {field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}


def to_mapping(config: Config) -> dict[str, Any]:
    """The flat mapping that :func:`from_mapping` reads back; what is saved with every output."""
    flat: dict[str, Any] = {"preset": config.preset, "seed": config.seed}
    for group in _GROUPS:
        flat |= strict.to_dict(getattr(config, group))
    return flat
