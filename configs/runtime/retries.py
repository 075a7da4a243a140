"""Which failures of a store pass by themselves, and how often and how long to try again: for data and for training."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 5
"""Tries of one operation on a store, with pauses of about 0.5, 1, 2 and 4 s between them."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Disk, quota, limit on a file's size."""
HOPELESS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
DRIVERS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "adlfs", "azure")
"""Packages below fsspec that raise exceptions of their own: no credentials, no such bucket, a wrong endpoint."""
_PASSING = {
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseParserError",
    "ClientPayloadError",
    "ClientConnectionError",
}
"""Of those, by name because none of them need be installed: an answer that did not come, or was cut off."""
_TRIED = {"EndpointConnectionError", "SSLError", "ProxyConnectionError", "ConnectTimeoutError", "ReadTimeoutError"}
"""No connection, or no answer: the drivers have tried some 25 times by themselves, and waited for each."""


def retrying(operation: Callable[[], T]) -> T:
    """The result of ``operation``, run at most :data:`ATTEMPTS` times; raises what the last try raised."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return operation()
        except Exception as error:
            if not passes(error):
                raise
        time.sleep(0.5 * 2**attempt * random.uniform(0.8, 1.2))
    return operation()


def passes(error: Exception) -> bool:
    """Whether another try may succeed."""
    if isinstance(error, OSError):
        return not isinstance(error, HOPELESS) and error.errno not in FULL
    names = {kind.__name__ for kind in type(error).__mro__}
    return of_a_driver(error) and bool(names & _PASSING) and not names & _TRIED


def of_a_driver(error: Exception) -> bool:
    """Whether a package below fsspec raised it."""
    return type(error).__module__.partition(".")[0] in DRIVERS
