"""One video → what is known of it and its clips, scored: one decoding pass that every operator watches. No decision."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from configs.errors import EchoForgeError
from configs.runtime.shown import visible
from curation import sidecars
from curation.analysis.clips import first_tick, on_clock_spans
from curation.analysis.registry import Backends
from curation.analysis.video_pass import VideoPass
from curation.caption_files import Written, written
from curation.captions import captioned
from curation.clip import Clip, Video
from curation.config import CurationConfig
from curation.media.audio import SoundReader
from curation.media.clock import FramePass, open_video
from curation.media.container import MediaError
from curation.media.video_file import MediaInfo
from curation.operators.captions import CaptionOperator
from curation.schema import FPS
from curation.sources.source import Source

_SOUND_BEFORE_S = 2.0  # read before the first frame wanted: codecs need a run-up

Analysis = tuple[Video, tuple[Clip, ...]]


def analyse_video(source: Source, cfg: CurationConfig, *, backends: Backends) -> Analysis:
    """Everything that can be known of one video by itself.

    Args:
        source: a file that can be opened here, and what a manifest says of it. Sidecars must lie in ``source.root``,
            or where that is empty in the video's own folder.

    Returns:
        the video and its clips. A file that cannot be used gives a video with the verdict `error`, the stage and one
        sentence; clips found before it broke are dropped.
    """
    video = Video(source.uri, licence=source.licence, source=source.source)
    try:
        said = written_of(source, cfg)
    except EchoForgeError as error:
        return error_video(video, "captions", str(error)), ()
    video = replace(video, licence=video.licence or said.licence, source=video.source or said.source)
    if said.captions:
        backends = backends.without(CaptionOperator.name)
    info = None
    try:
        with open_video(source.uri, cfg.video) as file:
            info = file.info
            with _sound(source, info) as sound:
                work = VideoPass(file, sound, source, cfg, backends)
                clips = tuple(work.run())
            video = _described(video, info, work.frames, whole=work.whole)
    except MediaError as error:
        return error_video(video, error.stage, str(error), info), ()
    except EchoForgeError as error:
        return error_video(video, "analyse", str(error), info), ()
    speaker = source.speaker or said.speaker
    return video, tuple(replace(captioned(c, said.captions, cfg.captions), speaker=speaker) for c in clips)


def score_known_clips(
    source: Source, cfg: CurationConfig, clips: Sequence[Clip], *, backends: Backends
) -> tuple[Clip, ...]:
    """Known clips of a video (in order) with the columns of ``backends``' operators written anew.

    Raises:
        MediaError, EchoForgeError: the file cannot be read, or an operator fails.
    """
    with open_video(source.uri, cfg.video, identify=False) as file, _sound(source, file.info) as sound:
        return tuple(VideoPass(file, sound, source, cfg, backends, clips).run())


def written_of(source: Source, cfg: CurationConfig) -> Written:
    """What people wrote of a source, beside it and in its manifest.

    Raises:
        EchoForgeError: a sidecar cannot be read, or says too much.
    """
    root = sidecars.root_of(source.uri, source.root, cfg.sources.follow_links)
    return written(source.uri, cfg.captions, source.caption, root)


def error_video(video: Video, stage: str, sentence: str, info: MediaInfo | None = None) -> Video:
    """A file that cannot be used is still a row. One that was opened as a video has the id of its bytes."""
    sentence = visible(sentence)
    video = replace(video, verdict="error", error_stage=stage, error=sentence, reasons=(f"{stage}: {sentence}",))
    if info is not None:
        return replace(video, video_id=info.video_id, bytes=info.bytes)
    with suppress(OSError, ValueError):  # a remote or unreadable file: the sentence says so
        if Path(video.source_uri).is_file():  # a pipe would wait for ever
            return replace(video, bytes=Path(video.source_uri).stat().st_size)
    return video


def _sound(source: Source, info: MediaInfo) -> SoundReader:
    first = first_tick(on_clock_spans(source.spans))
    return SoundReader(source.uri, info.origin_s, max(0.0, first / FPS - _SOUND_BEFORE_S))


def _described(video: Video, info: MediaInfo, frames: FramePass, *, whole: bool) -> Video:
    fps, seen_s = frames.deltas.fps, frames.ticks / FPS
    return replace(
        video,
        video_id=info.video_id,
        bytes=info.bytes,
        container=info.container,
        vcodec=info.vcodec,
        acodec=info.acodec,
        duration_s=seen_s if whole else max(seen_s, info.duration_s or 0.0),
        fps=fps if fps is not None else info.fps,
        vfr=frames.deltas.variable,
        width=info.width,
        height=info.height,
        rotation=info.rotation,
        sample_rate=info.sample_rate,
        channels=info.channels,
    )
