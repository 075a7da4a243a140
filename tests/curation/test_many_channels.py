"""Sound of any number of channels. What decodes it runs in a process of its own: a crash there fails a test here."""

from __future__ import annotations

import multiprocessing
import wave
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import pytest

from configs.schema import load
from curation import puppets
from curation.analysis import registry
from curation.media.audio import SoundReader, _samples
from tests.curation.rows import analysed_rows

T = TypeVar("T")
CFG = load("tiny", ["sync.required=false"]).curation
RATE, FRAMES = 16_000, 25


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """What ``function`` returns in another process. Raises BrokenProcessPool: it died."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def heard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first second of a file: as it is, float32 [n, channels], and mono at 16 kHz."""
    with SoundReader(str(path), 0.0) as sound:
        part = sound.read(0, FRAMES)
    return part.native, part.pcm


def all_heard(paths: list[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [heard(path) for path in paths]


def noise(channels: int) -> np.ndarray:
    """A second, int16 [n, channels]; no two channels alike."""
    return np.random.default_rng(channels).integers(-9000, 9000, (RATE, channels)).astype("<i2")


def blocks(pcm: np.ndarray, layout: str) -> list[av.AudioFrame]:
    out = []
    for first in range(0, len(pcm), 1000):
        part = pcm[first : first + 1000]
        frame = av.AudioFrame.from_ndarray(part.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate, frame.pts = RATE, first
        out.append(frame)
    return out


def test_every_channel_is_what_was_written(tmp_path: Path) -> None:
    written = []
    for channels in (1, 2, 6, 7, 8, 9, 12, 64):
        path, pcm = tmp_path / f"{channels}.wav", noise(channels)
        with wave.open(str(path), "wb") as file:
            file.setparams((channels, 2, RATE, 0, "NONE", ""))
            file.writeframes(pcm.tobytes())
        written.append((path, pcm))
    for name, layout in (("stereo", "stereo"), ("six", "5.1"), ("eight", "7.1")):
        path, pcm = tmp_path / f"{name}.flac", noise(av.AudioLayout(layout).nb_channels)
        with av.open(str(path), "w") as out:
            stream = out.add_stream("flac", rate=RATE, layout=layout)
            for frame in [*blocks(pcm, layout), None]:
                out.mux(stream.encode(frame))
        written.append((path, pcm))
    for (path, pcm), (native, mono) in zip(written, apart(all_heard, [path for path, _ in written]), strict=True):
        assert np.array_equal(native, pcm.astype(np.float32) / 32768), path.name
        assert np.abs(mono - native.mean(1)).max() < 1e-6, path.name


@pytest.mark.parametrize("codec", ["aac", "libopus"])
def test_compressed_surround_keeps_its_voice(codec: str, tmp_path: Path) -> None:
    """These decode to planes of floats, eight of them; the mix is compared, since codecs keep no sample."""
    rate, path = 48_000, tmp_path / "v.mkv"
    tone = np.sin(np.arange(rate) * 2 * np.pi * 100 / rate) * 8000  # 100 Hz: below what the channel of the bass cuts
    pcm = (tone[:, None] * np.linspace(0.2, 1, 8)).astype("<i2")
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout="7.1", options={"b": "512000"})
        for first in range(0, rate, 960):
            part = pcm[first : first + 960].reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(part, format="s16", layout="7.1")
            frame.sample_rate, frame.pts = rate, first
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    native, mono = apart(heard, path)
    assert native.shape[1] == 8
    inner = slice(RATE // 4, 3 * RATE // 4)
    truth = (pcm.mean(1) / 32768)[::3]
    assert np.abs(mono[inner] - truth[inner]).max() < 0.1 * np.abs(truth).max()


@pytest.mark.parametrize("kind", ["flt", "fltp"])
def test_a_stream_that_becomes_stereo_midway_keeps_its_channels(kind: str) -> None:
    pcm = np.arange(8, dtype=np.float32).reshape(4, 2) / 8
    frame = av.AudioFrame.from_ndarray(
        pcm.T.copy() if kind == "fltp" else pcm.reshape(1, 8), format=kind, layout="stereo"
    )
    frame.sample_rate = RATE
    assert np.array_equal(_samples(frame, RATE, 6), np.repeat(pcm.mean(1, keepdims=True), 6, axis=1))


def curated(paths: list[Path]) -> list[tuple[str, list[str]]]:
    loaded, results = registry.load(CFG), []
    for path in paths:
        row, clips = analysed_rows(str(path), CFG, backends=loaded)
        spans = [f"{clip['start_frame']}-{clip['end_frame']}" for clip in clips]
        results.append((str(row.get("verdict") or row.get("message")), spans))
    return results


def test_a_film_with_surround_sound_is_curated_like_the_same_film_in_mono(tmp_path: Path) -> None:
    puppets.make(tmp_path, 1, 3, CFG.puppets, False)
    mono = next(tmp_path.glob("*.mp4"))
    voice = heard(mono)[1]
    pcm = np.repeat((voice[:, None] * 32767).astype("<i2"), 8, axis=1)
    surround = tmp_path / "surround.mp4"
    with av.open(str(mono)) as film, av.open(str(surround), "w") as out:
        pictures = out.add_stream_from_template(film.streams.video[0])
        stream = out.add_stream("aac", rate=RATE, layout="7.1")
        for packet in film.demux(video=0):
            if packet.dts is not None:
                packet.stream = pictures
                out.mux(packet)
        for frame in [*blocks(pcm, "7.1"), None]:
            out.mux(stream.encode(frame))
    expected, seen = apart(curated, [mono, surround])
    assert seen == expected and seen[1], "it has clips"
