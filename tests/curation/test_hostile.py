"""What lies in folders of videos and is none, or is one that cannot be used: a row and a sentence, at once."""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import EchoForgeError
from configs.schema import load
from curation import puppets, schema, sidecars
from curation.analysis import registry
from curation.analysis.registry import Backends
from curation.caption_files import Beside
from curation.media import video_file
from curation.media.audio import SoundReader
from curation.media.clock import open_video
from curation.media.container import MediaError
from curation.media.decord_reader import DecordFile
from curation.media.video_file import VideoFile
from curation.sources import listing
from tests.curation.rows import analysed_rows

CFG = load("tiny", ["sync.required=false"]).curation


@pytest.fixture(scope="module")
def loaded() -> Backends:
    return registry.load(CFG)


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
    (source,) = listing.expand([str(tmp_path)], CFG)
    row, clips = analysed_rows(source.uri, CFG, backends=loaded)
    assert clips == [] and row["verdict"] == "error"
    assert re.search(sentence, row["error"])
    schema.table([row], schema.VIDEOS)


def test_a_name_that_is_no_text_is_a_row_too(tmp_path: Path, good: Path, loaded: Backends) -> None:
    shutil.copy(good, os.fsencode(tmp_path) + b"/latin1_\xe9.mp4")
    (source,) = listing.expand([str(tmp_path)], CFG)
    row, _ = analysed_rows(source.uri, CFG, backends=loaded)
    assert "not valid UTF-8; rename" in row["error"]
    schema.table([row], schema.VIDEOS)


def test_a_sidecar_is_opened_once(
    tmp_path: Path, good: Path, loaded: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(good, tmp_path / "v.mp4")
    (tmp_path / "v.json").write_text('{"captions": ["a"], "speaker": "s", "licence": "l", "source": "c"}')
    opened, read = [], sidecars.read
    monkeypatch.setattr(sidecars, "read", lambda file: opened.append(file.name) or read(file))
    video, clips = analysed_rows(str(tmp_path / "v.mp4"), CFG, backends=loaded)
    assert opened == ["v.json"]
    assert (video["licence"], video["source"]) == ("l", "c")
    assert clips and {(clip["speaker"], clip["captions"][0]["text"]) for clip in clips} == {("s", "a")}


def test_links_to_folders_are_followed_once_and_a_locked_folder_is_named(tmp_path: Path, good: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    shutil.copy(good, tmp_path / "there" / "v.mp4")
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "there")
    (tmp_path / "here" / "back").symlink_to(tmp_path / "here")
    assert len(listing.expand([str(tmp_path / "here")], CFG)) == 1
    if os.geteuid():
        (tmp_path / "there").chmod(0o000)
        try:
            with pytest.raises(EchoForgeError, match="cannot be listed"):
                listing.expand([str(tmp_path / "here")], CFG)
        finally:
            (tmp_path / "there").chmod(0o755)


TOO_DEEP = '{"captions": ' + "[" * 100_000 + "]" * 100_000 + "}"
BESIDE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link out of the folder": (lambda f: (f / "v.txt").symlink_to("/etc/passwd"), "v.txt' is a link out of the"),
    "a link to nowhere": (lambda f: (f / "v.json").symlink_to("gone"), "v.json' cannot be read"),
    "a linked table": (lambda f: (f / "captions.csv").symlink_to("/etc/passwd"), "captions.csv' is a link out"),
    "a pipe": (lambda f: os.mkfifo(f / "v.txt"), "is a pipe or a device"),
    "a device inside": (lambda f: (f / "v.txt").symlink_to("/dev/zero"), "is a link out"),
    "a terabyte": (lambda f: os.truncate(_made(f / "v.txt"), 1 << 40), "at most 16777216 are read"),
    "bytes": (lambda f: (f / "v.txt").write_bytes(b"\0\1" * 99), "is not text"),
    "deep JSON": (lambda f: (f / "v.json").write_text(TOO_DEEP), "nested too deeply"),
    "half a character": (lambda f: (f / "v.json").write_text(r'{"caption": "a\ud800b"}'), "lone surrogate"),
    "a name that is none": (lambda f: (f / "v.json").write_text(r'{"speaker": "\udfff"}'), "lone surrogate"),
    "a megabyte": (lambda f: (f / "v.txt").write_text("word " * 200_000), "at most 16384 are taken"),
    "a thousand captions": (lambda f: (f / "v.txt").write_text("a\n\n" * 1000), "at most 64 are taken"),
    "a table in no code": (
        lambda f: (f / "captions.csv").write_bytes(b"file,caption\nv.mp4,\xff"),
        "captions.csv cannot",
    ),
    "a table that unpacks": (
        lambda f: pq.write_table(
            pa.table({"file": ["v.mp4"] * 10_000, "caption": ["x" * 1000] * 10_000}), f / "captions.parquet"
        ),
        "more than 1 MB",
    ),
}


