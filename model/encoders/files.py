"""What the loaders of pretrained networks share: which file, its digest, its tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path


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
