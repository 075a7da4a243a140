"""A local S3 server for the tests that need an object store, and a proxy before it that does what networks do."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from faulty_proxy import FaultyProxy


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A local S3 server and an empty bucket."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()  # it listens everywhere; "0.0.0.0" is no address to ask
    values = {
        "AWS_ACCESS_KEY_ID": "testing-key",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    import fsspec
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"b{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(bucket)
    yield f"s3://{bucket}"
    server.stop()
    for key, value in before.items():
        if value is None:
            os.environ.pop(key)
        else:
            os.environ[key] = value
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """The store behind a proxy; every request is fine until ``failing`` is set. Pauses and time limits are short."""
    import fsspec
    import s3fs

    found = FaultyProxy(os.environ["AWS_ENDPOINT_URL"], seed=5)
    found.failing = 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
    limits = {"read_timeout": 0.7, "connect_timeout": 2, "retries": {"max_attempts": 0}}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": limits})
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    real = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: real(min(seconds, 0.01)))
    s3fs.S3FileSystem.clear_instance_cache()
    yield found
    found.shutdown()
    s3fs.S3FileSystem.clear_instance_cache()
