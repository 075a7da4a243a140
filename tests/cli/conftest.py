"""A world of small outputs that the tests of disturbed commands share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for `commands`


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos, a catalog, a dataset whole and in two parts, a run, a picture and a voice (`commands.make_world`)."""
    from commands import make_world

    return make_world(tmp_path_factory.mktemp("outputs"))
