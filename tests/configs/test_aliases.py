"""Older names of configuration keys: read everywhere, said once, and without a digest that changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import aliases, schema, strict
from configs.aliases import Removed, Renamed
from configs.dataset_description import Description, EncoderName
from configs.errors import ConfigError
from pipeline.dataset.settings import read_described
from train.checkpoints import loading
from train.checkpoints.info import CheckpointInfo

OLD = {"conf_min": 4.0, "fitted_conf_min": None, "max_offset": 5, "max_residual": 2}
TABLE = (
    Renamed("decide.min_sharp", "decide.min_sharpness"),
    Renamed("read", "loader"),
    Renamed("loader.batch", "loader.global_batch"),
    Removed("decide.colour", "delete it"),
)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """:data:`TABLE` in place of the real one."""
    monkeypatch.setattr(aliases, "ROWS", TABLE)


def test_the_thresholds_of_the_sync_operator_became_those_of_the_decision() -> None:
    sync = {"vshift": 15}
    moved = aliases.modernise({"sync": sync | OLD})
    assert moved == {"sync": sync, "decide": {"sync_min_conf": 4.0, "sync_max_offset": 5, "sync_max_residual": 2}}
    both = aliases.modernise({"sync": dict(OLD), "decide": {"sync_min_conf": 1.0}})
    assert both["decide"] == {"sync_min_conf": 1.0, "sync_max_offset": 5, "sync_max_residual": 2}, "the new name wins"
    with pytest.raises(ConfigError, match=r"'sync\.fitted_conf_min' was removed: divide .* decide\.sync_min_fit_conf"):
        aliases.modernise({"sync": {"fitted_conf_min": 0.6}})


def test_an_override_by_an_old_name_is_applied_and_the_new_name_said() -> None:
    notes: list[str] = []
    given_ = ["sync.conf_min=4", "seed=1", "sync.fitted_conf_min=null"]
    assert aliases.translate(given_, notes.append) == ["decide.sync_min_conf=4", "seed=1"]
    assert notes == ["'sync.conf_min' is called 'decide.sync_min_conf' now."]
    with pytest.raises(ConfigError, match="divide it by the threshold"):
        aliases.translate(["sync.fitted_conf_min=0.6"])
    assert aliases.translate(["read.batch=3"], rows=TABLE) == ["loader.global_batch=3"]


@given(st.dictionaries(st.sampled_from(["a", "b", "old", "new"]), st.integers() | st.none()))
def test_a_renamed_key_keeps_its_value_and_nothing_else_moves(section: dict[str, int | None]) -> None:
    rows = (Renamed("s.old", "s.new"),)
    now = aliases.modernise({"s": section, "t": {"old": 1}}, rows)
    assert now["t"] == {"old": 1} and "old" not in now["s"]
    assert now["s"].get("new") == section.get("new", section.get("old"))
    assert {k: v for k, v in now["s"].items() if k != "new"} == {k: v for k, v in section.items() if k in "ab"}
    assert aliases.modernise(now, rows) == now


@pytest.mark.usefixtures("table")
def test_a_rename_changes_no_digest() -> None:
    config = schema.load("tiny")
    old_decide = strict.to_dict(config.curation.decide)
    old_decide["min_sharp"] = old_decide.pop("min_sharpness")
    assert strict.digest(config.curation.decide, "decide") == strict.digest(old_decide)
    old_loader = strict.to_dict(config.train.loader)
    old_loader["batch"] = old_loader.pop("global_batch")
    assert strict.digest(config.train.loader, "loader") == strict.digest(old_loader)
    whole = strict.to_dict(config.train)
    whole["read"] = old_loader
    del whole["loader"]
    assert strict.digest(config.train, "") == strict.digest(whole)


def test_what_came_from_another_section_is_no_part_of_a_digest() -> None:
    decide = schema.load("tiny").curation.decide
    assert strict.digest(decide, "decide") == strict.digest(decide)


@pytest.mark.usefixtures("table")
def test_presets_saved_configurations_and_overrides_are_read_by_their_old_names(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("extends: tiny\nread: {batch: 3}\ndecide: {min_sharp: 0.9, colour: null}\n")
    config = schema.load(str(path))
    assert (config.train.loader.global_batch, config.curation.decide.min_sharpness) == (3, 0.9)
    saved: dict[str, Any] = schema.to_mapping(schema.load("tiny"))
    saved["decide"]["min_sharp"] = saved["decide"].pop("min_sharpness") + 1
    assert schema.from_mapping(saved).curation.decide.min_sharpness == 1.27
    notes: list[str] = []
    assert schema.load("tiny", ["read.batch=5"], notes.append).train.loader.global_batch == 5
    assert len(notes) == 2 and schema.named(["read.batch=5", "decide.min_sharp=1"]) == {
        "loader.global_batch",
        "decide.min_sharpness",
    }


@pytest.mark.usefixtures("table")
def test_a_checkpoint_of_an_older_version_is_understood(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(
        '{"seed": 1, "train": {"read": {"batch": 3}}, "model": {"codec": {}}, "other": 1}'
    )
    info = loading.read_info(tmp_path)
    assert info == CheckpointInfo(seed=1, train={"loader": {"global_batch": 3}}, model={"codec": {}})


@pytest.mark.usefixtures("table")
def test_a_dataset_of_an_older_version_is_understood(tmp_path: Path) -> None:
    encoders = {"codec": {"name": "x", "digest": "d"}}
    (tmp_path / "dataset.json").write_text(json.dumps({"encoders": encoders, "settings": {"read": {"batch": 3}}}))
    found = read_described(str(tmp_path))
    settings = {"loader": {"global_batch": 3}}
    assert found == Description(encoders={"codec": EncoderName("x", "d")}, plans=(), settings=settings)


def test_new_names_exist() -> None:
    last = {row.old: row.new for row in aliases.ROWS if isinstance(row, Renamed)}
    for new in last.values():
        assert last.get(new, new) in schema.known_keys()


def test_old_names_are_no_keys() -> None:
    assert not {row.old for row in aliases.ROWS} & set(schema.known_keys())


def test_configurations_of_the_first_version_are_read(tmp_path: Path) -> None:
    saved = schema.to_mapping(schema.load("tiny"))
    assert schema.from_mapping(saved | {"sync": saved["sync"] | OLD}) == schema.load("tiny")
    path = tmp_path / "old.yaml"
    path.write_text("extends: tiny\nsync: {conf_min: 4.0, max_offset: 5}\n")
    decide = schema.load(str(path), ["sync.max_residual=2"]).curation.decide
    assert (decide.sync_min_conf, decide.sync_max_offset, decide.sync_max_residual) == (4.0, 5, 2)
