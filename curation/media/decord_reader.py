"""Reading through decord, on request (``video.backend: decord``).

decord decodes ahead without bound (dmlc/decord#208: 6.7 GB on a 150 s file), so it suits short files; PyAV is the
default. Probing and identity stay with `video_file.py`.

decord cannot be told to leave playlists alone, which name other files and addresses. So it is shown only containers
whose first bytes no playlist has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import cv2

from curation import packages
from curation.media.container import MediaError
from curation.media.frames import ArrayFrame, Frame
from curation.media.video_file import VideoFile

_CONTAINERS = ("mov", "matroska", "avi", "flv")  # as `MediaInfo.container` names them


class DecordFile:
    """A video through decord, with the interface of :class:`curation.media.video_file.VideoFile`. Local files only.

    Raises:
        MediaError: not a video, or decord cannot read it.
        EchoForgeError: decord is not installed.
    """

    damaged_packets = 0

    def __init__(self, uri: str, threads: int = 1, *, identify: bool = True) -> None:
        packages.require("decord", "video.backend=decord")
        with VideoFile(uri, threads, identify=identify) as probe:
            self.info, self._display = probe.info, probe.display
        if self.info.container not in _CONTAINERS:
            message = f"decord is not used for files of the kind '{self.info.container}'; use video.backend=pyav."
            raise MediaError("open", message)
        import decord

        self._file = open(uri, "rb")  # noqa: SIM115, PTH123 - decord reads from it until __exit__
        try:
            self._reader: Any = decord.VideoReader(self._file, num_threads=threads)
        except Exception as error:  # decord raises its own type, which does not exist without it
            self._file.close()
            raise MediaError("open", "decord cannot read the file; use video.backend=pyav.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        del self._reader
        self._file.close()

    def frames(self) -> Iterator[Frame]:
        """Every frame, in displayed geometry."""
        origin = None
        for number in range(len(self._reader)):
            try:
                image = self._reader[number].asnumpy()
            except Exception as error:
                raise MediaError("decode", f"decord stopped at frame {number}; use video.backend=pyav.") from error
            start, end = (float(t) for t in self._reader.get_frame_timestamp(number))
            origin = start if origin is None else origin
            coded = (self._display.coded_width, self._display.coded_height)
            if (image.shape[1], image.shape[0]) == coded:  # newer builds of decord turn the frame themselves
                image = self._display.turn(image)
            if (image.shape[1], image.shape[0]) != self._display.size:
                image = cv2.resize(image, self._display.size, interpolation=cv2.INTER_AREA)
            yield ArrayFrame(image, start - origin + self.info.origin_s, end - start)