def _made(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize("case", BESIDE)
@pytest.mark.timeout(60, func_only=True)
def test_what_lies_beside_a_video_is_bounded(
    case: str, tmp_path: Path, good: Path, loaded: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecars, "TABLE_BYTES", 1 << 20)
    make, sentence = BESIDE[case]
    shutil.copy(good, tmp_path / "v.mp4")
    make(tmp_path)
    (source,) = (s for s in listing.expand([str(tmp_path)], CFG) if s.uri.endswith(".mp4"))
    Beside(CFG.captions).tag(source.uri, source.root)  # planning looks, and leaves the sentence to the analysis
    row, clips = analysed_rows(source.uri, CFG, backends=loaded, root=source.root)
    assert clips == [] and row["error_stage"] == "captions"
    assert re.search(re.escape(sentence), row["error"])
    schema.table([row], schema.VIDEOS)


def test_links_are_followed_inside_the_folder_and_outside_on_request(
    tmp_path: Path, good: Path, loaded: Backends
) -> None:
    folder, secret = tmp_path / "videos", tmp_path / "secret.txt"
    (folder / "here").mkdir(parents=True)
    shutil.copy(good, folder / "here" / "v.mp4")
    secret.write_text("outside")
    (folder / "shared.txt").write_text("inside")
    link = folder / "here" / "v.txt"
    follow = load("tiny", ["sync.required=false", "sources.follow_links=true"]).curation
    tags = set()
    for target, cfg, said in (
        ("../shared.txt", CFG, "inside"),
        ("../../secret.txt", CFG, None),
        ("../../secret.txt", follow, "outside"),
    ):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        (source,) = (s for s in listing.expand([str(folder)], cfg) if s.uri.endswith(".mp4"))
        tags.add(Beside(cfg.captions, cfg.sources.follow_links).tag(source.uri, source.root))
        row, clips = analysed_rows(source.uri, cfg, backends=loaded, root=source.root)
        assert [c["text"] for c in clips[0]["captions"]] == [said] if said else "link out" in row["error"]
    assert len(tags) == 3, "what is refused now and followed later is looked at again"


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{file}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{file}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{file}</BaseURL></MPD>',
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("suffix", ["mp4", "m3u8"])
@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_playlist_opens_nothing(kind: str, suffix: str, backend: str, tmp_path: Path, good: Path) -> None:
    if backend == "decord":
        pytest.importorskip("decord")
    shutil.copy(good, tmp_path / "other.mp4")
    path = tmp_path / f"v.{suffix}"
    path.write_text(PLAYLISTS[kind].format(file=tmp_path / "other.mp4"))
    cfg = load("tiny", [f"video.backend={backend}"]).curation
    with pytest.raises(MediaError), open_video(str(path), cfg.video):
        pass


def test_decord_is_shown_no_container_that_it_could_take_for_a_playlist(tmp_path: Path) -> None:
    pytest.importorskip("decord")
    with av.open(str(tmp_path / "v.ts"), "w", format="mpegts") as out:
        stream = out.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    with pytest.raises(MediaError, match="decord is not used"):
        DecordFile(str(tmp_path / "v.ts"))


@pytest.mark.parametrize(("side", "sentence"), [(9000, "9000x9000 pixels"), (65535, "cannot be used|damaged")])
def test_a_picture_that_only_claims_to_be_huge_is_refused(side: int, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "v.y4m"
    path.write_bytes(f"YUV4MPEG2 W{side} H{side} F1000000000:1 Ip A1:1 C420\nFRAME\n".encode() + bytes(100_000))
    with pytest.raises(MediaError, match=sentence), VideoFile(str(path)):
        pass


def test_a_picture_that_grows_beyond_the_limit_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "v.mkv", 640, 480)
    monkeypatch.setattr(VideoFile, "_check_pixels", lambda *_: None)  # as if the header had said less
    monkeypatch.setattr(video_file, "_MOST_PIXELS", 640 * 480 - 1)
    with pytest.raises(MediaError, match="no frame"), VideoFile(str(tmp_path / "v.mkv")):
        pass


JUNK = {
    "zeros": b"",
    "matroska": bytes.fromhex(
        "1a45dfa39f4286810142f7810142f2810442f381084282847765626d42878104428581021853806701ffffffffffffff"
    ),
    "transport": (b"\x47\x40\x00\x10" + b"\xff" * 184) * 300,
}


@pytest.mark.parametrize("kind", JUNK)
def test_six_gigabytes_of_junk_are_not_read(kind: str, tmp_path: Path, loaded: Backends) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(JUNK[kind])
    os.truncate(path, 6 << 30)

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read()
    row, _ = analysed_rows(str(path), CFG, backends=loaded)
    assert row["verdict"] == "error" and row["bytes"] == 6 << 30
    assert read() - before < 100e6


def wav(path: Path, rate: int, channels: int) -> Path:
    data = b"\1\2" * 16_000
    head = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, channels, rate,
        rate * 2 & 0xFFFFFFFF, 2 * channels & 0xFFFF, 16,
    )  # fmt: skip
    path.write_bytes(head + struct.pack("<4sI", b"data", len(data)) + data)
    return path


@pytest.mark.parametrize(
    ("rate", "channels"), [(1, 1), (2_000_000_000, 1), (0xFFFFFFFF, 1), (16_000, 200), (16_000, 65535)]
)
@pytest.mark.timeout(60, func_only=True)
def test_sound_that_nothing_records_is_a_sentence_or_none(rate: int, channels: int, tmp_path: Path) -> None:
    path = wav(tmp_path / "v.wav", rate, channels)
    try:
        with SoundReader(str(path), 0.0) as sound:
            assert not sound.present
    except MediaError as error:
        assert re.search("Hz and|not a video", str(error))
