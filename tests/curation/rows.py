"""Analyses as rows, for tests that look at columns."""

from __future__ import annotations

from typing import Any

from curation.analysis.registry import Backends
from curation.analysis.video import analyse_video
from curation.config import CurationConfig
from curation.sources.source import Source


def analysed_rows(
    uri: str, cfg: CurationConfig, *, backends: Backends, **facts: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The rows of a video and its clips; ``facts``: what a manifest says of it."""
    video, clips = analyse_video(Source(uri, **facts), cfg, backends=backends)
    return video.to_row(), [clip.to_row() for clip in clips]
