"""Lips against sound, end to end, beside the package whose definitions it shares: `python -m benchmarks.sync_vs_package`.

Both get the same files and the same seeded random weights of SyncNet v2 (times do not depend on the values). The
package runs as published: S3FD on every frame at a quarter of the size, JPEG files, crops as videos, SyncNet. Its S3FD
really runs, but since random weights find nothing, the boxes it hands on are those of this project's detector, found
beforehand and not counted: the package's times are, if anything, too short. Ours is the analysis of the file with the
sync operator and its own sparse detection and tracking; ``--all`` adds the other operators.

Needs a program `ffmpeg` for the package (the wheel imageio-ffmpeg carries one: ``--ffmpeg``). CPU seconds of the process
and its children; both may use as many threads as they like.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch

from configs.runtime import scratch
from configs.schema import load
from curation.analysis import registry
from curation.analysis.video import analyse_video
from curation.faces import FaceDetector
from curation.schema import FPS
from curation.sources.source import Source
from curation.sync.syncnet_v2 import network

BAR = 10.0

T = TypeVar("T")


def spent(work: Callable[[], T]) -> tuple[float, float, T]:
    """CPU seconds (children included), seconds on the clock, and the result."""

    def cpu() -> float:
        used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
        return sum(u.ru_utime + u.ru_stime for u in used)

    before, begin = cpu(), time.perf_counter()
    result = work()
    return cpu() - before, time.perf_counter() - begin, result


def random_weights(folder: Path) -> tuple[Path, Path]:
    """Files of SyncNet v2 and of S3FD, as the package expects them."""
    from syncnet_python.detectors.s3fd.nets import S3FDNet

    torch.manual_seed(0)
    lips, faces = folder / "syncnet_v2.model", folder / "sfd_face.pth"
    torch.save(network().state_dict(), lips)
    torch.save(S3FDNet(device="cpu").state_dict(), faces)
    return lips, faces


class Finds:
    """The package's S3FD, run on every picture, with the answers of another detector."""

    def __init__(self, net: Any, detector: FaceDetector) -> None:
        self.net, self.detector = net, detector
        self.boxes: dict[bytes, np.ndarray] = {}
        self.learning = True

    def detect_faces(self, image: np.ndarray, conf_th: float, scales: list[float]) -> np.ndarray:
        """[n, 5] boxes with their scores, as the package's."""
        key = image[::16, ::16].tobytes()
        if self.learning:
            scale = 256 / max(image.shape[:2])
            import cv2

            small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            rows = [[*(face.box / scale), 0.99] for face in self.detector.detect(small)]
            self.boxes[key] = np.array(rows).reshape(-1, 5)
        else:
            self.net.detect_faces(image, conf_th=conf_th, scales=scales)
        return self.boxes[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "videos", type=Path, nargs="+", help="talking heads, some seconds each (1080p: minutes of work)"
    )
    parser.add_argument("--ffmpeg", required=True, help="the program for the package")
    parser.add_argument("--all", action="store_true", help="ours runs its other operators too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with scratch.folder() as name:
        result = measure(args.videos, Path(args.ffmpeg).resolve(), name, everything=args.all)
    text = json.dumps(asdict(result), indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


@dataclass(frozen=True)
class Both:
    """A number of ours and of the package."""

    ours: float
    package: float

    @property
    def ratio(self) -> float:
        """How often ours fits into the package's."""
        return round(self.package / self.ours, 1)


@dataclass(frozen=True)
class FileFigures:
    """The two on one file."""

    file: str
    seconds: float
    tracks_scored: Both
    seconds_scored: float
    cpu_s: Both
    wall_s: Both
    ratio_cpu: float
    ratio_wall: float


@dataclass(frozen=True)
class Figures:
    """The two on all files."""

    bar: float
    other_operators_too: bool
    ratio_cpu: float
    ratio_wall: float
    files: list[FileFigures]


def measure(videos: list[Path], ffmpeg: Path, folder: Path, *, everything: bool) -> Figures:
    """The figures, file by file and together."""
    program = folder / "ffmpeg"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(str(ffmpeg))} -nostdin -loglevel error "$@"\n')
    program.chmod(0o755)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    logging.disable(logging.WARNING)
    from syncnet_python.syncnet_pipeline import SyncNetPipeline

    lips, faces = random_weights(folder)
    named = ["sync.backend=syncnet_v2", f"sync.weights={lips}", "sync.required=false"]
    cfg = load("tiny", named).curation
    ours = registry.load(cfg)
    if not everything:
        ours = replace(ours, frame_operators={}, sound_operators={})
    theirs = SyncNetPipeline({"s3fd_weights": str(faces), "syncnet_weights": str(lips)}, device="cpu")
    finds = Finds(theirs.s3fd, ours.detector)
    theirs.s3fd = cast(Any, finds)
    files: list[FileFigures] = []
    for video in videos:
        finds.learning, finds.boxes = True, {}
        syncnet, theirs.syncnet = theirs.syncnet, cast(Any, _Silent())
        theirs.inference(str(video))  # the boxes; decoding and JPEG files of the counted run are its own
        theirs.syncnet, finds.learning = syncnet, False
        cpu_b, wall_b, found = spent(lambda video=video: theirs.inference(str(video)))  # type: ignore[misc]
        cpu_a, wall_a, (found_video, clips) = spent(
            lambda video=video: analyse_video(Source(str(video)), cfg, backends=ours)  # type: ignore[misc]
        )
        scored = [clip for clip in clips if clip.number("sync_d") is not None]
        cpu, wall = Both(round(cpu_a, 2), round(cpu_b, 2)), Both(round(wall_a, 2), round(wall_b, 2))
        files.append(
            FileFigures(
                file=video.name,
                seconds=round(found_video.duration_s or 0, 2),
                tracks_scored=Both(len(scored), len(found[0])),
                seconds_scored=round(sum(map(len, scored)) / FPS, 2),
                cpu_s=cpu,
                wall_s=wall,
                ratio_cpu=round(cpu_b / cpu_a, 1),
                ratio_wall=round(wall_b / wall_a, 1),
            )
        )
        print(json.dumps(asdict(files[-1])), flush=True)
    cpu = Both(sum(file.cpu_s.ours for file in files), sum(file.cpu_s.package for file in files))
    wall = Both(sum(file.wall_s.ours for file in files), sum(file.wall_s.package for file in files))
    return Figures(BAR, everything, cpu.ratio, wall.ratio, files)


class _Silent:
    """Stands for SyncNet while only boxes are wanted."""

    def evaluate(self, opt: Any) -> tuple[int, float, float]:
        """Nothing."""
        return 0, 0.0, 0.0


if __name__ == "__main__":
    main()
