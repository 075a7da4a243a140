"""Verdicts anew from the scores in the tables: which keys can do that, what changed, what a later `curate` keeps.

The rule: what `catalog redecide` set stays until a command names that key (:mod:`pipeline.catalog.run_record`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass

import pyarrow as pa

from configs import folders, schema
from configs.errors import ConfigError, EchoForgeError
from curation.analysis.stages import decides, parameters, stages_of
from curation.schema import VERDICTS
from pipeline import storage
from pipeline.catalog.generation import REPORT_FILE, RUN_FILE
from pipeline.catalog.run_record import Setting, deciding, with_settings
from pipeline.catalog.summary import Standing, count, describing, reason_counts, standing
from pipeline.catalog.tables import saved
from pipeline.catalog.writer import rewrite
from pipeline.engine import lease

Note = Callable[[str], None]


@dataclass(frozen=True)
class Redecision:
    """What deciding again changed. Counts are of clips."""

    catalog: str
    settings: dict[str, tuple[Setting, Setting]]  # key → value before, after
    before: dict[str, int]  # by verdict
    clips: dict[str, int]  # by verdict, now
    moved: dict[tuple[str, str], int]  # (verdict before, now)
    reasons: dict[str, tuple[int, int]]  # rule → clips that it speaks against, before and now; only where it differs
    standing: Standing
    report: str

    def __str__(self) -> str:
        lines = [f"{self.catalog}: {sum(self.clips.values())} clips decided again"]
        lines += [f"  {key}: {shown(old)} → {shown(new)}" for key, (old, new) in self.settings.items()]
        lines += ["", f"  {'':<16}{'before':>8}{'now':>8}{'change':>8}"]
        for verdict in VERDICTS:
            if self.before.get(verdict) or self.clips.get(verdict):
                lines.append(_row(verdict, self.before.get(verdict, 0), self.clips.get(verdict, 0)))
        for (old, new), clips in sorted(self.moved.items(), key=lambda item: -item[1]):
            lines.append(f"  {clips} from {old} to {new}")
        if not self.moved:
            lines.append("  no verdict changed")
        if self.reasons:
            lines += ["", f"  {'clips against':<16}"]
            by_change = sorted(self.reasons.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[0]))
            lines += [_row(rule, *counts) for rule, counts in by_change]
        return "\n".join([*lines, f"report: {self.report}", *self.standing.next_steps()])


def _row(name: str, before: int, now: int) -> str:
    return f"  {name:<16}{before:>8}{now:>8}{now - before:>+8}"


def shown(value: Setting) -> str:
    """A value as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def configuration(catalog_dir: str, overrides: list[str], note: Note | None = None) -> schema.Config | None:
    """The configuration that the catalog was made (or last decided) with, and ``overrides``; None where none is saved.

    Args:
        note: as in `schema.load`.

    Raises:
        ConfigError: an unknown key or a wrong type in ``overrides``.
        EchoForgeError: the saved one is of another version of this program.
    """
    record = saved(catalog_dir)
    try:
        config = record.config()
    except ConfigError as error:
        url = storage.join(catalog_dir, RUN_FILE)
        message = f"the configuration saved in '{url}' is of another version ({str(error).rstrip('.')}); name one with --preset."
        raise EchoForgeError(message) from error
    return None if config is None else schema.override(config, overrides, note)


def chosen(catalog_dir: str, preset: str | None, overrides: list[str], note: Note | None = None) -> schema.Config:
    """The configuration to decide a catalog again with: its own with ``overrides``.

    Args:
        preset: take the deciding keys of this preset instead of the catalog's own.
        note: is given sentences about older names, and about what is not taken from ``preset``.

    Raises:
        ConfigError: ``overrides`` name an unknown key, or one that changes more (or less) than verdicts.
        EchoForgeError: the configuration saved with the catalog is of another version, and no preset is named.
    """
    try:
        own = configuration(catalog_dir, [])
    except EchoForgeError:
        if preset is None:
            raise
        own = None
    start = own if own is not None and preset is None else schema.load(preset or "tiny")
    asked = schema.override(start, overrides, note)
    for key in sorted(schema.named(overrides)):
        if decides(key, start.curation):
            continue
        if stages := stages_of(key, start.curation):
            what = f"it changes what is measured ({', '.join(stages)}); run `curate` again with it"
        else:
            what = "no verdict depends on it"
        raise ConfigError(f"`catalog redecide` cannot apply '{key}': {what}.")
    if own is None:
        return asked
    before, now = (parameters(c.curation) for c in (own, start))
    if note is not None and (differ := sorted(k for k in {*before, *now} if before.get(k) != now.get(k))):
        note(
            f"only what decides is taken from preset '{preset}': {', '.join(differ)} stay as measured; "
            f"`curate --preset {preset}` measures again."
        )
    return with_settings(own, deciding(asked))


