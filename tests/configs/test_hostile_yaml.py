"""Presets and values of `--set` from strangers: one sentence each, at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs import schema
from configs.errors import ConfigError

BOMB = "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))])
MERGED = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12))]
)
TEXTS = {
    "a bomb of aliases": BOMB,
    "a bomb of merges": MERGED,
    "a list that holds itself": "seed: &a [*a]",
    "a mapping that holds itself": "loader: &a {b: *a}",
    "deep nesting": "seed: " + "[" * 20_000,
    "deeply nested mappings": "seed: " + "{a: " * 20_000,
    "a number of ten thousand digits": "seed: " + "1" * 10_000,
    "a date that there is not": "seed: 2001-99-99",
    "a key that is a list": "? [1]\n: 2",
    "an object": "seed: !!python/object/apply:os.system ['true']",
}


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.timeout(30)
def test_a_hostile_preset_is_a_sentence(case: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"extends: tiny\n{TEXTS[case]}\n")
    with pytest.raises(ConfigError):
        schema.load(str(tmp_path / "p.yaml"))


@pytest.mark.parametrize(
    "value",
    ["[" * 20_000, "{a: " * 20_000, "1" * 10_000, "2001-99-99", "&a [*a]", "{[1]: 2}", "2001-01-01", "!!set {1}"],
)
@pytest.mark.timeout(30)
def test_a_hostile_value_is_a_sentence(value: str) -> None:
    with pytest.raises(ConfigError):
        schema.load("tiny", [f"seed={value}"])


def test_a_preset_of_a_gigabyte_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "p.yaml").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="is it a preset at all"):
        schema.load(str(tmp_path / "p.yaml"))
