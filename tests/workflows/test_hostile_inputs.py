"""Pictures and sounds that strangers give to `generate`: a picture, a sound, or one sentence; no other program starts."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from configs import schema
from configs.errors import EchoForgeError
from workflows.generate import _open_picture, generate, read_sound


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path: Path, width: int, height: int, extra: bytes = b"") -> None:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(bytes(1000))) + _chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + extra + body)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"
PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bomb": (lambda p: png(p, 2**31 - 1, 2**31 - 1), "too large"),
    "a hundred megapixels": (lambda p: png(p, 12_000, 9_000), "too large"),
    "a bomb of words": (lambda p: png(p, 64, 64, _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**8)))), "is broken"),
    "half a picture": (lambda p: png(p, 640, 480), "is broken"),
    "PostScript": (lambda p: p.write_bytes(EPS), "not a video that can be opened"),
    "SVG": (lambda p: p.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>'), "not a video that can be opened"),
    "a pipe": (os.mkfifo, "not a file that holds bytes"),
}


@pytest.mark.parametrize("case", PICTURES)
@pytest.mark.timeout(60, func_only=True)
def test_a_hostile_picture_is_a_sentence(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gs", "gswin32c", "ffmpeg"):  # what Pillow would start for PostScript
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    make, sentence = PICTURES[case]
    make(tmp_path / "picture.png")
    with pytest.raises(EchoForgeError, match=sentence):
        _open_picture(tmp_path / "picture.png")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
def test_of_pictures_and_animations_the_first_is_shown(suffix: str, tmp_path: Path) -> None:
    shown = [Image.new("RGB", (64, 48), (200 - n, 0, 0)) for n in range(100)]
    more = {"save_all": True, "append_images": shown[1:]} if suffix in ("webp", "gif") else {}
    shown[0].save(tmp_path / f"v.{suffix}", **more)
    seen = _open_picture(tmp_path / f"v.{suffix}")
    assert seen.shape == (48, 64, 3) and abs(int(seen[20, 20, 0]) - 200) < 6


def test_years_of_silence_are_refused_before_they_are_held(tmp_path: Path) -> None:
    path = tmp_path / "v.mka"
    with av.open(str(path), "w", format="matroska") as out:
        sound = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for hour in range(20):
            block = av.AudioFrame.from_ndarray(np.ones((1, 800), np.int16), format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = 16_000, hour * 3500 * 16_000, Fraction(1, 16_000)
            out.mux(sound.encode(block))
    with pytest.raises(EchoForgeError, match="more than the 60 s of sound that fit"):
        read_sound(path, 60.0)


@pytest.mark.timeout(60, func_only=True)
@pytest.mark.parametrize("option", ["audio", "image", "video"])
def test_generate_opens_no_pipe(option: str, tmp_path: Path) -> None:
    given = {name: tmp_path / name for name in ("audio", "image", "video")}
    for name, path in given.items():
        os.mkfifo(path) if name == option else path.touch()
    with pytest.raises(EchoForgeError, match=f"--{option} .* is not a file"):
        generate("run", schema.load("tiny"), out=tmp_path / "out.mp4", **given)
