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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import jinja2
from jinja2.utils import htmlsafe_json_dumps

from configs import members, reviews
from configs.dataset_schema import ISSUES
from curation.review import tables


@dataclass(frozen=True)
class Flag:
    """What a measure suspects of a sample."""

    issue: str
    severity: float | None
    reason: str | None


@dataclass(frozen=True)
class Vote:
    """What one person says of a sample (`reviews.Review`), without the time."""

    negative_id: str
    verdict: str
    issue: str | None
    frame_start: int | None
    frame_end: int | None
    reviewer: str
    note: str | None


@dataclass(frozen=True)
class Item:
    """A gathered sample as the page shows it."""

    id: str
    stage: str
    step: int
    task: str
    prompt: str
    seed: int
    video: str | None  # below the folder
    strip: str  # data address of a JPEG
    flags: Sequence[Flag]
    scores: Mapping[str, float | None]
    quantiles: Mapping[str, float | None]  # where each score falls among those of real samples
    reviews: Sequence[Vote]
    counts_as: str


@dataclass(frozen=True)
class Shown:
    """All that the page shows."""

    title: str
    issues: Sequence[str]
    items: Sequence[Item]  # the most severe flag first

    def as_json(self) -> str:
        """JSON in ASCII, for the served page."""
        return json.dumps(asdict(self), allow_nan=False)


def shown(folder: Path, title: str) -> Shown:
    """What the page shows of a negatives folder (``samples.parquet``, ``videos/``).

    Raises:
        EchoForgeError: nothing was gathered there, or a table cannot be read.
    """
    gathered = tables.samples(folder)
    reviewed = reviews.read(folder)
    judged = reviews.judgements(gathered, reviewed, accept_flags=False)
    votes: dict[str, list[Vote]] = {}
    for vote in reviews.latest(reviewed):
        values = {name: value for name, value in vars(vote).items() if name != "time"}
        votes.setdefault(vote.negative_id, []).append(Vote(**values))
    items = [
        Item(
            id=row["negative_id"],
            stage=row["stage"],
            step=row["step"],
            task=row["task"],
            prompt=row["prompt"],
            seed=row["seed"],
            video=_inside(row["video_path"]),
            strip="data:image/jpeg;base64," + base64.b64encode(row["thumbnail"] or b"").decode(),
            flags=[Flag(f["issue"], _finite(f["severity"]), f["reason"]) for f in row["flags"] or []],
            scores={p["name"]: _finite(p["value"]) for p in row["scores"] or []},
            quantiles={p["name"]: _finite(p["value"]) for p in row["real_quantiles"] or []},
            reviews=votes.get(row["negative_id"], []),
            counts_as=str(judged[row["negative_id"]]),
        )
        for row in gathered.to_pylist()
    ]
    items.sort(key=lambda item: -max((flag.severity or 0.0 for flag in item.flags), default=-1.0))
    return Shown(title, ISSUES, items)


def _inside(place: str | None) -> str | None:
    """``place`` where it names a file of the folder: a browser would ask for any other address, too."""
    try:
        return members.relative(place)
    except members.BadMember:
        return None


def shell() -> str:
    """The page without data, for a server that answers ``data.json`` and ``reviews``."""
    return _page(None)


def render(folder: Path, title: str) -> str:
    """The page with its data, for a plain file."""
    # In ASCII, with < > & ' as \u003c …: nothing in it ends the script element or begins a comment.
    return _page(htmlsafe_json_dumps(asdict(shown(folder, title)), allow_nan=False))


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
