"""Time stamps decide: pictures and sound land on the 25 fps clock wherever the container puts them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from configs.schema import load
from curation import schema
from curation.analysis import registry
from curation.media import video_file
from curation.media.audio import SoundReader
from curation.media.clip_reader import read_clip, read_still
from curation.media.clip_writer import write_video
from curation.media.clock import FramePass, open_video
from curation.media.container import MediaError
from curation.media.frames import Frame
from curation.media.video_file import VideoFile
from curation.operators.base import Picture
from curation.operators.quality import DetailOperator
from curation.puppets import sample
from tests.curation.rows import analysed_rows

VIDEO = load("tiny").curation.video


def film(path: Path, times_ms: list[int], *, level: list[int] | None = None, size: tuple[int, int] = (64, 48)) -> Path:
    """Grey frames at the given times; their brightness is ``level`` (default: their number, times 8)."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=1000, options={"crf": "1", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, at in enumerate(times_ms):
            value = (level or [8 * k for k in range(len(times_ms))])[number]
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), value, np.uint8), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def shown(path: Path) -> list[int]:
    """Brightness of every tick."""
    with open_video(str(path), VIDEO) as video:
        return [round(float(t.frame.picture(64, 48, True).mean())) for t in FramePass(video, VIDEO).run()]


def test_every_tick_shows_the_nearest_frame_of_a_variable_rate(tmp_path: Path) -> None:
    times = [0, 40, 130, 150, 155, 400, 440]
    ticks = shown(film(tmp_path / "v.mkv", times))
    for index, value in enumerate(ticks[:-1]):
        latest = max(k for k, at in enumerate(times) if at / 1000 < (index + 0.5) / 25)
        assert abs(value - 8 * latest) <= 2, f"tick {index}"
    assert len(ticks) in (11, 12)


@pytest.mark.parametrize("rate", [10, 24, 30, 60])
def test_any_rate_becomes_25(tmp_path: Path, rate: int) -> None:
    times = [round(1000 * k / rate) for k in range(2 * rate)]
    ticks = shown(film(tmp_path / "v.mkv", times, level=[99] * len(times)))
    assert abs(len(ticks) - 50) <= 25 / rate + 0.5, "the container does not say how long the last frame lasts"


def test_a_film_that_starts_late_starts_at_its_first_frame(tmp_path: Path) -> None:
    early = shown(film(tmp_path / "a.mkv", [40 * k for k in range(20)]))
    late = shown(film(tmp_path / "b.mkv", [1500 + 40 * k for k in range(20)]))
    assert early == late


def test_a_jump_of_the_time_stamps_is_named(tmp_path: Path) -> None:
    path = film(tmp_path / "v.mkv", [0, 40, 80, 3_600_000])
    with pytest.raises(MediaError, match="time stamps jump"):
        shown(path)


