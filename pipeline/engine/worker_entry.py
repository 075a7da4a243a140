"""The first code of this program that runs in a Ray worker: makes the worker import the right packages.

Ray puts the driver's working directory before everything else on the module path of every worker, so a folder that
holds a module or a package of one of our names would replace ours. The actor below is therefore pickled by value (`ray_pool`), uses
the standard library alone, and imports the rest of the program only when it has said where that is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NamedTuple

OWN = ("configs", "curation", "evaluation", "model", "pipeline", "train", "workflows")
"""The packages of this program."""


class OwnPackages:
    """Import finder: the packages of this program come from one folder, whatever the module path holds."""

    def __init__(self, root: str) -> None:
        self.root = root

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Where ``name`` is, if it is one of :data:`OWN`."""
        return PathFinder.find_spec(name, [self.root]) if path is None and name in OWN else None


def own_packages_first(root: str) -> None:
    """From now on import the packages of this program from the folder ``root``."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != OwnPackages.__name__]
    sys.meta_path.insert(0, OwnPackages(root))


def code_digest(root: str) -> str:
    """16 hex digits over the source files of the packages in ``root``: equal where the same code runs."""
    whole = hashlib.sha256()
    for package in OWN:
        for path in sorted(Path(root, package).rglob("*.py")):
            whole.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]


def find_root(wanted: str) -> str | None:
    """The folder of this program's packages on this machine: ``wanted`` if they are there, else where they are installed."""
    if Path(wanted, "pipeline", "engine", "worker_entry.py").is_file():
        return wanted
    spec = importlib.util.find_spec("pipeline")
    found = [Path(place).parent for place in (spec.submodule_search_locations or [])] if spec else []
    return next((str(root) for root in found if Path(root, "pipeline", "engine", "ray_pool.py").is_file()), None)


class Driver(NamedTuple):
    """The code that the driver runs."""

    root: str  # folder of the packages
    digest: str  # :func:`code_digest` of it
    version: str
    strangers: tuple[str, ...]  # folders that Ray adds to the module path though the driver does not import from them


class Slot:
    """The actor. Plain values only travel to its constructor; the rest is fetched when it can be imported.

    Args:
        shared: reference to what `worker_process.WorkerProcess` is made of.
        words: file for the last words of the process; its folder exists on the driver's machine only.
    """

    def __init__(self, driver: Driver, shared: list[Any], words: str, limit: int) -> None:
        self._driver, self._shared, self._words, self._limit = driver, shared, words, limit
        self._process: Any = None
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a program started from here must not wait for a terminal
            os.dup2(nothing.fileno(), 0)

    def start(self) -> tuple[str, Any]:
        """Build the worker. Returns the node, and None, an error, or a sentence about this node's code."""
        import ray

        context, node = ray.get_runtime_context(), ray.util.get_node_ip_address()
        if trouble := self._prepare(node):
            return context.get_node_id(), trouble
        try:
            from pipeline.engine.worker_process import WorkerProcess

            shared = ray.get(self._shared[0])
        except ImportError as error:
            return context.get_node_id(), (
                f"the node {node} of the Ray cluster cannot load EchoForge ({error}); install it there with its "
                "dependencies."
            )
        self._process = WorkerProcess(shared, self._driver.version, self._words, self._limit)
        return context.get_node_id(), self._process.start()

    def run(self, units: Any) -> Any:
        """Run and commit a batch."""
        return self._process.run(units)

    def _prepare(self, node: str) -> str | None:
        """Choose the packages; a sentence when this machine has none, or others than the driver."""
        driver = self._driver
        sys.path[:] = [place for place in sys.path if place not in driver.strangers]
        root = find_root(driver.root)
        if root is None:
            return (
                f"the node {node} of the Ray cluster has no EchoForge; install {driver.version} on every node, in the "
                f"environment that its Ray runs in."
            )
        own_packages_first(root)
        same_place = root == driver.root and Path(self._words).parent.is_dir()
        if same_place or (found := code_digest(root)) == driver.digest:
            return None
        from pipeline.engine.version import code_version

        return (
            f"the node {node} of the Ray cluster runs other code of EchoForge ({code_version()}, digest {found}, in {root}) "
            f"than this machine ({driver.version}, digest {driver.digest}); install the same version on every node."
        )
