"""A long film is read in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import pytest

from configs.schema import load
from curation.puppets import sample

MEASURE = """
import sys
from configs.schema import load
from curation.analysis import registry, video
from curation.analysis.clip_finder import ClipFinder
from curation.sources.source import Source
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
cfg = load("tiny", ["sync.required=false"]).curation
marks, whole = [], ClipFinder.tick
def tick(self, tick):
    if tick.index % 3000 == 2999:
        marks.append(resident())
    return whole(self, tick)
ClipFinder.tick = tick
row, clips = video.analyse_video(Source(sys.argv[1]), cfg, backends=registry.load(cfg))
print(row.error, row.duration_s, len(clips), *marks)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_length_of_a_film(tmp_path: Path) -> None:
    puppet, path, minutes = sample(3, 1, load("tiny").curation.puppets, frames=250), tmp_path / "long.mp4", 20
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 96, 96, "yuv420p"
        sound = out.add_stream("aac", rate=16_000, layout="mono")
        pictures = [av.VideoFrame.from_ndarray(p, format="rgb24") for p in puppet.frames]
        for number in range(minutes * 60 * 25):
            frame, block = pictures[number % 250], puppet.pcm[number % 250 * 640 :][:640]
            frame.pts = number
            out.mux(video.encode(frame))
            heard = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
            heard.sample_rate, heard.pts = 16_000, number * 640
            out.mux(sound.encode(heard))
        out.mux(video.encode(None))
        out.mux(sound.encode(None))
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    error, seconds, clips, *marks = done.stdout.split()
    assert error == "None" and float(seconds) == pytest.approx(60 * minutes, abs=1) and int(clips) > 100
    early, late = float(marks[1]), float(marks[-1])  # at 4 minutes, and near the end
    assert late - early < 40, f"MB resident every two minutes: {marks}"
