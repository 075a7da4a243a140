"""The real loaders: original layouts proved on recorded outputs and key by key, real classes at small sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs import schema
from configs.errors import EchoForgeError, MissingWeights
from model import layouts, parity
from model.codecs import load_codec
from model.encoders import load_audio_encoder, load_image_encoder, load_text_encoder
from model.encoders.parity import original_vae_names


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.numeric) for name in ("t5", "clip")), "vae"])
def test_parity_with_the_recorded_outputs(shared_fixtures: Path, name: str) -> None:
    _, error = parity.run(shared_fixtures / "parity" / f"{name}_a.safetensors")
    assert error is not None and error <= 1e-4


def test_vae_layout_at_full_size(shared_fixtures: Path) -> None:
    import json

    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae: Any = AutoencoderKLWan()
    theirs = vae.state_dict()
    assert len(theirs) == 194 and sum(v.numel() for v in theirs.values()) == 126_892_531
    names = original_vae_names(theirs)
    assert set(names.values()) == set(theirs)
    recorded = json.loads((shared_fixtures / "parity" / "vae_keys.json").read_text())
    assert set(names) == set(recorded), "the original file's own names"


def test_umt5_layout_at_full_size() -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=256_384,
        d_model=4096,
        d_kv=64,
        d_ff=10_240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        network = UMT5EncoderModel(config)
    own = {k: v for k, v in network.state_dict().items() if k != "encoder.embed_tokens.weight"}
    assert sum(v.numel() for v in own.values()) == 5_680_910_336
    parts = [("norm1.weight", 4096), ("norm2.weight", 4096)]
    state = {
        "token_embedding.weight": torch.empty(256_384, 4096, device="meta"),
        "norm.weight": torch.empty(4096, device="meta"),
    }
    for i in range(24):
        block = f"blocks.{i}."
        state |= {block + n: torch.empty(s, device="meta") for n, s in parts}
        state |= {f"{block}attn.{n}.weight": torch.empty(4096, 4096, device="meta") for n in "qkvo"}
        state |= {f"{block}ffn.{n}.weight": torch.empty(10_240, 4096, device="meta") for n in ("gate.0", "fc1")}
        state[f"{block}ffn.fc2.weight"] = torch.empty(4096, 10_240, device="meta")
        state[f"{block}pos_embedding.embedding.weight"] = torch.empty(32, 64, device="meta")
    named = layouts.t5(state)
    assert {k: v.shape for k, v in named.items()} == {k: v.shape for k, v in network.state_dict().items()}


def test_clip_layout_at_full_size() -> None:
    from open_clip.transformer import VisionTransformer

    with torch.device("meta"):
        tower = VisionTransformer(
            image_size=224, patch_size=14, width=1280, layers=32, heads=16, mlp_ratio=4, output_dim=1024
        )
    theirs = tower.state_dict()
    reverse = {
        "class_embedding": "cls_embedding", "positional_embedding": "pos_embedding", "proj": "head",
    }  # fmt: skip
    original = {}
    for key, value in theirs.items():
        name = reverse.get(key, key)
        for ours, old in (
            ("conv1.", "patch_embedding."), ("ln_pre.", "pre_norm."), ("ln_post.", "post_norm."), (".resblocks.", "."),
            (".ln_1.", ".norm1."), (".ln_2.", ".norm2."), ("attn.in_proj_", "attn.to_qkv."), ("attn.out_proj.", "attn.proj."),
            ("mlp.c_fc.", "mlp.0."), ("mlp.c_proj.", "mlp.2."),
        ):  # fmt: skip
            name = name.replace(ours, old)
        original[f"visual.{name}"] = value[None, None] if key == "class_embedding" else value
    named = layouts.clip(original)
    assert {k: v.shape for k, v in named.items()} == {k: v.shape for k, v in theirs.items()}


def test_whisper_through_its_own_file_format(tmp_path: Path) -> None:
    from whisper import log_mel_spectrogram
    from whisper.model import ModelDimensions, Whisper

    dims = ModelDimensions(80, 1500, 32, 2, 2, 60, 8, 32, 2, 1)
    torch.manual_seed(0)
    file = tmp_path / "tiny.pt"
    torch.save({"dims": vars(dims), "model_state_dict": Whisper(dims).state_dict()}, file)
    cfg = replace(schema.load("wan2.1-fun-1.3b").model.audio_encoder, path=str(file), dim=32)
    sound = np.random.default_rng(0).standard_normal(640 * 800 + 100).astype(np.float32) * 0.1
    encoder = load_audio_encoder(cfg)
    features = encoder.encode(sound)
    assert features.shape == (2 * 801, 32) and torch.isfinite(features).all()
    padded = torch.nn.functional.pad(torch.from_numpy(sound), (0, 60 * 16_000 - len(sound)))
    mel, network = log_mel_spectrogram(padded), Whisper(dims).eval()
    network.load_state_dict(torch.load(file, weights_only=True)["model_state_dict"])
    with torch.no_grad():
        theirs = torch.cat([network.encoder(mel[None, :, i : i + 3000])[0] for i in (0, 3000)])
    torch.testing.assert_close(features, theirs[: len(features)], atol=1e-4, rtol=1e-4)
    low = load_audio_encoder(cfg, dtype=torch.bfloat16).encode(sound)
    assert low.dtype == torch.float32 and (low - features).abs().mean() < 0.05
    half = encoder.encode(sound[: 640 * 400])
    cut = encoder.slice(half, 10, 33, 8)
    assert cut.tokens.shape == (2 * (33 + 16), 32) and cut.frame0 == 16
    everything = load_audio_encoder(replace(cfg, layers="all", dim=96)).encode(sound[: 640 * 50])
    assert everything.shape == (100, 96)
    with pytest.raises(EchoForgeError, match=r"audio_encoder\.dim"):
        load_audio_encoder(replace(cfg, dim=384))


@pytest.mark.parametrize("variant", ["preview", "flash"])
def test_wav2vec2_from_a_folder(tmp_path: Path, variant: Any) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
                            conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)  # fmt: skip
    Wav2Vec2Model(config).save_pretrained(tmp_path)
    cfg = replace(
        schema.load("wan2.1-fun-1.3b").model.audio_encoder,
        kind="wav2vec2",
        variant=variant,
        path=str(tmp_path),
        dim=24,
        loudness=-23.0,
    )
    sound = np.random.default_rng(0).standard_normal(640 * 113).astype(np.float32) * 0.1
    features = load_audio_encoder(cfg).encode(sound)  # type: ignore[arg-type]
    assert features.shape == ((226, 24) if variant == "preview" else (113, 3, 24)) and torch.isfinite(features).all()
    if variant == "flash":
        network = Wav2Vec2Model.from_pretrained(tmp_path).eval()
        wave = torch.randn(1, 16_000)
        with torch.no_grad():
            whole = network(wave, output_hidden_states=True).hidden_states[1:]
            heard = network.feature_projection(network.feature_extractor(wave).transpose(1, 2))[0]
            ours = load_audio_encoder(cfg)._layers(heard)  # type: ignore[arg-type, attr-defined]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, ours, strict=True))


def test_a_wav2vec2_folder_without_all_its_tensors_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                            conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)  # fmt: skip
    Wav2Vec2Model(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    state.pop("feature_projection.projection.weight")
    save_file(state, file, {"format": "pt"})
    preset = schema.load("wan2.1-fun-1.3b").model.audio_encoder
    cfg = replace(preset, kind="wav2vec2", variant="preview", path=str(file), dim=24)
    with pytest.raises(EchoForgeError, match=r"1 tensors missing.*feature_projection"):
        load_audio_encoder(cfg)
    (tmp_path / "config.json").unlink()
    with pytest.raises(MissingWeights, match=r"config\.json"):
        load_audio_encoder(cfg)


def test_umt5_from_its_original_file_and_a_lone_tokenizer_json(tmp_path: Path) -> None:
    """A text gives the same rows alone and in a batch, at its true length, cut at max_tokens with its end token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "man": 4, "talks": 5}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # type: ignore[assignment]
    words.save(str(tmp_path / "tokenizer.json"))
    state = {"token_embedding.weight": (16, 32), "norm.weight": (32,)}
    block = {f"attn.{n}.weight": (32, 32) for n in "qkvo"} | {f"norm{n}.weight": (32,) for n in (1, 2)}
    block |= {"ffn.gate.0.weight": (48, 32), "ffn.fc1.weight": (48, 32), "ffn.fc2.weight": (32, 48)}
    block |= {"pos_embedding.embedding.weight": (32, 4)}
    state |= {f"blocks.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    torch.save(parity.recipe_weights(state), tmp_path / "t5.pth")
    cfg = replace(
        schema.load("wan2.1-fun-1.3b").model.text_encoder,
        path=str(tmp_path / "t5.pth"),
        tokenizer=str(tmp_path / "tokenizer.json"),
        dim=32,
        max_tokens=4,
    )
    encoder = load_text_encoder(cfg)
    rows = encoder.encode(["a", "a man talks a man talks"])
    assert [tuple(r.shape) for r in rows] == [(2, 32), (4, 32)]
    torch.testing.assert_close(encoder.encode(["a"])[0], rows[0], atol=1e-5, rtol=1e-5)
    assert load_text_encoder(replace(cfg, max_tokens=3)).digest != encoder.digest
    with pytest.raises(MissingWeights, match="tokenizer"):
        load_text_encoder(replace(cfg, tokenizer=str(tmp_path / "absent")))


def test_vae_from_its_original_file_and_from_a_folder_alike(shared_fixtures: Path, tmp_path: Path) -> None:
    import json

    shapes = json.loads((shared_fixtures / "parity" / "vae_keys.json").read_text())
    torch.save(parity.recipe_weights({k: tuple(v) for k, v in shapes.items()}), tmp_path / "vae.pth")
    preset = schema.load("wan2.1-fun-1.3b").model.codec
    codec = load_codec(replace(preset, path=str(tmp_path / "vae.pth")))
    codec.vae.save_pretrained(tmp_path / "folder")  # type: ignore[attr-defined]
    video = torch.rand(2, 3, 5, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = codec.encode(video)
    assert latents.shape == (2, 16, 2, 2, 3) and latents.dtype == torch.float32
    torch.testing.assert_close(codec.encode(video[1:]), latents[1:], atol=1e-4, rtol=1e-4)
    pixels = codec.decode(3 * latents)
    assert pixels.shape == video.shape and pixels.abs().max() <= 1
    other = load_codec(replace(preset, path=str(tmp_path / "folder")))
    torch.testing.assert_close(other.encode(video), latents)


def test_clip_from_its_original_file(shared_fixtures: Path, tmp_path: Path) -> None:
    import json

    shapes = json.loads((shared_fixtures / "parity" / "clip_keys.json").read_text())
    weights = parity.recipe_weights({k.removeprefix("visual."): tuple(v) for k, v in shapes.items()})
    torch.save({f"visual.{k}": v for k, v in weights.items()} | {"log_scale": torch.zeros(())}, tmp_path / "clip.pth")
    cfg = replace(
        schema.load("wan2.1-fun-1.3b").model.image_encoder, path=str(tmp_path / "clip.pth"), dim=64, tokens=17
    )
    rows = load_image_encoder(cfg).encode(torch.rand(2, 3, 40, 70) * 2 - 1)
    assert rows.shape == (2, 17, 64) and rows.dtype == torch.float32 and torch.isfinite(rows).all()
    with pytest.raises(EchoForgeError, match="image_encoder asks for 257"):
        load_image_encoder(replace(cfg, tokens=257))


def test_missing_files_say_which_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOFORGE_WEIGHTS", str(tmp_path))
    model = schema.load("wan2.1-fun-1.3b").model
    cases: list[tuple[Any, Any, str]] = [
        (load_codec, model.codec, "codec.path"),
        (load_text_encoder, model.text_encoder, "text_encoder.path"),
        (load_image_encoder, model.image_encoder, "image_encoder.path"),
        (load_audio_encoder, model.audio_encoder, "audio_encoder.path"),
    ]
    for load, cfg, key in cases:
        with pytest.raises(MissingWeights, match=key):
            load(cfg)
    wrong = tmp_path / "wrong.safetensors"
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, wrong)
    with pytest.raises(EchoForgeError, match=r"not a Wan2\.1 VAE"):
        load_codec(replace(model.codec, path=str(wrong)))
