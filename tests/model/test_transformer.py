"""The network: sizes, names, independence of samples and frames, silence of the untrained audio expert."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from configs.errors import EchoForgeError
from model import flops
from model.attention import few_keys_attention
from model.checkpoint import load_into
from model.phda import ones, weights
from model.rope import Riflex
from model.transformer import EchoMimicTransformer

AUDIO_VARIANTS = ["whisper", "preview", "flash"]


@pytest.mark.parametrize(
    ("variant", "tensors", "parameters"),
    [("base", 983, 1_564_428_608), ("preview", 1_076, 1_707_215_168), ("flash", 1_203, 1_863_772_992)],
)
def test_released_counts(full_cfg, variant, tensors, parameters):
    with torch.device("meta"):
        model = EchoMimicTransformer(full_cfg(variant))
    assert len(model.state_dict()) == tensors
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_paper_variant_keeps_every_base_key(full_cfg):
    with torch.device("meta"):
        base, whisper = (EchoMimicTransformer(full_cfg(v)).state_dict() for v in ("base", "whisper"))
    assert {k: v.shape for k, v in base.items()}.items() <= {k: v.shape for k, v in whisper.items()}.items()
    assert len(whisper) == 983 + 8 + 3 * 30


@pytest.mark.parametrize("variant", ["preview", "flash"])
def test_released_names_and_shapes(shared_fixtures, variant, full_cfg):
    keys = json.loads((shared_fixtures / f"parity/{variant}_keys.json").read_text())
    cfg = dataclasses.replace(full_cfg(variant), ffn_dim=512, num_layers=2, text_dim=64)
    with torch.device("meta"):
        own = EchoMimicTransformer(cfg).state_dict()
    assert {name: list(value.shape) for name, value in own.items()} == keys


def test_operations_at_113_frames_480x832(full_cfg):
    cfg = full_cfg("preview")
    assert round(flops.counted(cfg, (29, 60, 104)) / 1e12, 3) == 497.330
    for variant in ("base", *AUDIO_VARIANTS):
        cfg = full_cfg(variant)
        assert flops.counted(cfg, (5, 8, 12)) == flops.closed_form(cfg, (5, 8, 12)).total


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", AUDIO_VARIANTS)
def test_untrained_audio_leaves_the_base_model_bit_for_bit(tiny_model, tiny_cfg, inputs, variant, dtype):
    """Adding zeros changes no bit, and text and image are computed on the same shapes (docs/paper-to-code.md)."""
    base = tiny_model("base").to(dtype)
    model = EchoMimicTransformer(tiny_cfg(variant)).to(dtype)
    load_into(model, base.state_dict())
    given = inputs(model.cfg)
    if variant == "whisper":
        given |= {"audio_frame0": 3, "audio_valid": torch.arange(given["audio"].shape[1]).expand(2, -1) > 4}
    out = model(**given, weights=ones(given["t"]))
    del given["audio"]
    silent = {key: value for key, value in given.items() if not key.startswith("audio")}
    assert torch.equal(out, base(**silent))
    assert out.abs().max() > 0


@pytest.mark.parametrize("variant", AUDIO_VARIANTS)
def test_untrained_audio_learns_from_the_first_step(tiny_model, tiny_cfg, inputs, variant):
    model = EchoMimicTransformer(tiny_cfg(variant))
    load_into(model, tiny_model("base").state_dict())
    given = inputs(model.cfg)
    for _ in range(2):
        model(**given).square().mean().backward()
        with torch.no_grad():
            for value in model.parameters():
                if value.grad is not None:
                    value.sub_(0.1 * value.grad)
    moved = model.blocks[0].cross_attn
    assert moved.v_audio.weight.abs().max() > 0
    assert moved.k_audio.weight.grad.abs().max() > 0


@pytest.mark.numeric
@pytest.mark.parametrize("variant", ["base", *AUDIO_VARIANTS])
def test_samples_do_not_see_each_other(tiny_model, inputs, variant):
    model = tiny_model(variant)
    given = inputs(model.cfg, batch=2)
    given["text"][1, 4:] = 0  # a shorter prompt in the same batch
    both = model(**given)
    for i in range(2):
        alone = {key: value[i : i + 1] for key, value in given.items()}
        if i == 1:
            alone["text"] = alone["text"][:, :4]
        torch.testing.assert_close(model(**alone), both[i : i + 1], atol=2e-5, rtol=1e-4)


@pytest.mark.numeric
@pytest.mark.parametrize("variant", AUDIO_VARIANTS)
def test_audio_acts_on_its_own_frames_within_the_face(tiny_model, inputs, variant):
    model = tiny_model(variant)
    given = inputs(model.cfg)
    frames, tokens = given["x"].shape[2], 6
    first = model.embed(**given)
    block = model.blocks[0].cross_attn
    changed = first.given.audio._replace(tokens=first.given.audio.tokens.clone())
    changed.tokens[:, 1] += 1
    mask = torch.ones(2, frames, tokens)
    mask[:, :, 0] = 0
    a = block(first.tokens, first.given._replace(face_mask=mask))
    b = block(first.tokens, first.given._replace(audio=changed, face_mask=mask))
    # Equal shapes: a token that the changed sound does not reach is computed as before, to the last bit.
    differs = (a != b).any(-1).view(2, frames, tokens).any(0)
    assert differs.tolist() == [[False] * 6, [False] + [True] * 5, [False] * 6]
    nothing = model(**given, face_mask=torch.zeros(2, tokens))  # the audio expert gives exact zeros
    assert torch.equal(nothing, model(**(given | {"audio": None})))
    assert torch.equal(nothing, model(**given, audio_scale=0.0))


@pytest.mark.numeric
def test_weights_scale_each_expert(tiny_model, inputs, phda_cfg):
    model = tiny_model("whisper")
    given = inputs(model.cfg)
    state = model.embed(**given)
    block, conditions = model.blocks[0].cross_attn, state.given
    zero = torch.zeros(2)
    parts = [
        block(state.tokens, conditions._replace(weights=ones(zero)._replace(**dict.fromkeys(names, zero))))
        for names in (("image", "audio"), ("text", "audio"), ("text", "image"))
    ]
    bias = block.o.bias
    w = weights(torch.tensor([650.0, 450.0]), phda_cfg)
    expected = bias + sum((part - bias) * weight[:, None, None] for part, weight in zip(parts, w, strict=True))
    torch.testing.assert_close(block(state.tokens, conditions._replace(weights=w)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.numeric
def test_whisper_ignores_padding_rows_and_row_zero_may_be_anywhere(tiny_model, inputs):
    model = tiny_model("whisper")
    given = inputs(model.cfg)
    out = model(**given)
    rows = given["audio"].shape[1]
    junk = torch.cat([torch.full((2, 5, 32), 7.0), given["audio"], torch.full((2, 3, 32), -7.0)], dim=1)
    valid = torch.zeros(2, rows + 8, dtype=torch.bool)
    valid[:, 5 : 5 + rows] = True
    shifted = model(**(given | {"audio": junk}), audio_frame0=torch.tensor([5, 5]), audio_valid=valid)
    torch.testing.assert_close(shifted, out, atol=1e-5, rtol=1e-5)
    nothing = model(**given, audio_valid=torch.zeros(2, rows, dtype=torch.bool))
    torch.testing.assert_close(nothing, model(**(given | {"audio": None})), atol=1e-5, rtol=1e-5)


@pytest.mark.numeric
def test_masked_attention_equals_attention_over_what_is_present():
    q, k, v = (torch.randn(2, n, 3, 8) for n in (5, 7, 7))
    valid = torch.arange(7).expand(2, -1) < 4
    out = few_keys_attention(q, k, v, valid)
    plain = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k[:, :4], v[:, :4])))
    torch.testing.assert_close(out, plain.transpose(1, 2))


@pytest.mark.numeric
def test_preview_accepts_a_feature_too_few_or_too_many(tiny_model, inputs):
    model = tiny_model("preview")
    given = inputs(model.cfg)
    extra = torch.cat([given["audio"], torch.ones(2, 2, 32)], dim=1)
    assert torch.equal(model(**(given | {"audio": extra})), model(**given))  # cut off before anything is computed
    assert torch.isfinite(model(**(given | {"audio": given["audio"][:, :-1]}))).all()


@pytest.mark.numeric
def test_riflex_changes_time_only(tiny_model, inputs):
    model = tiny_model("base")
    given = inputs(model.cfg, latent=(1, 4, 6))  # frame 0 is turned by an angle of 0, whatever the frequency
    assert torch.equal(model(**given, riflex=Riflex(length=9, k=1)), model(**given))
    given = inputs(model.cfg)
    assert not torch.equal(model(**given, riflex=Riflex(length=9, k=1)), model(**given))


@pytest.mark.parametrize("variant", ["whisper", "preview"])
def test_blocks_compile_to_one_graph(tiny_model, inputs, variant):
    model = tiny_model(variant)
    given = inputs(model.cfg)
    plain = model(**given)
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    out = model(**given)
    torch.testing.assert_close(out, plain, atol=1e-5, rtol=1e-5)
    out.mean().backward()


@pytest.mark.slow
def test_blocks_compile_with_inductor(tiny_model, inputs):
    model = tiny_model("whisper")
    given = inputs(model.cfg)
    plain = model(**given)
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(fullgraph=True)
    torch.testing.assert_close(model(**given), plain, atol=1e-4, rtol=1e-4)


def test_shapes_that_do_not_fit_are_named(tiny_model, inputs):
    model = tiny_model("whisper")
    given = inputs(model.cfg)
    for wrong, word in (
        ({"text": torch.zeros(2, 33, 64)}, "text"),
        ({"image": torch.zeros(2, 16, 48)}, "image"),
        ({"audio": torch.zeros(2, 9, 768)}, "audio.dim"),
        ({"x": given["x"][..., :5], "cond": given["cond"][..., :5]}, "patch"),
        ({"face_mask": torch.zeros(2, 5)}, "face mask"),
    ):
        with pytest.raises(EchoForgeError, match=word):
            model(**(given | wrong))
