"""Measure video files with the metrics of `evaluation/`, each beside a reference if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from configs.folders import check_out_file
from evaluation.config import MetricsConfig
from evaluation.reading import read
from evaluation.table import FORMATS, evaluate


def evaluate_files(
    files: Sequence[Path], reference: Path | None, config: MetricsConfig, out: Path | None = None
) -> pd.DataFrame:
    """The table that `evaluation/table.py` makes, by the names of the files.

    Args:
        reference: what all of them are compared with.
        out: where the table will be written; looked at before anything is measured.

    Raises:
        EchoForgeError: a file is no video, an unknown metric, or nothing can be written to ``out``.
    """
    if out is not None:
        check_out_file(out, FORMATS, inputs=[*files, *([reference] if reference else [])])
    videos = {str(path): read(path, config.side) for path in files}
    references = {} if reference is None else dict.fromkeys(videos, read(reference, config.side))
    return evaluate(videos, references, config)
