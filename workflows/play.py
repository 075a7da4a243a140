"""A page with the videos of a folder, served on this machine only."""

from __future__ import annotations

import html
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

from configs.errors import EchoForgeError

_PAGE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>body{{font:15px/1.5 system-ui,sans-serif;margin:20px;background:#f6f5f1;color:#1f2328}}
main{{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(240px,1fr))}}video{{width:100%;border-radius:6px;
background:#000}}</style><h1>{title}</h1><main>{items}</main>"""


def page(folder: Path) -> str:
    """Every .mp4 below ``folder``, by name."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.mp4"))
    items = "".join(
        f'<figure><video controls loop preload="metadata" src="/{quote(n)}"></video><figcaption>{html.escape(n)}'
        "</figcaption></figure>"
        for n in names
    )
    return _PAGE.format(title=html.escape(folder.name), items=items or "<p>No .mp4 here.</p>")


class _Handler(SimpleHTTPRequestHandler):
    """GET / → the page; GET NAME.mp4 → the video; nothing else."""

    def __init__(self, *args: Any, folder: Path, **kwargs: Any) -> None:
        self._folder = folder
        super().__init__(*args, directory=str(folder), **kwargs)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.endswith(".mp4"):
            super().do_GET()
            return
        body = page(self._folder).encode() if path == "/" else b"not here"
        self.send_response(200 if path == "/" else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""


def serve(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server (not yet running) on 127.0.0.1; ``port`` 0 takes a free one.

    Raises:
        EchoForgeError: no such folder, or the port is taken.
    """
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise EchoForgeError(f"'{folder}' {state}; give a folder with .mp4 files.")
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, folder=folder))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "ports are 0 to 65535"
        raise EchoForgeError(f"port {port} cannot be used ({reason}); choose another with --port.") from error
