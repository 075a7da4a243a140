"""A person reviews samples in a browser on this machine; every click becomes a row in a Parquet part.

One folder, one page, one way to write. Who may ask, and how much, is the rule of `workflows/servers/loopback.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from threading import Lock
from typing import Any

from configs import members
from curation.review import page, tables
from workflows.servers import loopback
from workflows.servers.loopback import Answer, Refused

_PAGE, _DATA, _REVIEWS = "", "data.json", "reviews"


class _Reviews:
    """GET '' → the page; GET data.json → what it shows; GET VIDEO → a sample's video; POST reviews → rows."""

    def __init__(self, folder: Path, title: str) -> None:
        self._folder, self._title, self._lock = folder, title, Lock()

    def get(self, name: str) -> Answer:
        if name == _PAGE:
            return Answer(
                page.shell(), kind="text/html; charset=utf-8", policy=f"{page.policy()}; frame-ancestors 'none'"
            )
        if name == _DATA:
            return Answer(page.shown(self._folder, self._title).as_json(), kind="application/json")
        if name == _REVIEWS:
            raise Refused(405, "Reviews are posted here.", Allow="POST")
        if name not in tables.videos(self._folder):
            raise Refused(404, "There is nothing here.")
        try:
            return loopback.video(os.fdopen(members.open_descriptor(self._folder, name), "rb"))
        except (members.BadMember, OSError):
            raise Refused(404, "This sample's video is gone, or is no regular file in the folder.") from None

    def post(self, name: str, kind: str, body: bytes) -> Answer:
        if name != _REVIEWS:
            raise Refused(405, "Reviews are posted to 'reviews'.", Allow="GET, HEAD")
        # A page of another site can post text/plain without asking; application/json it cannot.
        if kind != "application/json":
            raise Refused(415, "Post reviews as application/json.")
        rows = _rows(body)
        with self._lock:
            count = tables.add(self._folder, rows)
        return Answer(f"{count} recorded\n")


def _rows(body: bytes) -> Any:
    """The JSON of a body; what it means is for :func:`tables.add`."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The body is no JSON that can be read.") from error


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def serve(folder: Path, title: str, port: int = 0) -> loopback.Server:
    """A server (not yet running) for one negatives folder; ``port`` 0 takes a free one.

    Raises:
        EchoForgeError: nothing was gathered there, or the port is taken.
    """
    tables.samples(folder)
    return loopback.Server(_Reviews(folder, title), port)
