"""Fixtures shared by every test: where the real clips and the numeric fixtures are, when they are."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"../shared/{name} is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def shared_media() -> Path:
    """The folder of real clips with ground truth (``clips/``, ``faults/``, ``weights/``, ``manifest.json``)."""
    return _folder("media")


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """The folder of numeric fixtures (``parity/``)."""
    return _folder("fixtures")
