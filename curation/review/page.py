"""The review page: one HTML file with every sample's strip, video, flags and four keys to judge it.

Served by `workflows/review_server.py` it writes reviews as they are made; opened as a plain file it keeps them in the
browser and offers them as a CSV for `negatives import`.
"""

from __future__ import annotations

import base64
import json
from importlib import resources
from pathlib import Path

from configs import reviews
from configs.dataset_schema import ISSUES
from curation.review import tables


def render(folder: Path, title: str, served: bool) -> str:
    """The page as text.

    Args:
        folder: a negatives folder (``samples.parquet``, ``videos/``).
        served: reviews are posted to the server that sent the page; otherwise the page offers a CSV.
    """
    gathered = tables.samples(folder)
    reviewed = reviews.read(folder)
    judged = reviews.judgements(gathered, reviewed, accept_flags=False)
    said: dict[str, list[dict[str, object]]] = {}
    for vote in reviews.latest(reviewed):
        said.setdefault(vote["negative_id"], []).append({k: v for k, v in vote.items() if k != "time"})
    items = [
        {
            "id": row["negative_id"],
            "stage": row["stage"],
            "step": row["step"],
            "task": row["task"],
            "prompt": row["prompt"],
            "seed": row["seed"],
            "video": row["video_path"],
            "strip": "data:image/jpeg;base64," + base64.b64encode(row["thumbnail"] or b"").decode(),
            "flags": row["flags"] or [],
            "scores": {p["name"]: p["value"] for p in row["scores"] or []},
            "quantiles": {p["name"]: p["value"] for p in row["real_quantiles"] or []},
            "reviews": said.get(row["negative_id"], []),
            "counts_as": str(judged[row["negative_id"]]),
        }
        for row in gathered.to_pylist()
    ]
    items.sort(key=lambda item: -max((f["severity"] or 0.0 for f in item["flags"]), default=-1.0))
    data = {"title": title, "served": served, "issues": list(ISSUES), "items": items}
    template = resources.files("curation.review").joinpath("page.html").read_text("utf-8")
    # "</" inside JSON would end the script element; "<\/" is the same JSON string
    return template.replace("{{DATA}}", json.dumps(data, ensure_ascii=False).replace("</", "<\\/"))
