"""HDTF's annotation files beside downloaded videos."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from configs.errors import EchoForgeError
from curation import spreadsheet
from curation.config import CurationConfig
from curation.media.container import utf8
from curation.sidecars import find, read, root_of
from curation.sources.source import Source, span_of


def is_hdtf(folder: Path) -> bool:
    """Are HDTF's annotation files in this folder?"""
    return any(folder.glob("*_annotion_time.txt")) and any(folder.glob("*_video_url.txt"))


def annotated(folder: Path, videos: Iterable[Path], cfg: CurationConfig) -> Iterator[Source]:
    """Sources of HDTF's annotation files (RD, WDA, WRA: ``*_annotion_time.txt``, ``*_crop_wh.txt``) beside ``videos``.

    ``NAME.mp4 0:05-0:35 1:10-1:40`` gives a video's time spans; ``NAME_0.mp4 x w y h`` the crop of its first span, in
    the resolution that ``*_resolution.txt`` names (``NAME.mp4 720``; 0 here: that of the file). Only faces inside the
    crop are looked at; the picture is not cut.

    Raises:
        EchoForgeError: a time or a crop that is none.
    """

    def said(pattern: str) -> Iterator[tuple[str, list[str]]]:
        root = root_of("", str(folder), cfg.sources.follow_links)
        for file in sorted(folder.glob(pattern)):
            if (real := find(file, root)) is not None:
                for line in spreadsheet.lines(io.BytesIO(read(real)), str(file)):
                    yield str(file), line.split()

    heights = {
        Path(parts[0]).stem: int(parts[1])
        for _, parts in said("*_resolution.txt")
        if len(parts) == 2 and parts[1].isdecimal()
    }
    regions: dict[str, tuple[int, int, int, int, int]] = {}
    for where, parts in said("*_crop_wh.txt"):
        if len(parts) == 5 and parts[0].endswith("_0.mp4"):
            try:
                x, w, y, h = (int(float(v)) for v in parts[1:])
            except (ValueError, OverflowError) as error:
                raise EchoForgeError(f"'{' '.join(parts)}' in {where} is no crop; mend the annotation.") from error
            stem = parts[0][: -len("_0.mp4")]
            regions[stem] = (x, y, w, h, heights.get(stem, 0))
    there: dict[str, Path] = {}
    for path in sorted(videos):
        there.setdefault(path.name, path)
    for where, parts in said("*_annotion_time.txt"):
        if parts:
            name, *times = parts
            spans = tuple(_clock_span(t, where) for t in times)
            path = there.get(name, folder / Path(name).name)
            region = regions.get(Path(name).stem)
            licence = "CC BY 4.0 (annotations)"
            yield Source(utf8(str(path)), "HDTF", licence, spans, region=region, root=utf8(str(folder)))


def _clock_span(text: str, where: str) -> tuple[float, float]:
    start, _, end = text.partition("-")
    return span_of(_seconds(start, where), _seconds(end, where), where)


def _seconds(text: str, where: str) -> float:
    try:
        total = 0.0
        for part in text.split(":"):
            total = total * 60 + float(part)
        return total
    except ValueError as error:
        raise EchoForgeError(f"'{text}' in {where} is not a time like 1:05; mend the annotation.") from error
