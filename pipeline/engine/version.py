"""Which version of this program computed something."""

from __future__ import annotations

import subprocess
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path


@cache
def code_version() -> str:
    """Version of this package and, in a checkout, the git revision (with ``+`` when files differ from it).

    The version of a checkout is that of its pyproject.toml: the metadata may be those of another installation.
    """
    root = Path(__file__).resolve().parents[2]
    version = _version_of_checkout(root)
    if version is None:
        try:
            return metadata.version("echoforge")
        except metadata.PackageNotFoundError:
            return "unknown"
    if not (root / ".git").exists():
        return version
    try:
        revision = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version} {revision}{'+' if changed else ''}"


def _version_of_checkout(root: Path) -> str | None:
    project = root / "pyproject.toml"
    if not project.is_file():
        return None
    facts = tomllib.loads(project.read_text("utf-8")).get("project", {})
    return str(facts["version"]) if facts.get("name") == "echoforge" else None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]  # a look leaves no lock in the checkout
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
