"""A web server for one person on this machine: what the review page and `play` have in common.

It listens on 127.0.0.1 only, but that is not enough: any page that the browser shows can send requests there (and, after
its name was bound to 127.0.0.1, read the answers), and so can every other user of the machine. So:

- The address holds a random word (128 bits). Without it nothing is answered; it is printed for the person alone. It is in
  the path and not in a cookie, because a browser shows cookies of 127.0.0.1 to the servers of all its ports.
- ``Host`` must be a name of this machine (a page that was bound to 127.0.0.1 sends its own), at any port: the port is
  another one at the end of a tunnel. ``Origin`` must be this server, and requests that the browser calls cross-site are
  refused, but for a link that a person follows.
- A request must be complete after :data:`REQUEST_SECONDS` and have at most :data:`MAX_BODY` bytes; a reader must take
  :data:`PIECE` bytes in :data:`SEND_SECONDS`. Of more than :data:`MAX_OPEN` connections the oldest is ended. Every request
  has a thread of its own, and a site sees only whole requests.
- Every answer says that nothing may be guessed about its type, kept, framed, or loaded from elsewhere.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from threading import Lock
from typing import IO, Any, Protocol
from urllib.parse import unquote_to_bytes

from configs.errors import EchoForgeError
from configs.runtime import regular, stopping
from configs.runtime.shown import one_line

# Our own limits. A request of the page is a few hundred bytes and takes milliseconds on this machine; seconds are for
# tunnels. A browser opens 6 connections to a server, and one for each video that it plays.
REQUEST_SECONDS = 10.0
SEND_SECONDS = 20.0
MAX_BODY = 1 << 20
MAX_OPEN = 64
PIECE = 1 << 18

_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
PAGE_POLICY = f"{_POLICY}; img-src data:; media-src 'self'; connect-src 'self'; style-src 'unsafe-inline'"
"""For pages without scripts. https://www.w3.org/TR/CSP3/"""


@dataclass(frozen=True)
class Answer:
    """What a site says. A body that is a stream (of a video) is sent in pieces, and closed."""

    body: str | IO[bytes]
    status: int = 200
    kind: str = "text/plain; charset=utf-8"
    policy: str = _POLICY
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.answer = Answer(sentence + "\n", status, headers=headers)


class Site(Protocol):
    """What is served. Both raise :class:`Refused`; an `EchoForgeError` is answered with its sentence."""

    def get(self, name: str) -> Answer:
        """``name``: the decoded path after the secret word, '' for the page. It comes from anybody with the address."""
        ...

    def post(self, name: str, kind: str, body: bytes) -> Answer:
        """``kind``: the content type without its parameters."""
        ...


