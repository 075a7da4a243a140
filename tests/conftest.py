"""Fixtures shared by every test (where the real clips and the numeric fixtures are, when they are), and the ground the
tests stand on: the same on every machine, whatever it has and however it is set up.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

SHARED = Path(__file__).resolve().parents[2] / "shared"
_ABSENT = " is not beside this checkout"

# What is promised to the last bit is promised of a CPU; `ECHOFORGE_TEST_GPUS=0 make test` shows GPU 0 to the tests.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("ECHOFORGE_TEST_GPUS", "")
# Servers that tests start are reached directly, also where a proxy is set.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1,localhost"]))

# Examples are searched for as long as that takes: a busy machine is no defect.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """Two threads at most: the tensors of tests are tiny, and on 64 cores threads would mostly wait for each other."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped for want of what lies beside a checkout and is no part of it."""
    reasons = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])]
    wanting = Counter(reason.removeprefix("Skipped: ") for reason in reasons if reason.endswith(_ABSENT))
    for reason, count in sorted(wanting.items()):
        terminalreporter.write_line(f"{count} test{'s' * (count > 1)} skipped: {reason}")


def _folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"../shared/{name}{_ABSENT}")
    return folder


@pytest.fixture(scope="session")
def shared_media() -> Path:
    """The folder of real clips with ground truth (``clips/``, ``faults/``, ``weights/``, ``manifest.json``)."""
    return _folder("media")


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """The folder of numeric fixtures (``parity/``)."""
    return _folder("fixtures")
