"""Strict mapping → dataclass conversion: unknown keys and wrong types are errors with one clear sentence.

Written here, on the standard library alone, because `model/` and `train/` must import on a GPU box that has
torch, numpy, safetensors, pyyaml and pyarrow and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import yaml

from configs.errors import ConfigError

T = TypeVar("T")


def build(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass ``cls`` from ``data``; nested dataclasses are built from nested mappings.

    Raises:
        ConfigError: unknown key (with the nearest known one), missing key, or a value of the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"configuration at '{where or 'top level'}' must be a mapping, got {type(data).__name__}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise ConfigError(_unknown(_join(where, str(key)), str(key), fields))
    hints = _hints(cls)  # type: ignore[arg-type]
    values = {}
    for name, field in fields.items():
        path = _join(where, name)
        if name in data:
            values[name] = _convert(data[name], hints[name], path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"configuration key '{path}' is missing.")
    return cls(**values)


def to_dict(config: Any) -> Any:
    """The plain mapping (lists, str, numbers, None) that :func:`build` turns back into ``config``."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (list, tuple)):
        return [to_dict(v) for v in config]
    if isinstance(config, Mapping):
        return {str(k): to_dict(v) for k, v in config.items()}
    return config


def digest(config: Any) -> str:
    """First 16 hex digits of the sha256 of the canonical JSON of ``config`` (dataclass or plain value)."""
    text = json.dumps(to_dict(config), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def override(data: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply ``key.sub=value`` strings (values are YAML) to a copy of ``data``; list items by number.

    Raises:
        ConfigError: no ``=``, a value that is not YAML, or a key that ``data`` does not have.
    """
    result: dict[str, Any] = json.loads(json.dumps(data))
    for assignment in assignments:
        dotted, sep, text = assignment.partition("=")
        if not sep or not dotted.strip():
            raise ConfigError(f"override '{assignment}' is not of the form key=value.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value in '{assignment}' is not valid YAML.") from error
        *parents, last = dotted.strip().split(".")
        node: Any = result
        for depth, part in enumerate(parents):
            node = node[_index(node, part, ".".join(parents[: depth + 1]))]
        node[_index(node, last, dotted.strip())] = value
    return result


def _index(node: Any, part: str, path: str) -> Any:
    if isinstance(node, list):
        if part.isdigit() and int(part) < len(node):
            return int(part)
        raise ConfigError(f"configuration key '{path}' is unknown: the list has {len(node)} items, numbered from 0.")
    if not isinstance(node, dict) or part not in node:
        raise ConfigError(_unknown(path, part, node if isinstance(node, dict) else {}))
    return part


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _unknown(path: str, key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known)) or 'nothing'}."
    return f"configuration key '{path}' is unknown; {hint}"


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(value: Any, hint: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for option in args:
            if option is not type(None):
                try:
                    return _convert(value, option, path)
                except ConfigError as error:
                    errors.append(error)
        raise errors[0]
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"configuration key '{path}' is {value!r}; allowed: {', '.join(map(repr, args))}.")
        return value
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)  # type: ignore[arg-type]
    if origin in (tuple, list):
        return _convert_sequence(value, origin, args, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"configuration key '{path}' must be a mapping, got {value!r}.")
        return {str(k): _convert(v, args[1], _join(path, str(k))) for k, v in value.items()}
    return _scalar(value, hint, path)


def _convert_sequence(value: Any, origin: Any, args: tuple[Any, ...], path: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"configuration key '{path}' must be a list, got {value!r}.")
    if origin is list or (len(args) == 2 and args[1] is Ellipsis):
        return origin(_convert(v, args[0], f"{path}.{i}") for i, v in enumerate(value))
    if len(args) != len(value):
        raise ConfigError(f"configuration key '{path}' must have {len(args)} items, got {len(value)}.")
    return tuple(_convert(v, a, f"{path}.{i}") for i, (v, a) in enumerate(zip(value, args, strict=True)))


def _scalar(value: Any, hint: Any, path: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, float) and math.isnan(value):  # every comparison with it is false: a threshold would be off
        raise ConfigError(f"configuration key '{path}' is not a number (nan).")
    if isinstance(value, hint) and not (isinstance(value, bool) and hint in (int, float)):
        return value
    raise ConfigError(f"configuration key '{path}' must be {hint.__name__}, got {value!r}.")