def redecide(catalog_dir: str, config: schema.Config) -> Redecision:
    """Decide the tables of a catalog again, without decoding anything.

    Args:
        config: its deciding keys are used; the others stay those that the catalog was measured with.

    Raises:
        EchoForgeError: no catalog is there, a run was interrupted while it wrote it, or another process changes it.
    """
    folders.check_out_folder(catalog_dir)
    with lease.locked(catalog_dir, "catalog", "catalog redecide", make=False):
        return _redecide(catalog_dir, config)


def _redecide(catalog_dir: str, config: schema.Config) -> Redecision:
    """:func:`redecide` with the catalog locked."""
    settings: dict[str, tuple[Setting, Setting]] = {}
    record = saved(catalog_dir).decided_again(own := _readable(catalog_dir))
    if own is not None:
        old, new = deciding(own), deciding(config)
        settings = {key: (old[key], new[key]) for key in new if old[key] != new[key]}
        config = with_settings(own, new)
    videos, clips, before = rewrite(catalog_dir, config.curation, describing(config, record))
    reasons, now = reason_counts(before["reasons"]), reason_counts(clips["reasons"])
    pairs = (
        pa.table({"before": before["verdict"], "now": clips["verdict"]})
        .group_by(["before", "now"])
        .aggregate([([], "count_all")])
    )
    return Redecision(
        catalog_dir,
        settings,
        count(before["verdict"]),
        count(clips["verdict"]),
        {(p["before"], p["now"]): p["count_all"] for p in pairs.to_pylist() if p["before"] != p["now"]},
        {rule: (reasons[rule], now[rule]) for rule in sorted({*reasons, *now}) if reasons[rule] != now[rule]},
        standing(catalog_dir, videos, clips, config.preset),
        storage.join(catalog_dir, REPORT_FILE),
    )


def carried(catalog_dir: str, config: schema.Config, named: Collection[str], say: Note) -> schema.Config:
    """What `curate` decides an existing catalog with: its own configuration, and what `redecide` set since.

    A key that the command itself names wins. Every difference to the last decision is said.

    Args:
        config: what `curate` was given.
        named: dotted names of the keys given with ``--set``.
        say: is given a line about the keys that are kept, and one about those that change.
    """
    record = saved(catalog_dir)
    asked = deciding(config)
    try:
        last, curated = record.last(), record.as_curated()
    except ConfigError as error:
        say(f"the thresholds that '{catalog_dir}' was decided with are not kept: {error}")
        return config
    differ = {key: last[key] for key in asked if key in last and last[key] != asked[key]}
    set_since = {key for key in differ if key in curated and curated[key] != last[key]}
    kept = {key: differ[key] for key in differ if key in set_since and not _covers(named, key)}
    if kept:
        what = ", ".join(f"{key}={shown(value)} (here: {shown(asked[key])})" for key, value in kept.items())
        say(f"kept as `catalog redecide` set it: {what}; name a key with --set to change it.")
    if changed := [key for key in differ if key not in kept]:
        what = ", ".join(f"{key} {shown(differ[key])} → {shown(asked[key])}" for key in changed)
        say(f"decided otherwise than before: {what}.")
    return with_settings(config, kept) if kept else config


def _covers(named: Collection[str], key: str) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in named)


def _readable(catalog_dir: str) -> schema.Config | None:
    try:
        return configuration(catalog_dir, [])
    except EchoForgeError:
        return None
