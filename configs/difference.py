"""What differs between two saved configurations, in words: `transformer.dim 48 → 320`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SHOWN = 6  # a sentence stays readable; another preset differs in more


def differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """``key old → new`` of every value that differs, by key; sections are entered, lists compared whole."""
    found: list[str] = []
    for key in sorted({*before, *now}):
        path = f"{where}.{key}" if where else key
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, path)
        elif old != new:
            found.append(f"{path} {_value(old)} → {_value(new)}")
    return found


def summary(changes: list[str], preset_before: str | None = None, preset_now: str | None = None) -> str:
    """The changes as a clause, the presets' names first where they differ and the earlier one is known."""
    shown = ", ".join(changes[:_SHOWN]) + (f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else "")
    if preset_before and preset_now and preset_before != preset_now:
        return f"made with preset '{preset_before}', not '{preset_now}': {shown}"
    return shown


def _value(value: Any) -> str:
    text = "null" if value is None else str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
