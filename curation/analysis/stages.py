"""The stages of an analysis: what each reads of the configuration, its version, and whose results it uses.

Five stages belong to the pass itself; the others are the operators, found in the modules of `curation.operators`. What
the ledger compares, what runs again after a change and which keys only decide are derived from this one list. Importing
it imports the operators' modules; nothing is made and no network is loaded.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass

from configs import strict
from curation import operators
from curation.config import CurationConfig
from curation.operators import base
from curation.operators.base import FrameOperator, Operator, SoundOperator

DECIDING = ("decide", "dedup", "sync.required")
"""What the decision reads. Keys of these that no stage reads (:func:`stages_of`) change nothing but verdicts."""


@dataclass(frozen=True)
class Stage:
    """One part of the analysis whose result depends on a section of the configuration; see `Operator` for the rest."""

    name: str
    section: str | None
    version: int = 1
    keys: tuple[str, ...] | None = None
    switch: str | None = None
    requires: tuple[str, ...] = ()
    moves_clips: bool = False  # a change of it can move clips, so everything depends on it

    def on(self, cfg: CurationConfig) -> bool:
        """Is it switched on?"""
        return self.switch is None or bool(getattr(getattr(cfg, str(self.section)), self.switch))

    def reads(self, key: str, cfg: CurationConfig) -> bool:
        """Does its result depend on the configuration key ``key`` (dotted) or a part of it?"""
        section, _, inside = key.partition(".")
        name = inside.partition(".")[0]
        return section == self.section and (not name or name in self._keys(cfg))

    def digest(self, cfg: CurationConfig) -> str:
        """Of its parameters and its version."""
        if self.section is None:
            return f"{strict.digest({})}.{self.version}"
        values = strict.to_dict(getattr(cfg, self.section))
        return f"{strict.digest({key: values[key] for key in self._keys(cfg)}, self.section)}.{self.version}"

    def _keys(self, cfg: CurationConfig) -> tuple[str, ...]:
        if not self.on(cfg):  # nothing else of the section matters
            return (str(self.switch),)
        return self.keys or tuple(strict.to_dict(getattr(cfg, str(self.section))))


FIXED = ("video", "shots", "clips", "faces", "sync")
"""Stages that are no operators."""


def _found() -> dict[str, type[Operator]]:
    """The operators in the modules of `curation.operators`, by name, in the order of the modules' names.

    Raises:
        TypeError: a class leaves something undefined, neither looks nor listens, or has the name of another one.
    """
    found: dict[str, type[Operator]] = {}
    modules = {m.name for m in pkgutil.walk_packages(operators.__path__, f"{operators.__name__}.")}
    for module in sorted(modules - {base.__name__}):
        for item in vars(importlib.import_module(module)).values():
            own = inspect.isclass(item) and issubclass(item, Operator) and item.__module__ == module
            if not own:
                continue
            if inspect.isabstract(item) or not issubclass(item, (FrameOperator, SoundOperator)):
                lacks = ", ".join(sorted(item.__abstractmethods__)) or "FrameOperator or SoundOperator above it"
                raise TypeError(f"{module}.{item.__name__} is no whole operator: it lacks {lacks}.")
            if item.name in found or item.name in FIXED:
                raise TypeError(f"{module}.{item.__name__}: there is a stage '{item.name}' already.")
            found[item.name] = item
    return found


OPERATORS: Mapping[str, type[Operator]] = _found()
"""Every operator by name."""
FRAME_OPERATORS = {name: item for name, item in OPERATORS.items() if issubclass(item, FrameOperator)}
"""Those that look at pictures."""
SOUND_OPERATORS = {name: item for name, item in OPERATORS.items() if issubclass(item, SoundOperator)}
"""Those that listen."""
STAGES: Mapping[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("video", "video", moves_clips=True),
        Stage("shots", "shots", moves_clips=True),
        Stage("clips", "clips", moves_clips=True),
        Stage("faces", "faces"),
        # version 2: the residual is measured for every offset. The crops need the face of every frame: shots and faces
        # are found again when this stage changes, and no other score is computed (`curation/analysis/incremental.py`).
        Stage(
            "sync", "sync", 2, ("backend", "weights", "fitted", "batch_size", "vshift", "min_frames"),
            requires=("faces",),
        ),
        *(Stage(o.name, o.section, o.version, o.keys, o.switch, o.requires) for o in OPERATORS.values()),
    )
}  # fmt: skip
"""Every stage by name."""


def parameters(cfg: CurationConfig) -> dict[str, str]:
    """Digest of the parameters of each stage, by name: what the ledger compares to know what to compute again.

    A stage that is switched off has none: scores that it gave earlier stay as they are.
    """
    return {name: stage.digest(cfg) for name, stage in STAGES.items() if stage.on(cfg)}


def outdated(before: Mapping[str, str], now: Mapping[str, str]) -> frozenset[str] | None:
    """The stages to run again when parameters change from ``before`` to ``now`` (both as :func:`parameters` gives them).

    Returns:
        Changed and new stages and all that depend on them; None when that is everything.
    """
    run = {name for name, digest in now.items() if before.get(name) != digest}
    if any(STAGES[name].moves_clips for name in run & STAGES.keys()):
        return None
    waiting = list(run)
    while waiting:
        changed = waiting.pop()
        dependent = {name for name, stage in STAGES.items() if changed in stage.requires} - run
        run |= dependent
        waiting += dependent
    return frozenset(run)


def stages_of(key: str, cfg: CurationConfig) -> list[str]:
    """The stages that must run again when the configuration key ``key`` (dotted) or a part of it changes."""
    return [name for name, stage in STAGES.items() if stage.reads(key, cfg)]


def decides(key: str, cfg: CurationConfig) -> bool:
    """Does ``key`` (dotted) change verdicts and nothing that is measured?"""
    return any(f"{key}.".startswith(f"{part}.") for part in DECIDING) and not stages_of(key, cfg)
