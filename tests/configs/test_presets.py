"""The two presets: same keys, other values; what is saved is what was run."""

from __future__ import annotations

from typing import Any

import pytest

from configs import schema, weights
from configs.errors import ConfigError


def _keys(value: Any, prefix: str = "") -> set[str]:
    """Dotted keys of nested mappings; lists and free tables (stages, mixes, buckets) are values."""
    if not isinstance(value, dict):
        return {prefix}
    return {prefix} | {key for name, item in value.items() for key in _keys(item, f"{prefix}.{name}")}


def test_presets_load_and_have_the_same_keys() -> None:
    first, second = (schema.read_preset(name) for name in schema.PRESETS)
    free = (".tasks.mix", ".guidance.prompts")
    differing = {k for k in _keys(first) ^ _keys(second) if not k.startswith(free)}
    assert not differing
    for name in schema.PRESETS:
        config = schema.load(name)
        assert schema.from_mapping(schema.to_mapping(config)) == config


def test_tiny_needs_no_pretrained_file_and_the_real_one_names_only_known_ones() -> None:
    assert weights.needs(schema.to_mapping(schema.load("tiny"))) == []
    real = weights.needs(schema.to_mapping(schema.load("wan2.1-fun-1.3b")))
    assert real and all(need.known is not None for need in real), [n for n in real if n.known is None]


def test_keys_that_others_rely_on() -> None:
    config = schema.load("tiny", ["sync.required=false", "dedup.enabled=false"])
    assert config.curation.sync.required is False and config.curation.dedup.enabled is False
    assert schema.load("tiny").curation.sync.required is True
    with pytest.raises(ConfigError, match="did you mean 'required'"):
        schema.load("tiny", ["sync.requird=false"])


def test_no_preset_names_a_fitted_syncnet() -> None:
    assert all(schema.load(name).curation.sync.fitted is None for name in schema.PRESETS)
