"""Reading from object stores while training: what fails is tried again, and then it is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from configs.errors import EchoForgeError
from configs.runtime import retries
from configs.runtime.redaction import redact

T = TypeVar("T")


def asked(operation: Callable[[], T], url: str) -> T:
    """What ``operation`` reads from an object store, tried again while it fails.

    Raises:
        FileNotFoundError: nothing is there.
        EchoForgeError: the store goes on failing, or refuses.
    """
    try:
        return retries.retrying(operation)
    except FileNotFoundError:
        raise
    except Exception as error:  # what a store's driver raises is its own: no credentials, no such protocol
        why = redact(f"{type(error).__name__}: {error}")
        raise EchoForgeError(
            f"'{redact(url)}' cannot be read ({why}); check the address, the credentials and whether the store answers, "
            "then run the same command again."
        ) from error


def read_file(url: str) -> bytes:
    """The whole content of an object. Raises as :func:`asked`."""

    def read() -> bytes:
        import fsspec

        files, path = fsspec.core.url_to_fs(url)
        return bytes(files.cat_file(path))

    return asked(read, url)


def file_size(url: str) -> int:
    """Bytes of an object, without reading it; 0 where its store does not say. Raises as :func:`asked`."""

    def look() -> int:
        import fsspec

        files, path = fsspec.core.url_to_fs(url)
        return int(files.info(path).get("size") or 0)

    return asked(look, url)
