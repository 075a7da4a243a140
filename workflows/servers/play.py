"""A page with the videos of a folder, served on this machine only (`workflows/servers/loopback.py`)."""

from __future__ import annotations

import html
import os
from pathlib import Path
from urllib.parse import quote

from configs.errors import EchoForgeError
from configs.runtime.shown import one_line
from workflows.servers import loopback
from workflows.servers.loopback import Answer, Refused

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:20px;background:#f6f5f1;color:#1f2328}}h1,figcaption{{overflow-wrap:anywhere}}
main{{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(240px,1fr))}}figure{{margin:0}}
video{{width:100%;border-radius:6px;background:#000}}</style><h1>{title}</h1><main>{items}</main>{left}"""


def videos(folder: Path) -> tuple[dict[str, Path], int]:
    """Every regular ``.mp4`` below ``folder`` by its relative name, in order; and how many links, pipes and devices of
    such a name are left out. Linked folders are not entered.
    """
    found = sorted(folder.rglob("*.mp4"))
    regular = {p.relative_to(folder).as_posix(): p for p in found if p.is_file() and not p.is_symlink()}
    return regular, sum(p.is_symlink() or not (p.is_file() or p.is_dir()) for p in found)


def page(folder: Path) -> str:
    """Every video of :func:`videos`, by name."""
    names, left = videos(folder)
    items = "".join(
        f'<figure><video controls loop preload="metadata" src="videos/{quote(os.fsencode(name))}"></video><figcaption>'
        f"{html.escape(one_line(name))}</figcaption></figure>"
        for name in names
    )
    note = f"<p>{left} links, pipes or devices are not shown.</p>" if left else ""
    title = html.escape(one_line(folder.name))
    return _PAGE.format(title=title, items=items or "<p>No .mp4 here.</p>", left=note)


class _Videos:
    """GET '' → the page; GET videos/NAME.mp4 → the video; nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str) -> Answer:
        if not name:
            return Answer(page(self._folder), kind="text/html; charset=utf-8", policy=loopback.PAGE_POLICY)
        path = videos(self._folder)[0].get(name.removeprefix("videos/")) if name.startswith("videos/") else None
        if path is None:
            raise Refused(404, "There is no such video.")
        return loopback.video(loopback.open_file(path))

    def post(self, name: str, kind: str, body: bytes) -> Answer:
        raise Refused(405, "Nothing is posted here.", Allow="GET, HEAD")


def serve(folder: Path, port: int = 0) -> loopback.Server:
    """A server (not yet running); ``port`` 0 takes a free one.

    Raises:
        EchoForgeError: no such folder, or the port is taken.
    """
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise EchoForgeError(f"'{folder}' {state}; give a folder with .mp4 files.")
    return loopback.Server(_Videos(folder), port)
