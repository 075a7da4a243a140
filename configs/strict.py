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
import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, ClassVar, Protocol, TypeVar

import yaml

from configs import aliases
from configs.errors import ConfigError

T = TypeVar("T")


class Section(Protocol):
    """A dataclass that holds a section of the configuration."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


class UnknownKey(ConfigError):
    """A key that the configuration does not have, with what comes near among ``known`` (dotted names).

    Attributes:
        path: the dotted name that was given.
    """

    def __init__(self, path: str, known: Iterable[str]) -> None:
        self.path = path
        super().__init__(f"configuration key '{path}' is unknown; {_hint(path, list(known))}")


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
            raise UnknownKey(_join(where, str(key)), known_keys(cls, where))  # type: ignore[arg-type]
    hints = _hints(cls)  # type: ignore[arg-type]
    values = {}
    for name, field in fields.items():
        path = _join(where, name)
        if name in data:
            values[name] = convert(data[name], hints[name], path)
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


def digest(config: Any, section: str | None = None) -> str:
    """First 16 hex digits of the sha256 of the canonical JSON of ``config`` (dataclass or plain value).

    Args:
        section: dotted name of the section that ``config`` is (empty: whole sections by name), so that keys that were
            renamed are hashed under their first names (:mod:`configs.aliases`).
    """
    data = to_dict(config)
    if section is not None:
        data = aliases.as_first_named(data, section)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def override(data: dict[str, Any], assignments: list[str], tables: Collection[str] = ()) -> dict[str, Any]:
    """Apply ``key.sub=value`` strings (values are YAML) to a copy of ``data``; list items by number.

    Args:
        tables: dotted names of the mappings that take new keys (:func:`tables`).

    Raises:
        ConfigError: no ``=``, a value that is not YAML, or a key that ``data`` does not have.
    """
    result: dict[str, Any] = json.loads(json.dumps(data))
    for assignment in assignments:
        dotted, sep, text = assignment.partition("=")
        dotted = dotted.strip()
        if not sep or not dotted:
            raise ConfigError(f"override '{assignment}' is not of the form key=value.")
        try:
            value = parse(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value in '{assignment}' is not valid YAML.") from error
        *parents, last = dotted.split(".")
        node: Any = result
        for part in parents:
            node = node[_index(node, part, dotted, data)]
        new = isinstance(node, dict) and ".".join(parents) in tables
        node[last if new else _index(node, last, dotted, data)] = value
    return result


_MOST_VALUES = 100_000
"""Of one YAML text, aliases counted as often as they are used: a preset has 400; ten lines of aliases make a billion."""


def parse(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The values in a YAML text.

    Raises:
        yaml.YAMLError: not YAML, nested too deeply, or grown beyond reason by aliases.
    """
    reader = loader(text)
    try:
        node = reader.get_single_node()
        if node is None:
            return None
        if _grown(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {_MOST_VALUES} values")
        return reader.construct_document(node)
    except (RecursionError, ValueError, OverflowError) as error:  # ValueError: a date or a number that there is not
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise yaml.YAMLError(what) from error
    finally:
        reader.dispose()


def _grown(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for. One that holds itself is without end."""
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # while it is being counted
        if isinstance(node, yaml.MappingNode):
            known[id(node)] = 1 + sum(_grown(key, known) + _grown(value, known) for key, value in node.value)
        else:
            inside = node.value if isinstance(node, yaml.SequenceNode) else ()
            known[id(node)] = 1 + sum(_grown(item, known) for item in inside)
    return known[id(node)]


def _index(node: Any, part: str, dotted: str, data: dict[str, Any]) -> Any:
    if isinstance(node, list) and part.isdigit():
        if int(part) < len(node):
            return int(part)
        raise ConfigError(f"configuration key '{dotted}' is unknown: the list has {len(node)} items, numbered from 0.")
    if not isinstance(node, dict) or part not in node:
        raise UnknownKey(dotted, dotted_names(data))
    return part


def dotted_names(data: Any, where: str = "") -> Iterator[str]:
    """Dotted names of everything in nested mappings and of the mappings themselves; items of lists of mappings by number."""
    if isinstance(data, Mapping):
        items: Iterable[tuple[Any, Any]] = data.items()
    elif isinstance(data, list) and all(isinstance(item, Mapping) for item in data):
        items = enumerate(data)
    else:
        return
    for key, value in items:
        yield (path := _join(where, str(key)))
        yield from dotted_names(value, path)


def known_keys(cls: type, where: str = "") -> Iterator[str]:
    """Dotted names of the fields of a dataclass and of those nested in it; of lists the item number 0."""
    for name, hint in _hints(cls).items():
        yield (path := _join(where, name))
        below, path = _item(hint, path)
        if dataclasses.is_dataclass(below):
            yield from known_keys(below, path)  # type: ignore[arg-type]
        elif (
            typing.get_origin(below) is dict and typing.get_origin(kind := typing.get_args(below)[0]) is typing.Literal
        ):
            yield from (_join(path, name) for name in typing.get_args(kind))


def tables(cls: type, where: str = "") -> Iterator[str]:
    """Dotted names of the fields whose keys are free (``dict[str, …]``): one value each, not sections."""
    for name, hint in _hints(cls).items():
        path = _join(where, name)
        if typing.get_origin(hint) is dict and typing.get_args(hint)[0] is str:
            yield path
        elif dataclasses.is_dataclass(hint):
            yield from tables(hint, path)  # type: ignore[arg-type]


def _item(hint: Any, path: str) -> tuple[Any, str]:
    """The type of the items of a list of dataclasses, and the path of its first one; other types as they are."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) in (tuple, list) and args and dataclasses.is_dataclass(args[0]):
        return args[0], f"{path}.0"
    return hint, path


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


_LIKE = 0.75
"""Least similarity (difflib's ratio) of a suggestion; 0.6 is its default and suggests words of another meaning."""
_SLIP = 0.85
"""Least similarity of one word with a slip in it: of four letters one left out gives 0.857."""


def _hint(path: str, known: list[str]) -> str:
    """What to try instead of ``path``: keys that end alike or look alike, else what stands in its section."""
    if near := _suggestions(path, known):
        return f"did you mean {' or '.join(repr(key) for key in near)}?"
    while path:
        path = path.rpartition(".")[0]
        inside = [key for key in known if key.rpartition(".")[0] == path]
        if inside:
            where = f"in '{path}'" if path else "at the top"
            return f"known {where}: {', '.join(sorted(key.rpartition('.')[2] for key in inside))}."
    return "nothing is known there."


def _suggestions(path: str, known: list[str]) -> list[str]:
    """At most three keys that a person may have meant.

    ``sync_min_conf`` finds ``decide.sync_min_conf``, as does the same name with a dot after its first word: a part of a
    name may have been taken for a section, or a section left out. Of a list, the first item stands for all.
    """
    item = re.search(r"\.\d+\.", path)
    asked = re.sub(r"\.\d+(?=\.)", ".0", path)
    last, joined = asked.rpartition(".")[2], asked.replace(".", "_")
    ends = {key: key.rpartition(".")[2] for key in known if not re.search(r"\.[1-9]\d*(\.|$)", key)}
    near = [key for key in ends if ends[key] in (last, joined) or key.endswith("." + asked)]
    section = asked.partition(".")[0]
    if slips := [k for k in ends if k.partition(".")[0] == section and _like(last, ends[k]) >= _SLIP]:
        near = slips  # a letter wrong in the right section is likelier than a right name in a wrong one
    if not near:
        scores = {key: max(_like(asked, key), _like(last, ends[key]), _like(joined, ends[key])) for key in ends}
        best = max(scores.values(), default=0.0)
        near = [key for key in ends if scores[key] == best and best >= _LIKE]
    near = [key for key in near if key.partition(".")[0] == asked.partition(".")[0]] or near
    near = sorted(dict.fromkeys(near), key=lambda key: (-_like(asked, key), key))[:3]
    return [key.replace(".0.", item[0]) if item else key for key in near]


def _like(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def convert(value: Any, hint: Any, path: str) -> Any:
    """``value`` as the type ``hint``; ``path`` is for the message.

    Raises:
        ConfigError: it is of another type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for option in args:
            if option is not type(None):
                try:
                    return convert(value, option, path)
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
        return _convert_table(value, args[0], args[1], path)
    return _scalar(value, hint, path)


def _convert_table(value: Any, key: Any, item: Any, path: str) -> dict[str, Any]:
    """A mapping with free keys, or, where their type is a Literal, with all of these keys and no other."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"configuration key '{path}' must be a mapping, got {value!r}.")
    if typing.get_origin(key) is typing.Literal:
        names = typing.get_args(key)
        if unknown := [name for name in value if name not in names]:
            raise UnknownKey(_join(path, str(unknown[0])), [_join(path, name) for name in names])
        if missing := [name for name in names if name not in value]:
            raise ConfigError(f"configuration key '{_join(path, missing[0])}' is missing.")
    return {str(name): convert(one, item, _join(path, str(name))) for name, one in value.items()}


def _convert_sequence(value: Any, origin: Any, args: tuple[Any, ...], path: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"configuration key '{path}' must be a list, got {value!r}.")
    if origin is list or (len(args) == 2 and args[1] is Ellipsis):
        return origin(convert(v, args[0], f"{path}.{i}") for i, v in enumerate(value))
    if len(args) != len(value):
        raise ConfigError(f"configuration key '{path}' must have {len(args)} items, got {len(value)}.")
    return tuple(convert(v, a, f"{path}.{i}") for i, (v, a) in enumerate(zip(value, args, strict=True)))


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
