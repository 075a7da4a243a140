"""The registry of pretrained files: located, listed, checked, and fetched whole or not at all."""

from __future__ import annotations

import functools
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cli
from configs import schema, weights
from configs.errors import EchoForgeError, MissingWeights
from configs.runtime.disk import Refused
from configs.runtime.locks import LOCK_FILE, Locked
from configs.weights import download, listing, registry
from configs.weights.registry import WeightFile

ROOT = Path(__file__).resolve().parents[2]
REAL = "wan2.1-fun-1.3b"


class _Server(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, with ranges, as the hub serves them; ``asked`` notes every path and range."""

    asked: list[tuple[str, str | None]]
    cut: int | None = None  # bytes after which a whole answer breaks off

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        type(self).asked.append((self.path, wanted))
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            return self.send_error(404)
        data = file.read_bytes()
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : start + (len(data) if wanted or self.cut is None else self.cut)])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, type[_Server]]]:
    """A folder that a local server serves as if it were the hub, and its handler; the weights folder is empty."""
    folder = tmp_path / "hub"
    folder.mkdir()
    kind = type("Handler", (_Server,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("ECHOFORGE_WEIGHTS", str(tmp_path / "w"))
    yield folder, kind
    server.shutdown()


def _published(folder: Path, file: WeightFile, data: bytes) -> WeightFile:
    """``data`` as what the hub holds for ``file``, and the entry with its size and digest."""
    place = folder / str(file.repo) / "resolve" / "main" / str(file.file)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return replace(file, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts other entries of the same names into the registry for one test."""

    def put(*files: WeightFile) -> None:
        named = {file.name: file for file in registry.REGISTRY} | {file.name: file for file in files}
        monkeypatch.setattr(registry, "REGISTRY", tuple(named.values()))

    return put


def _needs(preset: str, *overrides: str) -> list[weights.Need]:
    return weights.needs(schema.sections(schema.load(preset, list(overrides))))


def test_every_key_that_names_a_file_is_known() -> None:
    """What the loaders ask for, and what presets say, is in the table: nothing is used that is not listed."""
    asked = set()
    for package in ("curation", "model", "train", "pipeline", "evaluation", "workflows"):
        for source in sorted((ROOT / package).rglob("*.py")):
            asked |= set(re.findall(r"\blocate\(\s*\"([a-z_.]+)\"", source.read_text("utf-8")))
    assert asked == set(weights.KEYS) - {"captions.model"}  # transformers finds that one itself

    def named(value: Any, prefix: str = "") -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from named(inner, f"{prefix}.{key}".lstrip("."))
        elif isinstance(value, str) and value.startswith("weights:"):
            yield prefix

    for preset in schema.PRESETS:
        assert set(named(schema.to_mapping(schema.load(preset)))) <= set(weights.KEYS)


def test_the_real_preset_needs_these_files_and_all_have_public_sizes_and_digests() -> None:
    needs = _needs(REAL)
    assert [need.known.name for need in needs if need.known] == [
        "yunet", "syncnet-v2", "wan-vae", "umt5-xxl", "umt5-tokenizer", "clip-vit-h14", "whisper-tiny",
        "fun-inp-transformer",
    ]  # fmt: skip
    assert all(need.known and need.known.bytes and len(str(need.known.sha256)) == 64 for need in needs)
    assert _needs("tiny") == []


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (("faces.detector=s3fd",), ["s3fd"]),
        (("faces.detector=yunet", "sync.backend=syncnet_v2"), ["yunet", "syncnet-v2"]),
        (("aesthetic.enabled=true",), ["clip-vit-l14", "aesthetic-head"]),
        (
            ("audio_encoder.kind=wav2vec2", "audio_encoder.variant=preview"),
            ["wav2vec2-base-960h", "wav2vec2-base-960h-config"],
        ),
        (
            ("audio_encoder.kind=wav2vec2", "audio_encoder.path=weights:chinese-wav2vec2-base"),
            ["chinese-wav2vec2-base", "chinese-wav2vec2-base-config"],
        ),
        (("codec.kind=wan", "codec.path=/mine.pth"), [None]),
        (("captions.kind=vlm", "captions.model=hub:org/model"), [None]),
    ],
)
def test_a_switched_on_part_lists_its_files_without_a_path(overrides: tuple[str, ...], names: list[str | None]) -> None:
    assert [need.known.name if need.known else None for need in _needs("tiny", *overrides)] == names


