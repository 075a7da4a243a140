"""A written clip decodes to as many frames, with its sound where it was."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from configs.errors import EchoForgeError
from configs.schema import load
from curation.media.clip_writer import write_video
from curation.puppets import sample


def test_frames_and_sound_keep_their_places(tmp_path: Path) -> None:
    frames = np.full((38, 64, 66, 3), 40, np.uint8)
    frames[20] = 230
    pcm = np.zeros(38 * 640, np.float32)
    pcm[20 * 640 : 20 * 640 + 160] = np.sin(np.arange(160) * 0.8) * 0.8
    path = write_video(tmp_path / "flash and beep.mp4", frames, pcm)
    with av.open(str(path)) as container:
        pictures = [(f.time, f.to_ndarray(format="rgb24").mean()) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        heard = [(f.time, f.to_ndarray()[0]) for f in container.decode(audio=0)]
    assert len(pictures) == 38
    assert max(pictures, key=lambda p: p[1])[0] == pytest.approx(0.8)
    sound = np.concatenate([s for _, s in heard])
    peak = heard[0][0] + int(np.argmax(np.convolve(np.abs(sound), np.ones(160), "valid"))) / 16_000
    assert peak == pytest.approx(0.8, abs=0.002)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # nothing half written is left


def test_bad_frames_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(EchoForgeError, match="uint8"):
        write_video(tmp_path / "a.mp4", np.zeros((4, 8, 8, 3), np.float32), None)
    assert not list(tmp_path.iterdir())


def test_the_same_clip_makes_the_same_bytes_on_the_same_machine(tmp_path: Path) -> None:
    puppet = sample(0, 0, load("tiny").curation.puppets, frames=33)
    files = {write_video(tmp_path / "v.mp4", puppet.frames, puppet.pcm).read_bytes() for _ in range(40)}
    assert len(files) == 1
