"""Agreement with recorded outputs of the released code, and what becomes of fixtures without outputs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from model import parity


@pytest.fixture
def fixture(shared_fixtures):
    def read(variant):
        path = shared_fixtures / f"parity/{variant}_a.safetensors"
        with safe_open(path, "pt") as file:
            return path, load_file(path), file.metadata()

    return read


@pytest.mark.parametrize("variant", [pytest.param("preview", marks=pytest.mark.numeric), "flash"])
def test_released_variants(fixture, variant, capsys):
    path, _, _ = fixture(variant)
    assert parity.main([str(path)]) == 0
    assert float(capsys.readouterr().out.splitlines()[-1]) <= 1e-4


@pytest.mark.parametrize("variant", ["preview", "flash"])
def test_without_outputs_it_writes_and_does_not_fail(fixture, variant, tmp_path):
    """Batch of two, prompts of two lengths, no output: the first sample still gives the recorded one."""
    _, tensors, metadata = fixture(variant)
    recorded = tensors.pop("out")
    double = {k: torch.cat([v, v.flip(-1)]) for k, v in tensors.items() if v.dim() > 1 and k != "text_0"}
    double |= {"t": tensors["t"].repeat(2), "audio_scale": tensors["audio_scale"]}
    double |= {"text_0": tensors["text_0"], "text_1": tensors["text_0"][:3].clone()}
    save_file(double, tmp_path / "two.safetensors", metadata)
    assert parity.main([str(tmp_path / "two.safetensors"), "--out", str(tmp_path / "out.safetensors")]) == 0
    out = load_file(tmp_path / "out.safetensors")["out"]
    assert (out[:1] - recorded).abs().max() <= 1e-4


def test_a_wrong_output_is_found(fixture, tmp_path):
    _, tensors, metadata = fixture("preview")
    tensors["out"] = tensors["out"] + 0.01
    save_file(tensors, tmp_path / "wrong.safetensors", metadata)
    assert parity.main([str(tmp_path / "wrong.safetensors")]) == 1


def test_unusable_files_give_one_sentence(tmp_path, capsys):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for name in ("other", "junk", "absent"):
        assert parity.main([str(tmp_path / f"{name}.safetensors")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
