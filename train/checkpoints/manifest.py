"""``digests.json`` of a checkpoint: the digest of every file in it, so that no damaged one is used.

The file is checked against itself, too: it is written in one fixed form, and ends with the digest of what precedes.
It finds what disks and copies do to files; somebody who changes a file on purpose can change its digest as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from configs import members
from configs.runtime.shown import one_line
from train.checkpoints import files
from train.checkpoints.files import Damaged

MANIFEST = "digests.json"


def write(folder: Path, known: Mapping[str, str]) -> None:
    """Write the digests of all files below ``folder``.

    Args:
        known: digests that were taken already, by path relative to ``folder``.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    digests = {name: known.get(name) or files.digest(folder / name) for name in names}
    files.write_new(folder / MANIFEST, _text(digests))


def read(folder: Path) -> dict[str, str]:
    """Digests by path relative to ``folder``.

    Raises:
        Damaged: the manifest itself is, or names something that does not lie below ``folder``.
    """
    text = files.read_bytes(folder / MANIFEST, files.MAX_JSON)
    try:
        digests = json.loads(text)["files"]
        whole = text == _text(digests).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole or not isinstance(digests, dict) or not all(isinstance(value, str) for value in digests.values()):
        raise Damaged(f"{MANIFEST} is not as it was written")
    try:
        return {members.relative(name): digest for name, digest in digests.items()}
    except members.BadMember as error:
        raise Damaged(f"{MANIFEST} cannot be followed: {str(error).rstrip('.')}") from error


def check(folder: Path, wanted: Callable[[str], bool]) -> None:
    """Compare files with the manifest.

    Args:
        wanted: says by path which of the files that the manifest names are looked at.

    Raises:
        Damaged: names the first one that is missing or not as it was written.
    """
    for name, digest in read(folder).items():
        if wanted(name) and (why := files.difference(folder, name, digest)):
            raise Damaged(f"{one_line(name)}: {why}")


def _text(digests: Mapping[str, str]) -> str:
    body = json.dumps({"files": digests}, indent=1, sort_keys=True)
    own = hashlib.sha256(body.encode()).hexdigest()
    return f'{body.removesuffix("}").rstrip()},\n "sha256": "{own}"\n}}\n'
