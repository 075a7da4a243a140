"""Packages that `pip install .` leaves out, and what to do where one is missing."""

from __future__ import annotations

import importlib.util

from configs.errors import EchoForgeError

REMEDIES = {
    "syncnet_python": "install it with `pip install --no-deps syncnet-python==0.2.3`",
    "openvino": "install it with `pip install --no-deps openvino==2026.4.1`",
    "decord": "set video.backend=pyav, or install it with `pip install decord` (wheels exist for Linux on x86_64)",
}
"""Module → remedy. The versions are those of requirements-no-deps.txt; tests/test_packaging.py compares them."""


def installed(module: str) -> bool:
    """Whether ``module`` can be imported; does not import it."""
    return importlib.util.find_spec(module) is not None


def require(module: str, setting: str) -> None:
    """Check that ``module``, which the configuration asks for with ``setting`` (``key=value``), is installed.

    Raises:
        EchoForgeError: it is not; the sentence has the command that installs it.
    """
    if not installed(module):
        raise EchoForgeError(f"{setting} needs the package {module}, which is not installed; {REMEDIES[module]}.")