def test_a_missing_file_is_named_with_its_place_and_the_command_that_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOFORGE_WEIGHTS", str(tmp_path))
    for need in _needs(REAL):
        assert need.known is not None
        sections = schema.sections(schema.load(REAL))
        kind = tuple(
            getattr(sections[section], name)
            for section, name in (key.split(".") for key in weights.KEYS[need.key].switch)
        )
        assert kind == need.switch
        for configured in (need.configured, None):
            if configured is None and need.key == "checkpoint.init":
                continue
            with pytest.raises(MissingWeights) as error:
                weights.locate(need.key, configured, *kind)
            words = str(error.value)
            assert str(tmp_path / need.known.path) in words and need.key in words
            assert f"`weights fetch {need.known.name}`" in words
        with pytest.raises(MissingWeights, match="weights fetch" if kind else "correct the path"):
            weights.locate(need.key, "/no/such/file", *kind)
        place = tmp_path / need.known.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"x")
        assert weights.locate(need.key, None if kind else need.configured, *kind) == place
    with pytest.raises(MissingWeights, match=r"--set sync\.fitted=PATH"):
        weights.locate("sync.fitted", None, "fitted")


def test_several_missing_files_are_one_sentence_and_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOFORGE_WEIGHTS", str(tmp_path))
    model = schema.load(REAL).model
    encoders = ("codec", "text_encoder", "image_encoder", "audio_encoder")
    with pytest.raises(MissingWeights, match=r"5 files are not in .*weights fetch wan-vae umt5-xxl umt5-tokenizer"):
        weights.require({key: getattr(model, key) for key in encoders})
    with pytest.raises(MissingWeights, match="weights fetch wan-vae"):
        weights.require({"codec": model.codec})


def test_hub_ids_are_looked_up_and_fail_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    file = tmp_path / "vae.pth"
    file.write_bytes(b"x")
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a: asked.append(a) or str(file))
    assert weights.locate("codec.path", "hub:org/name/sub/vae.pth", "wan") == file
    assert asked == [("org/name", "sub/vae.pth")]
    with pytest.raises(EchoForgeError, match="hub:ORG/NAME"):
        weights.locate("codec.path", "hub:justaname", "wan")

    def unreachable(*_: str) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(MissingWeights, match="by hand"):
        weights.locate("codec.path", "hub:org/name", "wan")


def test_the_preset_is_fetched_from_a_hub_to_the_places_where_it_looks(
    hub: tuple[Path, type[_Server]], publish: Any, tmp_path: Path
) -> None:
    """list, fetch and check as a user runs them; every file is small and comes through HTTP."""
    folder, server = hub
    files = [need.known for need in _needs(REAL) if need.known]
    small = [replace(f, repo=f.repo or "other/site", file=f.file or f.path, url=None) for f in files]
    publish(*(_published(folder, file, file.name.encode() * 999) for file in small))

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, ["weights", *arguments, "--preset", REAL])
        return result.exit_code, result.output

    code, text = run("list")
    assert code == 0 and len(re.findall(r"  missing$", text, re.M)) == len(files)
    assert run("check")[0] == 3
    code, text = run("fetch")
    assert code == 0 and len(server.asked) == len(files)
    for need in _needs(REAL):
        assert need.known and need.state == "present" and str(need.path) in text
    code, text = run("check")
    assert code == 0 and text.count("  ok") == len(files)
    assert "all are here" in run("list")[1] and "Nothing to fetch" in run("fetch")[1]
    vae = tmp_path / "w" / registry.by_name()["wan-vae"].path
    vae.write_bytes(vae.read_bytes()[:-1] + b"?")
    code, text = run("check")
    assert code == 3 and re.search(r"wan-vae +digest differs +weights fetch wan-vae", text)
    vae.write_bytes(b"mine")
    assert "left alone" in run("fetch")[1] and vae.read_bytes() == b"mine", "nobody's own file is replaced unasked"
    assert CliRunner().invoke(cli.app, ["weights", "fetch", "wan-vae"]).exit_code == 0 and run("check")[0] == 0
    assert not list((tmp_path / "w").rglob("*.part"))


