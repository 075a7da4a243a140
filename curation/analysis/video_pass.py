"""One decoding pass over a video, which every operator watches and after which every clip is scored.

The clips are found on the way (`ClipFinder`), or known from an earlier analysis (`KnownClips`): then no shots and no
faces are looked for, and nothing is decoded where no operator looks at pictures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from curation.analysis.clip_finder import ClipFinder, FoundClip
from curation.analysis.clips import first_tick, on_clock_spans, wanted
from curation.analysis.registry import Backends
from curation.analysis.sync_scores import sync_scored
from curation.analysis.tracks import largest
from curation.clip import Clip
from curation.config import CurationConfig
from curation.media.audio import SoundReader
from curation.media.clock import FramePass, Tick, every, picture
from curation.media.decord_reader import DecordFile
from curation.media.video_file import VideoFile
from curation.operators.base import ClipContext, Span
from curation.schema import FPS
from curation.sources.source import Source

_FORGET = 10 * FPS  # frames between two times that operators are told what is not needed any more


class Clips(Protocol):
    """Where the clips of a pass come from, in order."""

    pictures: bool
    """Does it look at pictures itself?"""

    def tick(self, tick: Tick) -> Iterator[FoundClip]:
        """One step of the pass; clips that are complete now. Releases the tick's pictures."""

    def finish(self, damaged: Collection[int]) -> Iterator[FoundClip]:
        """The rest, once the pass has ended; ``damaged``: frames of the video that are."""

    def past(self, frame: int) -> bool:
        """Is nothing wanted any more, so that the rest need not be decoded?"""

    @property
    def oldest(self) -> int:
        """No clip to come begins before this frame."""

    def forget(self, before: int) -> None:
        """What lies before a frame is not needed again."""


class KnownClips:
    """The clips of an earlier analysis."""

    pictures = False

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._waiting = deque(clips)
        self._last = 0

    def tick(self, tick: Tick) -> Iterator[FoundClip]:
        """See :class:`Clips`."""
        self._last = tick.index
        tick.frame.release()
        while self._waiting and self._waiting[0].end_frame <= tick.index + 1:
            yield FoundClip(self._waiting.popleft())

    def finish(self, damaged: Collection[int]) -> Iterator[FoundClip]:
        """See :class:`Clips`; clips with damaged frames were left out when they were found."""
        while self._waiting:
            yield FoundClip(self._waiting.popleft())

    def past(self, frame: int) -> bool:
        """See :class:`Clips`."""
        return not self._waiting

    @property
    def oldest(self) -> int:
        """See :class:`Clips`."""
        return min(self._last, self._waiting[0].start_frame) if self._waiting else self._last

    def forget(self, before: int) -> None:
        """See :class:`Clips`."""


class VideoPass:
    """Serves one video."""

    def __init__(
        self,
        video: VideoFile | DecordFile,
        sound: SoundReader,
        source: Source,
        cfg: CurationConfig,
        operators: Backends,
        known_clips: Sequence[Clip] | None = None,
    ) -> None:
        """
        Args:
            source: what a manifest says of the video: spans that are looked at, where the speaker is.
            known_clips: score these (in order) instead of looking for clips.
        """
        spans = on_clock_spans(source.spans)
        self.frames = FramePass(video, cfg.video, first_tick(spans))
        self._info, self._sound, self._spans = video.info, sound, spans
        self._sync, self._least = operators.sync, cfg.sync.min_frames
        crop = self._sync.crop if self._sync and sound.present else None
        self._clips: Clips = (
            ClipFinder(video.info, cfg, operators.detector, crop, spans, source.region)
            if known_clips is None
            else KnownClips(known_clips)
        )
        self._watching = [make() for make in operators.frame_operators.values()]
        self._listening = [make() for make in operators.sound_operators.values()]
        self._forgotten = 0  # frame before which nothing is kept

    def run(self) -> Iterator[Clip]:
        """The clips in order, each as soon as it is complete.

        Raises:
            MediaError: as :meth:`FramePass.run`, and where the sound breaks off.
        """
        for found in self._found():
            yield self._scored(found)
            self._forget()

    @property
    def whole(self) -> bool:
        """Was the video decoded to its end?"""
        return not self._clips.past(self.frames.ticks)

    def _found(self) -> Iterator[FoundClip]:
        if self._watching or self._clips.pictures:
            for tick in self.frames.run():
                self._watch(tick)
                yield from self._clips.tick(tick)
                self._forget()
                if self._clips.past(tick.index):
                    break
        yield from self._clips.finish(self.frames.damaged)

    def _watch(self, tick: Tick) -> None:
        for operator in self._watching if wanted(self._spans, tick.index) else ():
            if tick.index % every(operator.needs) == 0:
                operator.frame(picture(tick, operator.needs, self._info.width, self._info.height))

    def _scored(self, found: FoundClip) -> Clip:
        clip, info = found.clip, self._info
        tracks = tuple(track.unscored() for track in clip.tracks)
        context = ClipContext(info.width, info.height, info.fps, tracks, largest(tracks))
        for operator in self._watching:
            clip = clip.scored(operator.clip(Span(clip.start_frame, clip.end_frame), context))
        if not self._sound.present or not (self._listening or (self._sync and found.crops)):
            return clip
        heard = self._sound.read(clip.start_frame, clip.end_frame)
        for listener in self._listening:
            clip = clip.scored(listener.clip(heard.pcm, heard.native, heard.rate))
        if self._sync and found.crops:
            clip = sync_scored(clip, found.crops, heard.pcm, self._sync, self._least)
        return clip

    def _forget(self) -> None:
        oldest = self._clips.oldest
        if oldest - self._forgotten < _FORGET:
            return
        self._forgotten = oldest
        self._clips.forget(oldest)
        self._sound.forget(oldest)
        for operator in self._watching:
            operator.forget(oldest)
