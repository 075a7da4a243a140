"""One row per video and metric: a value, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from configs.errors import EchoForgeError
from configs.runtime import disk, stopping
from curation.review import spreadsheet
from evaluation.config import MetricsConfig
from evaluation.metrics import METRICS, NotMeasured, Video

NEED_WEIGHTS = {
    "fid": "needs Inception weights",
    "fvd": "needs I3D or VideoMAE weights",
    "iqa": "needs Q-Align weights (8B, non-commercial licence)",
    "ase": "needs Q-Align weights (8B, non-commercial licence)",
    "sync_c": "`sync score` measures it, with SyncNet v2 (`weights fetch syncnet-v2`)",
    "sync_d": "`sync score` measures it, with SyncNet v2 (`weights fetch syncnet-v2`)",
}
"""Metrics of the paper's Table 1 that no weight-free function can give."""


def evaluate(
    videos: Mapping[str, Video],
    references: Mapping[str, Video],
    config: MetricsConfig,
    scores: Mapping[str, Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """Measure every video.

    Args:
        videos: name → video.
        references: the same names → what they are compared with; may lack any.
        scores: name → metric → value, of metrics that somebody else measured (a sync backend with weights).

    Returns:
        Columns video, metric, value (null when not measured), unit, better, note.

    Raises:
        EchoForgeError: the configuration names an unknown metric.
    """
    rows: list[dict[str, Any]] = []
    for name, video in videos.items():
        given = (scores or {}).get(name, {})
        for metric in config.metrics:
            stopping.check()
            rows.append({"video": name, "metric": metric} | _row(metric, video, references.get(name), given))
    return pd.DataFrame(rows, columns=["video", "metric", "value", "unit", "better", "note"])


FORMATS = (".csv", ".parquet")


def write(table: pd.DataFrame, out: Path) -> None:
    """Write the table of :func:`evaluate`; the folder is made when it is not there. Check ``out`` before measuring."""
    with disk.replacing(out) as part:
        table.to_parquet(part) if out.suffix.lower() == ".parquet" else spreadsheet.write(table, part)


def _row(name: str, video: Video, reference: Video | None, given: Mapping[str, float]) -> dict[str, Any]:
    if name in given:
        return {"value": given[name], "unit": "", "better": "", "note": ""}
    if name in NEED_WEIGHTS:
        return {"value": None, "unit": "", "better": "", "note": f"not measured: {NEED_WEIGHTS[name]}"}
    if name not in METRICS:
        raise EchoForgeError(f"no metric is called '{name}'; known: {', '.join([*METRICS, *NEED_WEIGHTS])}.")
    metric = METRICS[name]
    row: dict[str, Any] = {"unit": metric.unit, "better": metric.better}
    try:
        return row | {"value": metric.measure(video, reference), "note": ""}
    except NotMeasured as reason:
        return row | {"value": None, "note": f"not measured: {reason}"}
