"""What the loaders of pretrained networks share: which file, its digest, its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import EchoForgeError


def digest(path: Path) -> str:
    """First 16 hex digits of the sha256 of a file, or of all files of a folder in order of their names."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    total = hashlib.sha256()
    for file in files:
        if len(files) > 1:
            total.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                total.update(block)
    return total.hexdigest()[:16]


def joined(*parts: object) -> str:
    """One digest, 16 hex, of digests and settings that decide the numbers together."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def complete(found: Mapping[str, Any], folder: Path, unused: str | None = None) -> None:
    """Refuse a transformers folder that lacks tensors, which the library would fill at random.

    Args:
        found: the library's loading info.
        unused: name of a tensor that may be absent because nothing here reads it.

    Raises:
        EchoForgeError: tensors are missing or have other shapes.
    """
    missing = sorted(key for key in found["missing_keys"] if key != unused)
    if missing or found["mismatched_keys"]:
        first = (missing or [str(key) for key in found["mismatched_keys"]])[0]
        raise EchoForgeError(
            f"{folder} is of another network: {len(missing)} tensors missing, {len(found['mismatched_keys'])} of "
            f"another shape (first: {first})."
        )
