"""A Ray to work on: one that is there, a cluster that is joined, or one of this process that nobody else can reach."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from configs.runtime import scratch, stopping
from pipeline.config import WorkerShare
from pipeline.engine.schedule import EngineError

_RAY_FOLDER = 42
"""Longest path of Ray's folder: a socket's path ends at 107 characters (unix(7)), of which Ray's own
``/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store`` takes 65."""


@contextlib.contextmanager
def session(
    address: str | None, share: WorkerShare, object_store_mb: int, *, dashboard: bool = False
) -> Iterator[str | None]:
    """A Ray that is there already, the cluster at ``address``, or one started in this process and ended with it.

    Args:
        dashboard: of a Ray started here.

    Yields:
        The address of the dashboard, if one is on.

    Raises:
        EngineError: Ray does not start, or the cluster cannot be joined.
    """
    if dashboard and not address and find_spec("aiohttp_cors") is None:
        raise EngineError(
            "execution.dashboard is on, but Ray's dashboard is not installed: pip install 'ray[default]'."
        )
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray prints a paragraph about every dead worker into the middle of the progress; the ledger has the cause.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker died or was killed")
    import ray

    if ray.is_initialized():
        yield None
        return
    if address:
        check_address(address)
    else:
        _give_token()
    stopping.check()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    own = contextlib.ExitStack()
    try:
        if address:
            with _own_signals():
                context = ray.init(address=address, **quiet)
        else:
            folder = own.enter_context(scratch.folder(_RAY_FOLDER))  # Ray opens its folder to all; the one above is not
            with _for_itself(dashboard), _own_signals():
                context = ray.init(
                    address="local",
                    num_cpus=max(_cpus(), math.ceil(share.cpus * max(1, share.count))),
                    object_store_memory=object_store_mb * 2**20,
                    include_dashboard=dashboard,
                    _temp_dir=str(folder),
                    **quiet,
                )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        own.close()
        stopping.check()  # the signal may have reached Ray's processes, too
        place = f"joining the Ray cluster at '{address}'" if address else "starting Ray in this process"
        said = " ".join(str(error).split()).rstrip(".")
        if address and "ersion mismatch" in said:  # ray._private.utils.check_version_info
            remedy = "run the same Ray and Python here and on every node, or leave --ray-address out"
            raise EngineError(f"{place} failed: {said}; {remedy}.") from error
        if address and os.environ.get("RAY_AUTH_MODE") != "token":  # never sent to an address by itself: it is a secret
            said += "; if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as on its nodes"
        raise EngineError(f"{place} failed: {said}. --inline runs without Ray.") from error
    try:
        yield _dashboard(context.dashboard_url)
    finally:
        ray.shutdown()
        own.close()


@contextlib.contextmanager
def _for_itself(dashboard: bool) -> Iterator[None]:
    """Start Ray for this process alone: reached over loopback only, and asking nobody where it runs.

    Ray listens on the machine's address unless it takes itself for one that cannot form clusters. Without a dashboard
    its API server does nothing but report usage, and looks for the metadata services of three clouds before it reads
    that it must not (``ray.dashboard.modules.usage_stats``, 2.60).
    """
    from ray._private import node, ray_constants

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False))
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for Ray's other processes
        stack.callback(os.environ.pop, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
        if not dashboard:
            stack.enter_context(mock.patch.object(node.Node, "start_api_server", lambda *_, **__: None))
        yield


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this program's handlers while Ray starts, if it listens.

    Ray's handlers of SIGTERM end this process wherever it is, and that of its C++ core prints a stack and aborts.
    """
    if not stopping.listens():
        yield
        return
    from ray._private import utils

    theirs, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = theirs
        stopping.listen()


def _give_token() -> None:
    """Give Ray a token of this process; it would leave one in the home folder, for every later Ray of this user."""
    if not (Path(os.environ.get("HOME") or "/") / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def check_address(address: str) -> None:
    """Check that something answers at ``address``; Ray itself would try for minutes.

    Raises:
        EngineError: it is no address, or nothing answers.
    """
    if address in ("auto", "local"):
        return  # Ray knows where to look
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise EngineError(f"Ray address '{address}' is not of the form HOST:PORT, ray://HOST:PORT or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise EngineError(
            f"no Ray cluster answers at '{address}' ({error}); start one with `ray start --head`, or leave "
            "--ray-address out to run on this machine."
        ) from error


def _dashboard(url: str | None) -> str | None:
    return url and (url if "://" in url else f"http://{url}")


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
