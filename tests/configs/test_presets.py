"""Presets: what they share stands once, a preset is as short as what it changes, and a mistake in one is a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import schema, strict, weights
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
    assert weights.needs(schema.sections(schema.load("tiny"))) == []
    real = weights.needs(schema.sections(schema.load("wan2.1-fun-1.3b")))
    assert real and all(need.known is not None for need in real), [n for n in real if n.known is None]


def test_keys_that_others_rely_on() -> None:
    config = schema.load("tiny", ["sync.required=false", "dedup.enabled=false"])
    assert config.curation.sync.required is False and config.curation.dedup.enabled is False
    assert schema.load("tiny").curation.sync.required is True
    with pytest.raises(ConfigError, match=r"did you mean 'sync\.required'"):
        schema.load("tiny", ["sync.requird=false"])


def test_no_preset_names_a_fitted_syncnet() -> None:
    assert all(schema.load(name).curation.sync.fitted is None for name in schema.PRESETS)


def _write(folder: Path, **files: str) -> Path:
    """YAML files; the first one's path."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def _values(data: Any, where: str = "") -> dict[str, Any]:
    """Dotted name → everything that is replaced whole: all but sections."""
    if not isinstance(data, dict) or where in schema.tables():
        return {where: data}
    found: dict[str, Any] = {}
    for key, item in data.items():
        found |= _values(item, f"{where}.{key}".strip("."))
    return found


def test_no_value_stands_twice() -> None:
    base, *overlays = (_values(schema._parsed(name)) for name in (schema.BASE, *schema.PRESETS))
    for overlay in overlays:
        assert overlay.pop("extends") == schema.BASE
        assert not base.keys() & overlay.keys(), "a preset holds what differs"
    first, second = overlays
    assert first.keys() == second.keys()
    assert not [key for key in first if first[key] == second[key]], "what is equal stands in base.yaml"


def test_a_preset_of_three_lines_works(tmp_path: Path) -> None:
    path = _write(tmp_path, mine="extends: tiny\ndecide:\n  max_faces: 3\n")
    config = schema.load(str(path))
    assert config.preset == "mine" and config.curation.decide.max_faces == 3
    assert schema.to_mapping(config) == schema.to_mapping(schema.load("tiny", ["decide.max_faces=3"])) | {
        "preset": "mine"
    }


def test_sections_merge_and_everything_else_is_replaced_whole(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        child="extends: parent.yaml\ntasks: {mix: {lip_sync: 1.0}}\nstages: [{name: only, kind: sft, steps: 1}]\n",
        parent="extends: wan2.1-fun-1.3b\ndecide: {text: {subtitle: crop}}\noptim: {lr: 1.0}\n",
    )
    config, real = schema.load(str(path)), schema.load("wan2.1-fun-1.3b")
    assert config.train.tasks.mix == {"lip_sync": 1.0} and len(config.train.stages) == 1
    assert config.train.tasks.face_mask == real.train.tasks.face_mask
    assert config.train.optim.lr == 1.0 and config.train.optim.betas == real.train.optim.betas
    assert config.curation.decide.text == real.curation.decide.text | {"subtitle": "crop"}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_overlay_changes_what_it_names_and_nothing_else(data: st.DataObject) -> None:
    whole = schema.to_mapping(schema.load("tiny"))
    values = _values(whole)
    changed = data.draw(st.sets(st.sampled_from(sorted(values)), max_size=8))
    overlay: dict[str, Any] = {}
    for key in changed:
        *sections, last = key.split(".")
        node = overlay
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = "other"
    after = _values(schema._merged(whole, overlay))
    assert after == values | dict.fromkeys(changed, "other")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": "decide: {max_faces: 3}"}, "does not say what it extends; begin it with `extends: tiny`"),
        ({"a": "extends: b.yaml", "b": "extends: c.yaml", "c": "extends: a.yaml"}, "in a circle: .*a.yaml.*a.yaml"),
        ({"a": "extends: a.yaml"}, "in a circle"),
        ({"a": "extends: gone.yaml"}, "extends 'gone.yaml', which is neither a file"),
        ({"a": "extends: [tiny]"}, "must be the name or the path of one preset"),
        ({"a": "extends: base"}, r"a.yaml': configuration key '.*' is missing"),
        ({"a": "extends: tiny\nsync: {min_conf: 4}"}, r"a.yaml': .*'sync.min_conf'.*mean 'decide.sync_min_conf'\?"),
        ({"a": "extends: tiny\ndecide: {text: {subtitel: crop}}"}, r"did you mean 'decide.text.subtitle'\?"),
        ({"a": "extends: tiny\nseed: 1\nseed: 2"}, "line 3: 'seed' stands twice"),
        ({"a": "extends: tiny\nseed: [1"}, "not valid YAML, line 2"),
        ({"a": "extends: tiny\nseed: one"}, "'seed' must be int"),
        ({"a": ""}, "does not hold a mapping"),
    ],
)
def test_a_mistake_in_a_preset_is_one_sentence(tmp_path: Path, files: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        schema.load(str(_write(tmp_path, **files)))
    assert "\n" not in str(raised.value) and str(raised.value).count("preset '") <= 1 + words.count("circle")


@pytest.mark.parametrize(
    ("given_", "meant"),
    [
        ("sync_min_conf", "'decide.sync_min_conf'"),
        ("sync.min_conf", "'decide.sync_min_conf'"),
        ("decide.sync_min_conff", "'decide.sync_min_conf'"),
        ("sharpness", "'decide.min_sharpness'"),
        ("stages.2.lrr", "'stages.2.lr'"),
        ("stages.lr", "'stages.0.lr'"),
        ("lr", "'optim.lr' or 'stages.0.lr' or 'sync.fit.lr'"),
    ],
)
def test_a_key_that_is_not_there_is_looked_for_in_the_whole_configuration(given_: str, meant: str) -> None:
    with pytest.raises(ConfigError) as raised:
        schema.load("tiny", [f"{given_}=4"])
    assert str(raised.value) == f"configuration key '{given_}' is unknown; did you mean {meant}?"


def test_a_slip_of_one_letter_finds_the_key() -> None:
    known = schema.known_keys()
    keys = [key.split(".") for key in known if key.count(".") == 1 and len(key.split(".")[1]) >= 4]
    slips = {f"{section}.{name[:at]}{name[at + 1 :]}": name for section, name in keys for at in range(len(name))}
    names = [slip for slip in slips if slip not in known]
    hard = ["faces.weight", "sync.weight", "sync.shift", "sampler.schedule", "sampler.step", "guidance.prompt"]
    for slip in [*hard, *names[::15]]:  # all of them would take a minute
        assert f"'{slip.split('.')[0]}.{slips[slip]}'" in str(strict.UnknownKey(slip, known)), slip


def test_keys_with_defaults_and_new_entries_of_tables_can_be_set() -> None:
    config = schema.load("tiny", ["stages.0.lr=1e-4", "tasks.mix.t2v=0.2", "loader.keep.at_least.sharpness=0.3"])
    assert config.train.stages[0].lr == 1e-4 and config.train.tasks.mix["t2v"] == 0.2
    assert config.train.loader.keep.at_least == {"sharpness": 0.3}
