"""One row per video and metric: a value, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import EchoForgeError
from configs.runtime import disk, stopping
from curation import spreadsheet
from evaluation import versions
from evaluation.config import MetricsConfig
from evaluation.metrics import METRICS, VERSION, NotMeasured, Video


@dataclass(frozen=True)
class Measured:
    """A row of the table. ``value`` is null where the metric was not measured, and ``note`` says why."""

    video: str
    metric: str
    value: float | None
    unit: str = ""
    better: str = ""
    note: str = ""


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
        The columns of :class:`Measured`.

    Raises:
        EchoForgeError: the configuration names an unknown metric.
    """
    rows: list[Measured] = []
    for name, video in videos.items():
        given = (scores or {}).get(name, {})
        for metric in config.metrics:
            stopping.check()
            rows.append(_measured(name, metric, video, references.get(name), given))
    return pd.DataFrame(map(astuple, rows), columns=[field.name for field in fields(Measured)])


FORMATS = (".csv", ".parquet")


def write(table: pd.DataFrame, out: Path) -> None:
    """Write the table of :func:`evaluate`; the folder is made when it is not there. Check ``out`` before measuring.

    Parquet carries the version of the metrics (`evaluation/versions.py`).
    """
    with disk.replacing(out) as part:
        if out.suffix.lower() == ".parquet":
            pq.write_table(versions.stamped(pa.Table.from_pandas(table), versions.METRICS, VERSION), part)
        else:
            spreadsheet.write(table, part)


def _measured(video: str, name: str, frames: Video, reference: Video | None, given: Mapping[str, float]) -> Measured:
    if name in given:
        return Measured(video, name, given[name])
    if name in NEED_WEIGHTS:
        return Measured(video, name, None, note=f"not measured: {NEED_WEIGHTS[name]}")
    if name not in METRICS:
        raise EchoForgeError(f"no metric is called '{name}'; known: {', '.join([*METRICS, *NEED_WEIGHTS])}.")
    metric = METRICS[name]
    try:
        return Measured(video, name, metric.measure(frames, reference), metric.unit, metric.better)
    except NotMeasured as reason:
        return Measured(video, name, None, metric.unit, metric.better, f"not measured: {reason}")
