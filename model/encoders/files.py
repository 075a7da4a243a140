"""What the loaders of pretrained networks share: which file, its digest, its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

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


def check_complete(folder: Path, missing: Collection[str], mismatched: Collection[object]) -> None:
    """Refuse a transformers folder that lacks tensors, which the library would fill at random.

    Args:
        missing, mismatched: keys of tensors that are absent, or of another shape, by the library's loading info.

    Raises:
        EchoForgeError: there are any.
    """
    if missing or mismatched:
        first = sorted(missing)[0] if missing else str(next(iter(mismatched)))
        raise EchoForgeError(
            f"{folder} is of another network: {len(missing)} tensors missing, {len(mismatched)} of "
            f"another shape (first: {first})."
        )
