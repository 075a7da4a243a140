"""The registry of pretrained files: located, checked and fetched whole or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from configs import weights
from configs.errors import EchoForgeError, MissingWeights


def test_missing_files_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOFORGE_WEIGHTS", str(tmp_path))
    for configured in (None, "weights:nothing/here.pth"):
        with pytest.raises(MissingWeights, match="weights list"):
            weights.locate("the Wan VAE (codec.path)", configured)
    (tmp_path / "here.bin").write_bytes(b"x")
    assert weights.locate("it", "weights:here.bin") == tmp_path / "here.bin"


def test_hub_ids_are_looked_up_and_fail_with_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    file = tmp_path / "vae.pth"
    file.write_bytes(b"x")
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a: asked.append(a) or str(file))
    assert weights.locate("it", "hub:org/name/sub/vae.pth") == file and asked == [("org/name", "sub/vae.pth")]
    with pytest.raises(EchoForgeError, match="hub:ORG/NAME"):
        weights.locate("it", "hub:justaname")

    def unreachable(*_: str) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(MissingWeights, match="by hand"):
        weights.locate("it", "hub:org/name")


def test_fetch_keeps_nothing_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOFORGE_WEIGHTS", str(tmp_path / "w"))
    source = tmp_path / "source.bin"
    source.write_bytes(b"weights" * 1000)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    good = weights.WeightFile("a", "", "a/source.bin", "", url=source.as_uri(), bytes=7000, sha256=digest)
    assert weights.check(good, weights.fetch(good)) == "ok"
    with pytest.raises(EchoForgeError, match="damaged"):
        weights.fetch(replace(good, path="b/source.bin", sha256="0" * 64))
    with pytest.raises(EchoForgeError, match="could not be fetched"):
        weights.fetch(replace(good, path="c/source.bin", url=(tmp_path / "none").as_uri()))
    assert [p.name for p in (tmp_path / "w").rglob("*") if p.is_file()] == ["source.bin"]
