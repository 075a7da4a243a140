"""Configuration keys that were renamed or removed: the one table through which older configurations are read.

Presets, ``--set`` and what is saved with catalogs, datasets and runs pass through it. To rename a key, rename it in the
dataclass and in the YAML files and add a line to :data:`ROWS`. A rename within a section changes no digest
(:func:`as_first_named`), so nothing is computed again because of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.errors import ConfigError


@dataclass(frozen=True)
class Renamed:
    """``old`` and ``new`` are dotted names of a value or of a whole section; the value stays what it was."""

    old: str
    new: str


@dataclass(frozen=True)
class Removed:
    """A key that has no successor. Null is accepted and dropped; for any other value ``remedy`` says what to do."""

    old: str
    remedy: str


Row = Renamed | Removed

ROWS: tuple[Row, ...] = (
    # The operator only measures; `decide` alone judges.
    Renamed("sync.conf_min", "decide.sync_min_conf"),
    Renamed("sync.max_offset", "decide.sync_max_offset"),
    Renamed("sync.max_residual", "decide.sync_max_residual"),
    Removed(
        "sync.fitted_conf_min", "divide it by the threshold on the file's card and set decide.sync_min_fit_conf to that"
    ),
)


def modernise(mapping: Mapping[str, Any], rows: Sequence[Row] | None = None) -> dict[str, Any]:
    """A copy of a configuration (nested mappings) with the names of today; unknown keys stay as they are.

    Where a new name is there as well, it wins and the old one is dropped.

    Args:
        rows: the table; :data:`ROWS` if none.

    Raises:
        ConfigError: a removed key with a value that cannot be translated.
    """
    result = _copied(mapping)
    for row in ROWS if rows is None else rows:
        found, value = _take(result, row.old.split("."))
        if not found:
            continue
        if isinstance(row, Renamed):
            _put(result, row.new.split("."), value)
        elif value is not None:
            raise ConfigError(_refusal(row))
    return result


def translate(
    assignments: Sequence[str], note: Callable[[str], None] | None = None, rows: Sequence[Row] | None = None
) -> list[str]:
    """``key=value`` strings with the names of today.

    Args:
        note: is given one sentence for every old name.
        rows: as in :func:`modernise`.

    Raises:
        ConfigError: a removed key with a value that cannot be translated.
    """
    result = []
    for assignment in assignments:
        key, sep, value = assignment.partition("=")
        if not sep:  # `strict.override` says what is wrong with it
            result.append(assignment)
            continue
        key, dropped = key.strip(), False
        for row in ROWS if rows is None else rows:
            if key != row.old and not key.startswith(row.old + "."):
                continue
            if isinstance(row, Removed):
                if value.strip() not in ("", "null", "~"):
                    raise ConfigError(_refusal(row))
                dropped = True
                break
            new = row.new + key.removeprefix(row.old)
            if note is not None:
                note(f"'{key}' is called '{new}' now.")
            key = new
        if not dropped:
            result.append(f"{key}={value}")
    return result


def as_first_named(mapping: Mapping[str, Any], section: str, rows: Sequence[Row] | None = None) -> dict[str, Any]:
    """The values of ``section`` under the names that they first had: what digests are taken of.

    Only renames in place are undone; a key that came from another section was no part of this one.

    Args:
        section: dotted name of the section today; empty for a mapping of whole sections.
        rows: as in :func:`modernise`.
    """
    result = _copied(mapping)
    for row in reversed(ROWS if rows is None else rows):
        if not isinstance(row, Renamed):
            continue
        if row.new == section:
            section = row.old
            continue
        inside = f"{section}." if section else ""
        in_place = row.new.rpartition(".")[0] == row.old.rpartition(".")[0]
        if in_place and row.new.startswith(inside):
            found, value = _take(result, row.new.removeprefix(inside).split("."))
            if found:
                _put(result, row.old.removeprefix(inside).split("."), value)
    return result


def _refusal(row: Removed) -> str:
    return f"configuration key '{row.old}' was removed: {row.remedy}."


def _copied(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}


def _take(mapping: dict[str, Any], parts: list[str]) -> tuple[bool, Any]:
    """Remove a key from nested mappings; whether it was there, and its value."""
    *parents, last = parts
    node: Any = mapping
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        return False, None
    return True, node.pop(last)


def _put(mapping: dict[str, Any], parts: list[str], value: Any) -> None:
    """Set a key in nested mappings unless it is there; of two mappings the keys that are there win."""
    *parents, last = parts
    node = mapping
    for part in parents:
        below = node.setdefault(part, {})
        if not isinstance(below, dict):
            return  # not a section: the strict loader will say so
        node = below
    if isinstance(value, dict) and isinstance(node.get(last), dict):
        node[last] = value | node[last]
    else:
        node.setdefault(last, value)
