"""The review page: one HTML file with every sample's strip, video, flags and four keys to judge it.

Served by `workflows/servers/review.py` it asks for its data and writes reviews as they are made; opened as a plain file it
holds the data, keeps reviews in the browser and offers them as a CSV for `negatives import`.

What people and tables say is data everywhere: JSON that no text in it can end, put on the page as text, never as HTML. The
page's policy admits its one script by its digest and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps

from configs import members, reviews
from configs.dataset_schema import ISSUES
from curation.review import tables


def data(folder: Path, title: str) -> dict[str, Any]:
    """All that the page shows, as plain data for JSON.

    Args:
        folder: a negatives folder (``samples.parquet``, ``videos/``).

    Raises:
        EchoForgeError: nothing was gathered there, or a table cannot be read.
    """
    gathered = tables.samples(folder)
    reviewed = reviews.read(folder)
    judged = reviews.judgements(gathered, reviewed, accept_flags=False)
    said: dict[str, list[dict[str, object]]] = {}
    for vote in reviews.latest(reviewed):
        said.setdefault(vote.negative_id, []).append({k: v for k, v in vars(vote).items() if k != "time"})
    items = [
        {
            "id": row["negative_id"],
            "stage": row["stage"],
            "step": row["step"],
            "task": row["task"],
            "prompt": row["prompt"],
            "seed": row["seed"],
            "video": _inside(row["video_path"]),
            "strip": "data:image/jpeg;base64," + base64.b64encode(row["thumbnail"] or b"").decode(),
            "flags": [flag | {"severity": _finite(flag["severity"])} for flag in row["flags"] or []],
            "scores": {p["name"]: _finite(p["value"]) for p in row["scores"] or []},
            "quantiles": {p["name"]: _finite(p["value"]) for p in row["real_quantiles"] or []},
            "reviews": said.get(row["negative_id"], []),
            "counts_as": str(judged[row["negative_id"]]),
        }
        for row in gathered.to_pylist()
    ]
    items.sort(key=lambda item: -max((f["severity"] or 0.0 for f in item["flags"]), default=-1.0))
    return {"title": title, "issues": list(ISSUES), "items": items}


def _inside(place: str | None) -> str | None:
    """``place`` where it names a file of the folder: a browser would ask for any other address, too."""
    try:
        return members.relative(place)
    except members.BadMember:
        return None


def as_json(found: dict[str, Any]) -> str:
    """JSON in ASCII, for the served page."""
    return json.dumps(found, allow_nan=False)


def shell() -> str:
    """The page without data, for a server that answers ``data.json`` and ``reviews``."""
    return _page(None)


def render(folder: Path, title: str) -> str:
    """The page with its data, for a plain file."""
    # In ASCII, with < > & ' as \u003c …: nothing in it ends the script element or begins a comment.
    return _page(htmlsafe_json_dumps(data(folder, title), allow_nan=False))


def policy() -> str:
    """The Content-Security-Policy of the page: its one script by digest, its server, pictures that it holds.

    https://www.w3.org/TR/CSP3/
    """
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; media-src 'self'; connect-src 'self'; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def _page(held: str | None) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_resource("page.html"))
    return template.render(policy=policy(), data=held, script=_script())


def _script() -> str:
    return _resource("page.js")


def _resource(name: str) -> str:
    return resources.files("curation.review").joinpath(name).read_text("utf-8")


def _finite(value: float | None) -> float | None:
    """JSON knows neither NaN nor infinity."""
    return value if value is not None and math.isfinite(value) else None
