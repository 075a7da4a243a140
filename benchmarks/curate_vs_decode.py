"""What curation costs beside bare decoding, and beside the way that writes files: `python -m benchmarks.curate_vs_decode`.

Decode-only is PyAV without a colour conversion, one thread. Curation is `analyse_video` with every CPU operator, SyncNet
aside, on the same files in the same run; nothing ends early. Faces and text look at full frames at their configured
rates (2 a second at least: the command refuses less). CPU seconds of this process, the best of some rounds, in turns.

With ``--ffmpeg`` the first steps are also done as the nearest peers do them, with commands of our own: ffmpeg re-encodes
to 25 fps and 16 kHz, scenedetect looks for shots in that file, ffmpeg copies the shots into files and crops and scales
those. CPU seconds of the child processes, once. ffmpeg is no dependency of this project: name one (the wheel
imageio-ffmpeg carries one).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import av

from configs.runtime import scratch
from configs.schema import load
from curation.analysis import registry
from curation.analysis.video import analyse_video
from curation.sources.source import Source
from pipeline.catalog.timing import Stopwatch, timed

BARS = {"1080p": 2.5, "512": 8.0}
LEAST_RATE = 2.0


def decode_only(path: Path) -> tuple[float, int]:
    """CPU seconds, and frames."""
    begin, frames = time.process_time(), 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        for _ in container.decode(stream):
            frames += 1
    return time.process_time() - begin, frames


def group_of(path: Path) -> str | None:
    """`1080p`, `512` or None for other sizes (the bars are given for these two)."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            return None
        width, height = container.streams.video[0].width, container.streams.video[0].height
    if min(width, height) == 1080:
        return "1080p"
    return "512" if 480 <= min(width, height) <= 544 and width == height else None


def files_way(path: Path, folder: Path, ffmpeg: str) -> float:
    """CPU seconds of re-encoding, finding shots, cutting them into files and cropping those."""
    begin, before = time.process_time(), _children()
    whole = folder / "25fps.mp4"
    quiet = [ffmpeg, "-nostdin", "-loglevel", "error", "-y"]
    subprocess.run([*quiet, "-i", str(path), "-r", "25", "-ar", "16000", "-crf", "18", str(whole)], check=True)
    from scenedetect import AdaptiveDetector, detect

    shots = [(a.get_seconds(), b.get_seconds()) for a, b in detect(str(whole), AdaptiveDetector(2.0))] or [(0.0, 1e9)]
    for number, (start, end) in enumerate(shots):
        cut = folder / f"shot-{number}.mp4"
        subprocess.run(
            [*quiet, "-ss", f"{start}", "-to", f"{end}", "-i", str(whole), "-c", "copy", str(cut)], check=True
        )
        crop = "crop=trunc(min(iw\\,ih)/2)*2:trunc(min(iw\\,ih)/2)*2,scale=512:512"
        out = folder / f"crop-{number}.mp4"
        subprocess.run([*quiet, "-i", str(cut), "-vf", crop, "-crf", "18", str(out)], check=True)
    return time.process_time() - begin + _children() - before


def _children() -> float:
    """CPU seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class Figures:
    """What curation costs beside decoding, CPU seconds of all files together."""

    bar: float
    files: int
    video_seconds: float
    decode_cpu_s: float
    curate_cpu_s: float
    ratio: float
    curate_times_real_time: float
    cpu_s_per_operator: dict[str, float]
    files_way_cpu_s: float | None = None
    files_way_over_curate: float | None = None


def measure(paths: list[Path], rounds: int, ffmpeg: str | None, bar: float) -> Figures:
    """The figures of one group of files."""
    cfg = load("tiny", ["sync.backend=none", "sync.required=false", "dedup.enabled=true"]).curation
    for name in ("faces", "text"):
        if (rate := getattr(cfg, name).rate) < LEAST_RATE:
            raise SystemExit(f"{name}.rate is {rate}; the bars are for {LEAST_RATE} a second at least.")
    watch = Stopwatch()
    loaded = timed(registry.load(cfg), watch)
    plain, curated, operators = 0.0, 0.0, defaultdict[str, float](float)
    seconds, written = 0.0, 0.0
    for path in paths:
        analyse_video(Source(str(path)), cfg, backends=loaded)  # warm: pages of the file, first calls of the networks
        best: tuple[float, dict[str, float], float] | None = None
        bare = min(decode_only(path)[0] for _ in range(rounds))
        for _ in range(rounds):
            watch.reset()
            begin = time.process_time()
            video, _ = analyse_video(Source(str(path)), cfg, backends=loaded)
            took = time.process_time() - begin
            if best is None or took < best[0]:
                best = took, watch.read(), video.duration_s or 0.0
        assert best is not None
        plain, curated, seconds = plain + bare, curated + best[0], seconds + best[2]
        for name, value in best[1].items():
            operators[name] += value
        if ffmpeg:
            with scratch.folder() as folder:
                written += files_way(path, folder, ffmpeg)
    return Figures(
        bar=bar,
        files=len(paths),
        video_seconds=round(seconds, 1),
        decode_cpu_s=round(plain, 2),
        curate_cpu_s=round(curated, 2),
        ratio=round(curated / plain, 2),
        curate_times_real_time=round(seconds / curated, 1),
        cpu_s_per_operator={
            name: round(value, 2) for name, value in sorted(operators.items(), key=lambda item: -item[1])
        },
        files_way_cpu_s=round(written, 2) if ffmpeg else None,
        files_way_over_curate=round(written / curated, 2) if ffmpeg else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, help="a folder of videos, some of them 1080p or 512 x 512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ffmpeg", help="a program for the files' way; without it that is not measured")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(args.videos.iterdir()):
        if path.suffix in (".mp4", ".mkv", ".avi", ".mov", ".mpg", ".webm") and (group := group_of(path)):
            groups[group].append(path)
    result = {name: asdict(measure(paths, args.rounds, args.ffmpeg, BARS[name])) for name, paths in groups.items()}
    if not result:
        sys.exit(f"{args.videos} holds no video of 1080p or 512 x 512.")
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