class Server(ThreadingHTTPServer):
    """One site on 127.0.0.1; ``port`` 0 takes a free one. Not yet running: `serve_forever`.

    Raises:
        EchoForgeError: the port is taken, or is none.
    """

    daemon_threads = True
    request_queue_size = socket.SOMAXCONN

    def __init__(self, site: Site, port: int) -> None:
        self.site = site
        self.root = f"/{secrets.token_urlsafe(16)}/"
        self._connections: dict[socket.socket, None] = {}  # the oldest first
        self._guard = Lock()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "ports are 0 to 65535"
            raise EchoForgeError(f"port {port} cannot be used ({reason}); choose another with --port.") from error

    @property
    def url(self) -> str:
        """The address for the person; who knows it may look and write."""
        return f"http://127.0.0.1:{self.server_port}{self.root}"

    def server_bind(self) -> None:
        """Without the look-up of the machine's name, which asks name servers."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def service_actions(self) -> None:
        """Asked twice a second: raises `stopping.Stopped` once a stop was requested."""
        stopping.check()

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own; where there are too many, the oldest connection is ended."""
        with self._guard:
            self._connections[request] = None
            if len(self._connections) > MAX_OPEN:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection so that the answer arrives: while the client still sends, a plain close would take it back."""
        with suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            until = time.monotonic() + 1
            while (left := until - time.monotonic()) > 0:
                request.settimeout(left)
                if not request.recv(PIECE):
                    break
        with self._guard:
            self._connections.pop(request, None)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request on one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "EchoForge", ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Timely(self.connection, REQUEST_SECONDS))

    def do_GET(self) -> None:
        self._respond()

    do_HEAD = do_POST = do_GET

    def _respond(self) -> None:
        answer = self._answer()
        if isinstance(answer.body, str):
            self._send(answer)
        else:
            with answer.body as stream:
                self._send_stream(answer, stream)

    def _answer(self) -> Answer:
        """What the site says, or why it says nothing."""
        try:
            name = self._asked()
            if self.command == "POST":
                return self.server.site.post(name, self.headers.get_content_type(), self._body())
            return self.server.site.get(name)
        except Refused as refused:
            return refused.answer
        except EchoForgeError as error:
            return Answer(f"{one_line(error)}\n", 400 if self.command == "POST" else 500)
        except Exception as error:
            if not isinstance(error, OSError):
                traceback.print_exc()
            reason = getattr(error, "strerror", None) or "its terminal says why"
            return Answer(f"The server failed ({reason}).\n", 500)

    def _asked(self) -> str:
        """The name asked for, when the sender may ask.

        Raises:
            Refused: another name of the server, another page, or an address without the secret word.
        """
        hosts, origins = self.headers.get_all("Host") or [], self.headers.get_all("Origin") or []
        if self.headers.defects or len(hosts) != 1 or not self.request_version.startswith("HTTP/1."):
            self.request_version = self.protocol_version  # so that the answer has headers
            raise Refused(400, "This is no request of HTTP/1.1 with one Host.")
        if not _HOST.fullmatch(hosts[0]):
            raise Refused(403, "This server answers to 127.0.0.1 and localhost only.")
        if origins and origins != [f"http://{hosts[0]}"]:
            raise Refused(403, "Pages of other servers may not ask here.")
        site = self.headers.get("Sec-Fetch-Site", "none")
        followed = (self.command, self.headers.get("Sec-Fetch-Mode"), self.headers.get("Sec-Fetch-Dest"))
        if site not in ("none", "same-origin") and followed != ("GET", "navigate", "document"):
            raise Refused(403, "Pages of other servers may not ask here.")
        path, root = self.path.partition("?")[0], self.server.root
        if not secrets.compare_digest(path[: len(root)].encode("latin-1"), root.encode()):
            raise Refused(403, "Open the whole address that the command printed.")
        return os.fsdecode(unquote_to_bytes(path[len(root) :]))

    def _body(self) -> bytes:
        """The whole body of a POST.

        Raises:
            Refused: its length is not said, wrong, or too large, or it did not come in time.
        """
        lengths = self.headers.get_all("Content-Length") or []
        if "Transfer-Encoding" in self.headers or not lengths:
            raise Refused(411, "Send the body with its Content-Length.")
        if len(lengths) != 1 or not re.fullmatch("[0-9]+", lengths[0]):
            raise Refused(400, "Content-Length is not one number.")
        if len(lengths[0]) > len(str(MAX_BODY)) or int(lengths[0]) > MAX_BODY:
            raise Refused(413, f"At most {MAX_BODY} bytes at once.")
        try:
            body = self.rfile.read(int(lengths[0]))
        except TimeoutError:
            raise Refused(408, f"The request took longer than {REQUEST_SECONDS:.0f} seconds.") from None
        if len(body) != int(lengths[0]):
            raise Refused(400, "The body ended before its Content-Length.")
        return body

    def _send_stream(self, answer: Answer, stream: IO[bytes]) -> None:
        """The bytes asked for: all, or one range (RFC 9110, 14.2; several at once are answered with all)."""
        size = os.fstat(stream.fileno()).st_size
        ranges = None if "If-Range" in self.headers or self.command == "HEAD" else self.headers.get("Range")
        span = _span(ranges, size)
        if span is not None and span[0] >= size:
            self._send(Answer("There are no such bytes.\n", 416, headers={"Content-Range": f"bytes */{size}"}))
            return
        start, end = span or (0, size)
        if span is not None:
            answer.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._send_head(answer, 206 if span else 200, end - start, {"Accept-Ranges": "bytes"})
        stream.seek(start)
        while self.command != "HEAD" and start < end and (piece := stream.read(min(PIECE, end - start))):
            self.connection.settimeout(SEND_SECONDS)
            self.wfile.write(piece)
            start += len(piece)

    def _send(self, answer: Answer) -> None:
        assert isinstance(answer.body, str)
        body = answer.body.encode("utf-8", "backslashreplace")
        self._send_head(answer, answer.status, len(body), {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_head(self, answer: Answer, status: int, length: int, more: dict[str, str]) -> None:
        self.connection.settimeout(SEND_SECONDS)
        self.send_response(status)
        headers = {
            "Content-Type": answer.kind,
            "Content-Length": str(length),
            "Content-Security-Policy": answer.policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
            "Connection": "close",
        }
        for name, value in (headers | more | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Requests that the library refuses (bad first line, long headers, unknown methods), answered like all others."""
        self.request_version = "HTTP/1.1"
        if code == 501:
            self._send(Answer("GET, HEAD and POST only.\n", 405, headers={"Allow": "GET, HEAD, POST"}))
        else:
            self._send(Answer("This request cannot be understood.\n", code))

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: the terminal belongs to the address and the count."""


class _Timely(io.RawIOBase):
    """What a connection sends, up to a point in time, however it is spread."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._until = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


def video(stream: IO[bytes]) -> Answer:
    """A video, whatever its bytes are: browsers do not look for another type."""
    return Answer(stream, kind="video/mp4", policy=f"{_POLICY}; media-src 'self'; style-src 'unsafe-inline'")


def open_file(path: Path) -> IO[bytes]:
    """A regular file, for reading.

    Raises:
        Refused: it is gone, a link, a pipe or a device, or may not be read.
    """
    try:
        return os.fdopen(regular.open_descriptor(path), "rb")
    except (OSError, ValueError):
        raise Refused(404, "There is no such video.") from None


def _span(header: str | None, size: int) -> tuple[int, int] | None:
    """The bytes [start, end) that a Range header asks for; None: all. A start behind the file's end stays there."""
    asked = _RANGE.fullmatch(header or "")
    if asked is None or asked[0] == "bytes=-":
        return None
    if not asked[1]:
        return max(0, size - int(asked[2])) if int(asked[2]) else size, size
    start, end = int(asked[1]), int(asked[2]) + 1 if asked[2] else size
    return None if asked[2] and end <= start else (start, min(end, size))
