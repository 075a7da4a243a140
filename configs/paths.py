"""Paths that mean the same in every process: absolute before anything is sent to a worker on another machine or folder."""

from __future__ import annotations

import dataclasses
import os
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

from configs import weights

T = TypeVar("T")

_FILE, _MODEL = "file", "model"
FilePath = Annotated[str, _FILE]
"""Configuration value that names a file or folder: a path, ``weights:…`` or ``hub:…`` (`weights.locate`)."""
ModelName = Annotated[str, _MODEL]
"""Configuration value that names a local folder or, where there is none of that name, something on the hub."""


def is_remote(url: str | os.PathLike[str]) -> bool:
    """Whether ``url`` names an object store or server rather than a local path."""
    text = os.fspath(url)
    if "://" not in text:
        return False
    scheme = text.partition("://")[0]
    return scheme.isalnum() and scheme not in ("file", "local")


def absolute(path: str | os.PathLike[str]) -> str:
    """A local path from the root on, without ``..``; URLs as they are. Links stay links where ``..`` allows it."""
    text = os.fspath(path)
    if "://" in text:
        return text
    whole = os.path.join(Path.cwd(), text)  # noqa: PTH118 - a trailing slash or dot must not change the meaning
    flat = os.path.normpath(whole).replace("//", "/", 1)  # POSIX keeps two slashes at the beginning
    if ".." in Path(text).parts and os.path.realpath(whole) != os.path.realpath(flat):  # `link/..` is not here
        return os.path.realpath(whole)
    return flat


def absolute_files(config: T) -> T:
    """A copy of a configuration whose :data:`FilePath` and :data:`ModelName` values are absolute paths.

    Null where a pretrained file lies at its default place becomes that place. For workers only, whose folder and
    environment may be others: digests are made of the configuration as it was given.
    """
    return _absolute_values(_with_default_places(config))


def _with_default_places(config: T) -> T:
    parts = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    parts = {name: _with_default_places(part) for name, part in parts.items() if dataclasses.is_dataclass(part)}
    for need in weights.needs(parts):
        section, _, name = need.key.partition(".")
        if need.configured and getattr(parts[section], name) is None:
            parts[section] = dataclasses.replace(parts[section], **{name: need.configured})
    return dataclasses.replace(config, **parts)  # type: ignore[type-var]


def _absolute_values(config: T) -> T:
    changes: dict[str, Any] = {}
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _absolute_values(value)
        elif isinstance(value, str) and (kind := _kind(hints[field.name])):
            changes[field.name] = _absolute_file(value, kind)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _kind(hint: Any) -> str | None:
    for option in (hint, *typing.get_args(hint)):
        for note in getattr(option, "__metadata__", ()):
            return str(note)
    return None


def _absolute_file(value: str, kind: str) -> str:
    if not value or value.startswith("hub:") or (kind == _MODEL and not Path(value).exists()):
        return value
    return absolute(weights.resolve(value))
