"""The strict loader: what goes in comes out, and a mistake is one clear sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from configs import strict
from configs.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"] = "a"
    path: str | None = None
    rate: float = 1.0


@dataclass(frozen=True)
class Outer:
    inner: Inner
    sizes: tuple[int, ...]
    pair: tuple[float, float]
    table: dict[str, float] = field(default_factory=dict)
    stages: list[Inner] = field(default_factory=list)


GOOD = {
    "inner": {"kind": "b", "path": "x"},
    "sizes": [1, 2, 3],
    "pair": [1, 2.5],
    "table": {"k": 1},
    "stages": [{"rate": "1e-4"}],
}


def test_round_trip() -> None:
    config = strict.build(Outer, GOOD)
    assert config.sizes == (1, 2, 3) and config.pair == (1.0, 2.5) and config.stages[0].rate == 1e-4
    assert strict.build(Outer, strict.to_dict(config)) == config
    assert strict.digest(config) == strict.digest(strict.build(Outer, strict.to_dict(config)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inner": {"knd": "a"}}, "'inner.knd' is unknown; did you mean 'inner.kind'"),
        ({"inner": {"kind": "c"}}, "'inner.kind' is 'c'; allowed"),
        ({"sizes": [1, "2"]}, "'sizes.1' must be int"),
        ({"sizes": [True]}, "'sizes.0' must be int"),
        ({"pair": [1]}, "must have 2 items"),
        ({"inner": 3}, "must be a mapping"),
        ({"stages": [{"rate": "fast"}]}, "'stages.0.rate' must be float"),
    ],
)
def test_mistakes_name_the_key(change: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
        strict.build(Outer, GOOD | change)


def test_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="'pair' is missing"):
        strict.build(Outer, {k: v for k, v in GOOD.items() if k != "pair"})


def test_overrides_change_only_what_they_name() -> None:
    changed = strict.override(GOOD, ["inner.kind=a", "stages.0.rate=2", "inner.path=null"])
    assert changed["inner"] == {"kind": "a", "path": None} and changed["stages"] == [{"rate": 2}]
    assert GOOD["inner"] == {"kind": "b", "path": "x"}
    for bad in ("inner.knd=1", "stages.4.rate=1", "inner", "inner.kind=[", "sizes.x=1"):
        with pytest.raises(ConfigError):
            strict.override(GOOD, [bad])