def test_a_download_that_broke_off_goes_on_and_a_damaged_one_leaves_nothing(hub: tuple[Path, type[_Server]]) -> None:
    folder, server = hub
    data = bytes(range(256)) * 40
    entry = registry.by_name()["wan-vae"]
    file = _published(folder, entry, data)
    server.cut = 4000
    with pytest.raises(EchoForgeError, match="ended after 4000 of 10240"):
        download.fetch(file)
    part = weights.folder() / f"{file.path}.part"
    assert part.stat().st_size == 4000 and not (weights.folder() / file.path).exists()
    seen: list[tuple[int, int]] = []
    assert download.fetch(file, lambda *a: seen.append(a)).read_bytes() == data and seen[-1] == (10240, 10240)
    assert server.asked[-1][1] == "bytes=4000-" and not part.exists()
    server.cut = None
    with pytest.raises(EchoForgeError, match="damaged"):
        download.fetch(replace(file, sha256="0" * 64))
    assert not part.exists() and (weights.folder() / file.path).read_bytes() == data, "the good one stays"
    with pytest.raises(EchoForgeError, match="answers 404"):
        download.fetch(replace(file, file="gone.pth"))


def test_without_a_network_fetching_ends_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOFORGE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the port of `discard`: refused
    hub_files = [file for file in registry.REGISTRY if file.repo][:3]
    begun: list[str] = []

    def begin(file: WeightFile) -> Any:
        begun.append(file.name)
        return lambda *_: None

    with pytest.raises(EchoForgeError, match=r"3 files could not be fetched: .*refused.*weights list --urls"):
        download.fetch_all(hub_files, begin)
    assert len(begun) == 1, "a host that does not answer is asked once"
    with pytest.raises(EchoForgeError, match=rf"by hand and put it at {re.escape(str(tmp_path))}"):
        download.fetch_all(hub_files[:1], begin)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_fits_the_terminal_and_says_everything(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ECHOFORGE_WEIGHTS", str(tmp_path))
    needs = _needs(REAL, "aesthetic.enabled=true")
    text = listing.render(REAL, needs, width)
    assert max(map(len, text.splitlines()[1:])) <= width
    flat = re.sub(r"\s+", "", text)
    for need in needs:
        assert need.known is not None
        for word in (need.known.name, need.known.path, need.known.licence, need.known.what, need.key):
            assert re.sub(r"\s+", "", word) in flat
    assert re.search(r"total +~21\.63 GB +in 10 files; missing: ~21\.63 GB in 10", text)
    assert len(listing.urls(needs).splitlines()) == 10


def test_one_download_at_a_time(hub: tuple[Path, type[_Server]]) -> None:
    """Two that append to one `.part` would damage both; the second says who the first is and touches nothing."""
    folder, server = hub
    file = _published(folder, registry.by_name()["wan-vae"], b"x" * 3_000_000)
    answers: list[str] = []
    seen: set[str] = set()

    def report(done: int, total: int) -> None:
        if not answers:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        seen.update(path.name for path in weights.folder().rglob("*"))

    def second() -> None:
        try:
            download.fetch(file)
        except Locked as error:
            answers.append(str(error))

    assert download.fetch(file, report).stat().st_size == 3_000_000
    assert len(server.asked) == 1 and len(answers) == 1
    assert "weights folder" in answers[0] and "`weights fetch`" in answers[0] and LOCK_FILE in seen
    assert [path.name for path in weights.folder().rglob("*") if path.is_file()] == [Path(file.path).name]


def test_a_disk_that_is_full_or_too_small_is_one_sentence(
    hub: tuple[Path, type[_Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = hub
    file = _published(folder, registry.by_name()["wan-vae"], b"x" * 3_000_000)
    with pytest.raises(Refused, match=r"wan-vae in .*ECHOFORGE_WEIGHTS.* needs about .* make room"):
        download.fetch(replace(file, bytes=10**18))
    usual = Path.open

    def full(path: Path, *arguments: Any, **others: Any) -> Any:
        return open("/dev/full", "wb") if path.suffix == ".part" else usual(path, *arguments, **others)  # noqa: PTH123

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(Refused, match=r"Wan2\.1_VAE\.pth\.part' could not be written: no space is left"):
        download.fetch(file)
