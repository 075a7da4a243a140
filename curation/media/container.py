"""Opening a file that may be anything: its bytes, its container, the errors that say why it cannot be used.

Files are opened as bytes, never by a name that FFmpeg would parse, so ``concat:``, a leading dash or a newline are
only names; playlists and still-image demuxers, which would open other files, are refused.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import av
import av.error
import fsspec

from configs.errors import EchoForgeError

FORMATS = (
    "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,mxf,rm,nut,gif,ivf,obu,h264,hevc,m4v,dv,wtv,"
    "yuv4mpegpipe,wav,mp3,aac,flac,ac3,amr,aiff,caf,w64"
)
"""Demuxers that are used. Left out: playlists (hls, dash, concat) and still images (image2, ``*_pipe``)."""

_RATES = 4_000, 384_000  # Hz: half of a telephone's, and the fastest converters'; beyond, buffers of a second burst
_MOST_CHANNELS = 64  # ambisonics of the 7th order; FFmpeg decodes up to 64 channels of most formats
_PROBE_BYTES = 64 << 20  # read at most before the first frame: an 8K frame without compression is 50 MB


class MediaError(EchoForgeError):
    """A file that cannot be used. ``stage`` says where it failed: open, probe, decode, budget."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


@contextlib.contextmanager
def named(path: str | os.PathLike[str], wanted: str) -> Iterator[None]:
    """Name the file in the errors of its reader, which say only what is wrong; ``wanted`` says what to give instead."""
    try:
        yield
    except MediaError as error:
        raise MediaError(error.stage, f"{os.fspath(path)}: {str(error).rstrip('.')}; {wanted}.") from error


def open_bytes(uri: str) -> IO[bytes]:
    """The bytes of a local path, or of an fsspec URL (``s3://…``), seekable.

    Raises:
        MediaError: missing, not a file, empty or unreadable.
    """
    try:
        if re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]*://", uri):
            return cast(IO[bytes], fsspec.open(uri, "rb").open())
        path = Path(uri)
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise MediaError("open", "it is not a file that holds bytes (a folder, a pipe or a device).")
        if path.is_file() and path.stat().st_size == 0:
            raise MediaError("open", "the file is empty (0 bytes); copy or download it again.")
        return path.open("rb")
    except (OSError, ValueError) as error:
        if not_utf8(uri):
            raise MediaError("open", "its name is not valid UTF-8; rename the file.") from error
        raise MediaError("open", f"the file cannot be read ({_short(error)}).") from error


def not_utf8(name: str) -> bool:
    """Was this name (as :func:`utf8` writes it) made of bytes that are no text?"""
    return re.search(r"\\udc[89a-f][0-9a-f]", name) is not None


def utf8(name: str) -> str:
    r"""A file name that any table can hold: bytes that are not UTF-8 as ``\udcXX``."""
    return name.encode("utf-8", "backslashreplace").decode()


class BoundedFile:
    """An open file that ends after some megabytes until :meth:`unbound`, so that junk is not searched to its end.

    Demuxers skip what they do not understand, gigabytes of it if need be.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.name = getattr(file, "name", "")
        self.size = file.seek(0, 2)
        file.seek(0)
        self.seek, self.tell = file.seek, file.tell
        self._read, self._left = file.read, float(_PROBE_BYTES)

    def read(self, size: int = -1) -> bytes:
        """As of any file; nothing once the limit is reached."""
        data = self._read(size) if self._left > 0 else b""
        self._left -= len(data)
        return data

    def unbound(self) -> None:
        """Something was found: read as much as is asked for from here on.

        Raises:
            MediaError: it was found at the limit, so the demuxer took that for the end of the file.
        """
        if self._left <= 0:
            raise MediaError("open", f"nothing to show is found in its first {_PROBE_BYTES >> 20} MB; it is no video.")
        self._left = math.inf


def open_container(file: BoundedFile) -> Any:
    """The demuxer of an open file, by content and not by name. It opens no other file and no address.

    Raises:
        MediaError: no known container.
    """
    try:
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        return av.open(file, options=options, metadata_errors="replace", buffer_size=262_144)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        message = f"the file is not a video that can be opened ({_short(error)}); it is damaged or of another kind."
        raise MediaError("open", message) from error


def sound_stream(container: Any) -> Any:
    """The audio stream that a player would choose, or None.

    Raises:
        MediaError: see :func:`check_sound`.
    """
    usable = [s for s in container.streams.audio if (c := s.codec_context) is not None and c.sample_rate and c.channels]
    best = container.streams.best("audio") if usable else None
    chosen = best if best in usable else (usable[0] if usable else None)
    if chosen is not None:
        check_sound(chosen.codec_context.sample_rate, chosen.codec_context.channels)
    return chosen


def check_sound(rate: int, channels: int) -> None:
    """Refuse sound that nothing records: a header of a few bytes can promise two billion samples a second.

    Raises:
        MediaError: ``rate`` (Hz) or ``channels`` beyond what there is.
    """
    if not _RATES[0] <= rate <= _RATES[1] or channels > _MOST_CHANNELS:
        message = f"its sound has {rate} Hz and {channels} channels; convert it to 16 or 48 kHz, mono or stereo, first."
        raise MediaError("probe", message)


def _short(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:120]
