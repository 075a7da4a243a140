"""A proxy on loopback that stands between us and an object store and does to some requests what networks do."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("500", "503", "cut", "hang", "lost", "cut upload")
"""Internal error; slow down; half an answer; no answer for a while; done, but the answer is lost; half a request."""
_HANG_S = 1.5  # longer than the clients of the tests wait
_CODES = {"500": "InternalError", "503": "SlowDown"}


class FaultyProxy(ThreadingHTTPServer):
    """Forwards to ``target``. Of the requests of a kind and key the first ``failing`` fail, in ways that ``seed`` chooses."""

    daemon_threads = True

    def __init__(self, target: str, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.failing = 1
        self.kinds: tuple[str, ...] = KINDS
        self.only = ""  # part of the paths that fail
        self.most = 1_000_000  # failures in all
        self.done: Counter[str] = Counter()
        self._chance, self._lock, self._seen = random.Random(seed), threading.Lock(), Counter[tuple[str, str, str]]()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, method: str, path: str, part: str) -> str:
        """What happens to this request; '': nothing."""
        with self._lock:
            self._seen[method, path, part] += 1
            if self._seen[method, path, part] > self.failing or self.only not in path or self.done.total() >= self.most:
                return ""
            kind = self._chance.choice(self.kinds)
            self.done[kind] += 1
            return kind

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away: that is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _any(self) -> None:
        kind = self.server.fault(self.command, self.path, self.headers.get("Range", ""))
        length = int(self.headers.get("Content-Length") or 0)
        if kind == "cut upload":
            self.rfile.read(length // 2)
            return self._hang_up()
        body = self.rfile.read(length)
        if kind == "hang":
            time.sleep(_HANG_S)
            return self._hang_up()
        if kind in _CODES:
            text = f"<Error><Code>{_CODES[kind]}</Code><Message>{kind}</Message></Error>".encode()
            return self._answer(int(kind), [("Content-Type", "application/xml")], text)
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if kind == "lost":
            return self._hang_up()
        headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")]
        return self._answer(answer.status, headers, data, half=kind == "cut")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, half: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if self.command == "HEAD" or name.lower() != "content-length":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if half else data)
        if half:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None: ...
