"""Weights in and out: wrapped or not, bfloat16, base files into every variant, and files that do not fit.

What is loaded and written is copied, so it is compared exactly.
"""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import EchoForgeError, MissingWeights
from model.checkpoint import detect_variant, export, load_into, load_transformer, load_weights, new_keys
from model.transformer import EchoMimicTransformer


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("variant", ["base", "whisper", "preview", "flash"])
def test_round_trip_in_bfloat16(tiny_model, tmp_path, variant, wrapped):
    model = tiny_model(variant).bfloat16()
    state = {key: value.detach() for key, value in model.state_dict().items()}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "model.pth")
    save_file({f"state_dict.{k}" if wrapped else k: v for k, v in state.items()}, tmp_path / "model.safetensors")
    for name in ("model.pth", "model.safetensors"):
        loaded = load_transformer(model.cfg, tmp_path / name)
        exported = load_file(export(loaded, tmp_path / "exported.safetensors"))
        assert exported.keys() == state.keys()
        assert all(torch.equal(exported[key], state[key]) for key in state)
        assert detect_variant(exported) == variant


@pytest.mark.parametrize("variant", ["whisper", "preview", "flash"])
def test_a_base_file_lacks_exactly_the_new_keys(tiny_model, tiny_cfg, variant):
    base = tiny_model("base").state_dict()
    model = EchoMimicTransformer(tiny_cfg(variant))
    loaded = load_into(model, base)
    assert set(loaded.initialised) == new_keys(model.state_dict()) == model.state_dict().keys() - base.keys()
    assert all(torch.equal(model.state_dict()[key], base[key]) for key in base)


def test_files_that_do_not_fit_are_refused(tiny_model, tiny_cfg, tmp_path):
    preview = tiny_model("preview").state_dict()
    with pytest.raises(EchoForgeError, match="preview"):
        load_into(EchoMimicTransformer(tiny_cfg("flash")), preview)
    short = {key: value for key, value in preview.items() if key != "patch_embedding.weight"}
    with pytest.raises(EchoForgeError, match=r"1 keys missing \(patch_embedding.weight\)"):
        load_into(EchoMimicTransformer(tiny_cfg("preview")), short)
    with pytest.raises(EchoForgeError, match=r"1 unknown \(surprise\)"):
        load_into(EchoMimicTransformer(tiny_cfg("preview")), preview | {"surprise": torch.zeros(1)})
    with pytest.raises(MissingWeights):
        load_weights(tmp_path / "absent.safetensors")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code in a weights file ran",))


def test_reading_weights_runs_nothing(tmp_path):
    torch.save({"state_dict": {"a": Bomb()}}, tmp_path / "bomb.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pth", "raw.pth"):
        with pytest.raises(EchoForgeError, match="not a plain file of weights"):
            load_weights(tmp_path / name)


def test_a_state_dict_that_holds_itself_is_refused(tmp_path):
    state = {}
    state["model"] = state
    torch.save(state, tmp_path / "loop.pth")
    with pytest.raises(EchoForgeError):
        load_weights(tmp_path / "loop.pth")


@pytest.mark.parametrize(
    "index",
    ['{"weight_map": {"a": "../outside.safetensors"}}', '{"weight_map": {"a": "/etc/passwd"}}', '{"weight_map": []}',
     '{"weight_map": {"a": "b\\u0000"}}', '{"weight_map": {"a": 5, "b": ".."}}', "[]", "{", "[" * 100_000, "\ufeff"],
)  # fmt: skip
def test_an_index_of_shards_names_only_files_beside_it(tmp_path, index):
    (tmp_path / "model").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    path = tmp_path / "model" / "model.safetensors.index.json"
    path.write_text(index)
    with pytest.raises(EchoForgeError, match=r"model\.safetensors\.index\.json") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_pipes_and_devices_are_no_weights(tmp_path, name):
    os.mkfifo(tmp_path / name)
    (tmp_path / f"zero-{name}").symlink_to("/dev/zero")
    for path in (tmp_path / name, tmp_path / f"zero-{name}"):
        with pytest.raises(EchoForgeError, match="no regular file"):
            load_weights(path)