def voice(path: Path, parts: list[tuple[float, float]], rate: int = 16_000) -> Path:
    """A film of one second, and a tone (start, seconds) for every part."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = out.add_stream("pcm_s16le", rate=rate, layout="mono")
        for number in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), format="rgb24")
            frame.pts = number
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        for start, seconds in parts:
            wave = (np.sin(np.arange(int(seconds * rate)) / 5) * 16_000).astype(np.int16)
            for first in range(0, len(wave), 800):
                block = av.AudioFrame.from_ndarray(wave[None, first : first + 800], format="s16", layout="mono")
                block.sample_rate, block.pts = rate, int(start * rate) + first
                block.time_base = Fraction(1, rate)
                out.mux(sound.encode(block))
        out.mux(sound.encode(None))
    return path


def loud(path: Path, frames: int) -> np.ndarray:
    """Which frames of the clock have sound."""
    with VideoFile(str(path)) as video, SoundReader(str(path), video.info.origin_s) as sound:
        return np.abs(sound.read(0, frames).pcm).reshape(frames, 640).max(1) > 0.1


def test_sound_that_starts_late_or_pauses_stays_in_its_place(tmp_path: Path) -> None:
    heard = loud(voice(tmp_path / "v.mkv", [(0.4, 0.4), (2.0, 0.4)]), 75)
    expected = np.zeros(75, bool)
    expected[10:20] = expected[50:60] = True
    assert (heard != expected).sum() <= 2


def test_an_hour_without_sound_is_not_held_in_memory(tmp_path: Path) -> None:
    path = voice(tmp_path / "v.mkv", [(0.0, 0.4), (3000.0, 0.4)])
    with VideoFile(str(path)) as video, SoundReader(str(path), video.info.origin_s) as sound:
        for start in range(0, 75_000, 250):
            part = sound.read(start, start + 250).pcm
            sound.forget(start)
            held = sum(block.nbytes for block in sound._blocks)
            assert held < 4e6
        assert not np.abs(part).max() > 0.1
        assert np.abs(sound.read(75_000, 75_010).pcm).max() > 0.1


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("rot_meta90_face5.mp4", 1),
        ("rot_meta180_face5.mp4", 2),
        ("geom_anamorphic_sar_face5.mp4", 0),
        ("tenbit_hevc_main10_face5.mp4", 0),
        ("av1_face5.mp4", 0),
    ],
)
def test_pictures_are_as_a_player_shows_them(shared_media: Path, name: str, turns: int) -> None:
    """Derived clips against the original they were made of: turned, stretched by the sample aspect, other codecs."""
    with VideoFile(str(shared_media / "clips" / "th_retalking_face5.mp4")) as video:
        original = next(video.frames()).picture(131, 131).astype(int)
    with VideoFile(str(shared_media / "faults" / name)) as video:
        assert 0.95 < video.info.width / video.info.height < 1.05
        seen = next(video.frames()).picture(131, 131).astype(int)
    assert np.abs(seen - np.rot90(original, turns)).mean() < 3


def test_fields_of_two_moments_become_one_picture(tmp_path: Path) -> None:
    def moment(time: float) -> np.ndarray:
        image = np.full((240, 320, 3), 60, np.uint8)
        image[:, 20 + int(8 * time) : 60 + int(8 * time)] = 220
        return image

    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"x264-params": "tff=1:interlaced=1"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(20):
            woven = moment(number)
            woven[1::2] = moment(number + 0.5)[1::2]
            frame = av.VideoFrame.from_ndarray(woven, format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with VideoFile(str(path)) as video:
        assert video.info.interlaced
        pictures = [f.picture(320, 240, True).astype(int) for f in video.frames()]
    assert len(pictures) == 20
    combs = [np.abs(np.diff(p, axis=0)).max(axis=0).max() for p in pictures[2:-2]]
    assert max(combs) < 30, "no row differs from its neighbours"


def test_what_an_edit_list_cuts_off_is_not_seen(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mp4", [40 * k for k in range(30)])
    path = tmp_path / "trimmed.mp4"
    with av.open(str(whole)) as given, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                shift, packet.duration = round(0.4 / packet.time_base), round(0.04 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                out.mux(packet)
    seen = shown(path)
    assert len(seen) == 20 and seen[0] == pytest.approx(80, abs=2) and seen[-1] == pytest.approx(232, abs=2)


def test_a_clip_is_read_as_the_pass_saw_it_wherever_it_starts(tmp_path: Path) -> None:
    levels = [(37 * k) % 200 + 20 for k in range(700)]
    path = film(tmp_path / "v.mp4", [33 * k for k in range(700)], level=levels)
    seen = shown(path)
    for start in (0, 7, 249, 251, 400, 540):  # before and after the place from which a seek pays
        frames = read_clip(str(path), start, start + 33, width=64, height=48).frames
        assert [round(float(f.mean())) for f in frames] == pytest.approx(seen[start : start + 33], abs=2)
    with pytest.raises(MediaError, match="ends at frame"):
        read_clip(str(path), 560, 593, width=64, height=48)
    still = read_still(str(path), 300, 333, width=64, height=48)
    assert min(abs(still.mean() - level) for level in seen[300:333]) < 2


def test_only_the_wanted_spans_are_looked_at_and_clips_begin_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, held, look = load("tiny").curation, [], DetailOperator.frame

    def frame(self: DetailOperator, picture: Picture) -> None:
        look(self, picture)
        held.append((picture.index, len(self._kept)))

    monkeypatch.setattr(DetailOperator, "frame", frame)
    path = film(tmp_path / "v.mp4", [40 * k for k in range(1500)], level=[99] * 1500)
    loaded = registry.load(cfg)
    row, clips = analysed_rows(str(path), cfg, backends=loaded, spans=[(40.0, 42.0), (10.2, 20.4)])
    assert [(c["start_frame"], c["end_frame"]) for c in clips] == [(255, 368), (368, 481), (1000, 1049)]
    assert all(255 <= at < 510 or 1000 <= at < 1050 for at, _ in held)
    assert row["duration_s"] == pytest.approx(60, abs=0.1) and row["error"] is None
    held.clear()
    analysed_rows(str(path), cfg, backends=loaded)
    assert len(held) == 60 and max(count for _, count in held) <= 25, "seconds of pictures"


def test_a_late_span_is_sought_and_its_rows_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load("tiny", ["sync.required=false"]).curation
    people = [sample(3, n, cfg.puppets, frames=250) for n in range(3)]
    frames = np.concatenate([person.frames for person in people] * 2)
    pcm = np.concatenate([person.pcm[: 250 * 640] for person in people] * 2)
    path, loaded = write_video(tmp_path / "v.mp4", frames, pcm), registry.load(cfg)
    decoded: list[int] = []
    counted = FramePass._counted

    def count(self: FramePass) -> Iterator[Frame]:
        for frame in counted(self):
            decoded.append(round(frame.time * 25))
            yield frame

    monkeypatch.setattr(FramePass, "_counted", count)
    found = []
    for seek_from in (10.0, 1e9):
        decoded.clear()
        monkeypatch.setattr(video_file, "_SEEK_FROM_S", seek_from)
        row, clips = analysed_rows(str(path), cfg, backends=loaded, spans=[(44.0, 56.0)])
        found.append(schema.table(clips, schema.CLIPS).to_pylist())
        assert row["error"] is None and row["duration_s"] == 60 and min(decoded) == (0 if seek_from > 1e6 else 750)
    assert found[0] == found[1] and len(found[0]) >= 2  # to the last bit: the operators saw the same pictures
    assert all(clip["tracks"] and clip["speech_frac"] is not None for clip in found[0])
