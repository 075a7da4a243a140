"""Fit a small SyncNet on the clips of a catalog: `pipeline/` reads the tables, `curation/` fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from configs.errors import EchoForgeError
from configs.schema import Config
from curation.clip import Clip
from curation.sync.fit import FitReport, fit_from_clips
from curation.sync.gather import catalog_clips, usable
from pipeline.catalog import identity, tables
from pipeline.catalog.identity import CuratedSource
from pipeline.catalog.located import located


def fit(
    catalog: str, out: Path, config: Config, *, domain: str, progress: Callable[[int, int, float], None] | None = None
) -> tuple[FitReport, list[str]]:
    """Fit on the clips of ``catalog`` that are not rejected and write the file.

    Returns:
        (the report of the fit, one line for each source that is left out because it is not the file that was curated).

    Raises:
        EchoForgeError: no catalog, half-written tables, or too few clips.
    """
    now = tables.Snapshot(catalog)
    videos = now.read("videos", ["video_id", "source_uri", "bytes", "source_tag"])
    left_out: dict[str, str] = {}
    clips = catalog_clips(_clips(now.pieces("clips"), videos, catalog, left_out))
    try:
        report = fit_from_clips(clips, out, config.curation.sync, domain=domain, seed=config.seed, progress=progress)
    except EchoForgeError as error:
        lost = "".join(f" Left out: {uri}: {cause}." for uri, cause in list(left_out.items())[:3])
        raise EchoForgeError(f"{error}{lost}") from error
    return report, [f"{uri}: {cause}" for uri, cause in left_out.items()]


def _clips(pieces: Iterator[pa.Table], videos: pa.Table, catalog: str, left_out: dict[str, str]) -> Iterator[Clip]:
    """Usable clips whose source is the one that was curated; the others' sources go to ``left_out``, with the cause."""
    for piece in pieces:
        for row in located(identity.attach(piece, videos), catalog).to_pylist():
            if usable(clip := Clip.from_row(row)):
                try:
                    identity.check(
                        CuratedSource(clip.source_uri, clip.video_id, row["source_bytes"], row["source_tag"])
                    )
                except identity.WrongSource as error:
                    left_out[clip.source_uri] = str(error)
                else:
                    yield clip
