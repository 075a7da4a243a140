"""How well lips and sound of one file agree, clip by clip."""

from __future__ import annotations

from pathlib import Path

from configs.errors import EchoForgeError
from curation.analysis import registry
from curation.analysis.video import analyse_video
from curation.config import CurationConfig
from curation.sources.source import Source

COLUMNS = (
    "start_s",
    "end_s",
    "sync_backend",
    "sync_c",
    "sync_d",
    "sync_fit_conf",
    "av_offset_frames",
    "residual_offset",
)
"""What is told of a clip; the names are those of the catalog (`curation.schema.CLIPS`)."""


def score(file: Path, cfg: CurationConfig) -> list[tuple[float | str | None, ...]]:
    """One row of :data:`COLUMNS` for every clip of a video.

    Raises:
        EchoForgeError: no sync backend is configured, or the file is no video.
    """
    if cfg.sync.backend == "none":
        raise EchoForgeError(
            "no sync backend is configured; set sync.backend=fitted with sync.fitted=FILE, or syncnet_v2."
        )
    video, clips = analyse_video(Source(str(file)), cfg, backends=registry.load(cfg))
    if video.verdict == "error":
        raise EchoForgeError(f"{file}: {video.error}")
    return [tuple(row[name] for name in COLUMNS) for row in (clip.to_row() for clip in clips)]
