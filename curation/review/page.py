"""The review page: one HTML file with every sample's strip, video, flags and four keys to judge it.

Served by `workflows/review_server.py` it writes reviews as they are made; opened as a plain file it keeps them in the
browser and offers them as a CSV for `negatives import`.
"""

from __future__ import annotations

import base64
import json
from importlib import resources
from pathlib import Path

from configs.dataset_schema import ISSUES
from curation.review import tables


def render(folder: Path, title: str, served: bool) -> str:
    """The page as text.

    Args:
        folder: a negatives folder (``samples.parquet``, ``videos/``).
        served: reviews are posted to the server that sent the page; otherwise the page offers a CSV.
    """
    gathered = tables.samples(folder).to_pylist()
    latest = tables.effective(tables.reviews(folder))
    said: dict[str, list[dict[str, object]]] = {}
    for row in latest.drop(columns=["time"]).to_dict("records"):
        said.setdefault(str(row["negative_id"]), []).append({str(k): _plain(v) for k, v in row.items()})
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
            "flags": row["flags"],
            "scores": {p["name"]: p["value"] for p in row["scores"] or []},
            "quantiles": {p["name"]: p["value"] for p in row["real_quantiles"] or []},
            "reviews": said.get(row["negative_id"], []),
        }
        for row in gathered
    ]
    items.sort(key=lambda item: -max((f["severity"] for f in item["flags"]), default=-1.0))
    data = {"title": title, "served": served, "issues": list(ISSUES), "items": items}
    template = resources.files("curation.review").joinpath("page.html").read_text("utf-8")
    # "</" inside JSON would end the script element; "<\/" is the same JSON string
    return template.replace("{{DATA}}", json.dumps(data, ensure_ascii=False).replace("</", "<\\/"))


def _plain(value: object) -> object:
    return None if value != value or value is None else value  # noqa: PLR0124  (NaN is not equal to itself)
