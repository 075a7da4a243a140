"""What lies in folders of videos and is none, or is one that cannot be used: a row and a sentence, at once."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from configs.errors import EchoForgeError
from configs.schema import load
from curation import backends, catalog, puppets, sources
from curation.analyse import analyse_video
from curation.backends import Backends

CFG = load("tiny", ["sync.required=false"]).curation


@pytest.fixture(scope="module")
def loaded() -> Backends:
    return backends.load(CFG)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    puppets.make(folder, 1, 3, CFG.puppets, False)
    return next(folder.glob("*.mp4"))


def picture(path: Path, width: int, height: int) -> None:
    with av.open(str(path), "w", format="matroska") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
        out.mux(stream.encode(frame.reformat(format="bgr0")))
        out.mux(stream.encode(None))


CASES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a pipe": (lambda file, good: os.mkfifo(file), "not a file that holds bytes"),
    "a link to nowhere": (lambda file, good: file.symlink_to("/nowhere"), "cannot be read"),
    "two pixels": (lambda file, good: picture(file, 2, 2), "2x2 pixels"),
    "a line": (lambda file, good: picture(file, 1920, 32), "1920x32 pixels"),
    "a caption in another code": (
        lambda file, good: (shutil.copy(good, file), file.with_suffix(".txt").write_bytes("ä".encode("utf-16"))),
        "not UTF-8",
    ),
    "a caption of another shape": (
        lambda file, good: (shutil.copy(good, file), file.with_suffix(".json").write_text('{"captions": [{}]}')),
        r"v\.json cannot be read",
    ),
    "a broken table of captions": (
        lambda file, good: (shutil.copy(good, file), (file.parent / "captions.csv").write_text("file,caption\na,b,c")),
        r"captions\.csv cannot be read",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.timeout(60, func_only=True)  # a pipe that is opened hangs for ever; loading the networks does not count
def test_what_cannot_be_used_is_a_row_with_a_sentence(case: str, tmp_path: Path, good: Path, loaded: Backends) -> None:
    make, sentence = CASES[case]
    make(tmp_path / "v.mp4", good)
    (source,) = sources.expand([str(tmp_path)], CFG)
    row, clips = analyse_video(source.uri, CFG, backends=loaded)
    assert clips == [] and row["verdict"] == "error"
    assert re.search(sentence, row["error"])
    catalog.table([row], catalog.VIDEOS)


def test_a_name_that_is_no_text_is_a_row_too(tmp_path: Path, good: Path, loaded: Backends) -> None:
    shutil.copy(good, os.fsencode(tmp_path) + b"/latin1_\xe9.mp4")
    (source,) = sources.expand([str(tmp_path)], CFG)
    row, _ = analyse_video(source.uri, CFG, backends=loaded)
    assert "not valid UTF-8; rename" in row["error"]
    catalog.table([row], catalog.VIDEOS)


def test_links_to_folders_are_followed_once_and_a_locked_folder_is_named(tmp_path: Path, good: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    shutil.copy(good, tmp_path / "there" / "v.mp4")
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "there")
    (tmp_path / "here" / "back").symlink_to(tmp_path / "here")
    assert len(sources.expand([str(tmp_path / "here")], CFG)) == 1
    if os.geteuid():
        (tmp_path / "there").chmod(0o000)
        try:
            with pytest.raises(EchoForgeError, match="cannot be listed"):
                sources.expand([str(tmp_path / "here")], CFG)
        finally:
            (tmp_path / "there").chmod(0o755)
