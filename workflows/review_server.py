"""A person reviews samples in a browser on this machine; every click becomes a row in a Parquet part.

Served from the loopback address only, with the standard library: one folder, one page, one way to write.
"""

from __future__ import annotations

import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from configs.errors import EchoForgeError
from curation.review import page, tables

MAX_BODY = 1 << 20  # bytes; one review is a few hundred


class _Handler(SimpleHTTPRequestHandler):
    """GET / → the page; GET videos/… → the sample; POST reviews → rows."""

    def __init__(self, *args: Any, folder: Path, title: str, lock: Lock, **kwargs: Any) -> None:
        self._folder, self._title, self._lock = folder, title, lock
        super().__init__(*args, directory=str(folder), **kwargs)

    def do_GET(self) -> None:
        if self.path.split("?")[0] == "/":
            self._answer(200, page.render(self._folder, self._title, served=True), "text/html; charset=utf-8")
        elif self.path.startswith("/videos/"):
            super().do_GET()
        else:
            self._answer(404, "not here")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        # A page of another site can post text/plain without asking; application/json it cannot.
        if self.path != "/reviews" or self.headers.get_content_type() != "application/json" or length > MAX_BODY:
            self._answer(400, "post reviews as application/json")
            return
        try:
            with self._lock:
                count = tables.add(self._folder, json.loads(self.rfile.read(length)))
        except (EchoForgeError, ValueError, AttributeError) as error:
            self._answer(400, str(error))
        else:
            self._answer(200, f"{count} recorded")

    def _answer(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: the terminal belongs to the address and the count."""


def serve(folder: Path, title: str, port: int = 0) -> ThreadingHTTPServer:
    """A server (not yet running) for one negatives folder on 127.0.0.1; ``port`` 0 takes a free one.

    Raises:
        EchoForgeError: nothing was gathered there, or the port is taken.
    """
    tables.samples(folder)
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, folder=folder, title=title, lock=Lock()))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "ports are 0 to 65535"
        raise EchoForgeError(f"port {port} cannot be used ({reason}); choose another with --port.") from error
