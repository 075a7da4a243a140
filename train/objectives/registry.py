"""The objectives by the kind of their stage. To add one: a module with ``build``, and its line here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from train.objectives import ndpo, sft
from train.objectives.base import Method, Setup

OBJECTIVES: dict[str, Callable[[Setup], AbstractContextManager[Method]]] = {"sft": sft.build, "ndpo": ndpo.build}
"""Each is a context, in which files and memory of the objective are held."""
