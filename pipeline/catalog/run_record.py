"""What is recorded of the run that decided a catalog: ``run.json``, and the same in ``tables.json``.

It holds the configuration that the tables were last decided with (``config``), and the deciding keys as the last `curate`
itself was configured (``as_curated``); where the two differ, `catalog redecide` set the value.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from configs import schema, strict
from configs.runtime.redaction import redact_address
from curation.analysis.stages import decides
from curation.report.content import RunFacts
from pipeline.engine.version import code_version

Setting = bool | int | float | str | Sequence[Any] | None
"""The value of a key of the configuration."""
Settings = dict[str, Setting]
"""By dotted name."""
_KEPT = ("seconds", "video_seconds", "sources", "as_curated")
_PACKAGES = ("av", "opencv-python-headless", "rapidocr", "torch", "ray")


@dataclass(frozen=True)
class RunRecord:
    """The record of a run; empty where a catalog has none.

    ``saved`` is the JSON object as it was written. One of another version keeps its keys and their order, because the
    bytes of ``run.json`` are compared with those that ``tables.json`` gives (`catalog verify`).
    """

    saved: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_curate(
        cls, seconds: Mapping[str, float], video_seconds: float, sources: int, given: schema.Config, notes: list[str]
    ) -> RunRecord:
        """What a run of `curate` did, before its tables are decided.

        Args:
            seconds: CPU seconds by operator.
            video_seconds: of the videos analysed.
            sources: how many were given.
            given: the configuration that it was given, whatever `catalog redecide` had set before.
            notes: one sentence each.
        """
        return cls(
            {
                "seconds": dict(seconds),
                "video_seconds": video_seconds,
                "sources": sources,
                "as_curated": _deciding(given),
                "notes": notes,
            }
        )

    def decided_again(self, own: schema.Config | None) -> RunRecord:
        """What stays when the tables are decided again; ``own`` is the configuration of the catalog, where it can be read."""
        kept = {key: self.saved[key] for key in _KEPT if key in self.saved}
        if own is not None:
            kept.setdefault("as_curated", _deciding(own))
        return RunRecord(kept)

    def facts(self) -> RunFacts:
        """What the report shows of the run."""
        run = self.saved
        return RunFacts(
            run.get("seconds") or {}, run.get("video_seconds") or 0.0, run.get("version"), run.get("config_digest")
        )

    def decided_with(self, config: schema.Config) -> RunRecord:
        """The record with what the tables are decided with, and by which version, now."""
        return RunRecord(
            {
                **self.saved,
                "version": code_version(),
                "config_digest": strict.digest(config.curation, ""),
                "preset": config.preset,
                "config": _redacted(schema.to_mapping(config)),
                "versions": {name: _version(name) for name in _PACKAGES},
                "python": platform.python_version(),
            }
        )

    @property
    def preset(self) -> str | None:
        """The name of the preset that the catalog was decided with; None where it does not say."""
        preset = self.saved.get("preset")
        return preset if isinstance(preset, str) else None

    def config(self) -> schema.Config | None:
        """The configuration that the tables were decided with; None where none is saved.

        Raises:
            ConfigError: it is of another version of this program.
        """
        mapping = self.saved.get("config")
        return None if mapping is None else schema.from_mapping(mapping)

    def last(self) -> Settings:
        """The settings that the tables were decided with, under their names of today.

        Raises:
            ConfigError: they cannot be read.
        """
        return dict(_leaves(schema.modernised(self.saved.get("config") or {})))

    def as_curated(self) -> Settings:
        """The deciding settings that the last `curate` was given, under their names of today.

        Raises:
            ConfigError: they cannot be read.
        """
        return dict(_leaves(schema.modernised(self.saved.get("as_curated") or {})))

    def text(self) -> bytes:
        """The bytes of ``run.json``."""
        return json.dumps(self.saved, indent=1, ensure_ascii=False).encode()


def deciding(config: schema.Config) -> Settings:
    """The settings that change verdicts and nothing else."""
    return dict(_leaves(_deciding(config)))


def with_settings(config: schema.Config, settings: Settings) -> schema.Config:
    """``config`` with these settings in place of its own."""
    mapping = schema.to_mapping(config)
    for key, value in settings.items():
        *sections, last = key.split(".")
        node = mapping
        for section in sections:
            node = node[section]
        node[last] = value
    return schema.from_mapping(mapping)


def _deciding(config: schema.Config) -> dict[str, Any]:
    mapping = schema.to_mapping(config)
    return {
        section: inside
        for section in mapping
        if isinstance(mapping[section], dict)
        and (inside := {k: v for k, v in mapping[section].items() if decides(f"{section}.{k}", config.curation)})
    }


def _leaves(mapping: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Setting]]:
    """Dotted name and value of everything that is no mapping."""
    for key, value in mapping.items():
        path = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


def _redacted(value: Any) -> Any:
    """The same tree with no credentials in its addresses."""
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item) for item in value]
    return redact_address(value) if isinstance(value, str) else value


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
