"""The stand-in encoders, and the slicing that every audio encoder shares.

Words are looked up and slices are copies, so both are compared exactly; what is computed has a tolerance.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from configs import schema
from configs.errors import EchoForgeError
from model.audio_variants import AUDIO_VARIANTS
from model.encoders import load_audio_encoder, load_image_encoder, load_text_encoder, pad_text

MODEL = schema.load("tiny").model
TEXT, IMAGE, AUDIO = (
    load_text_encoder(MODEL.text_encoder),
    load_image_encoder(MODEL.image_encoder),
    load_audio_encoder(MODEL.audio_encoder),
)


pytestmark = pytest.mark.numeric


def test_words_are_told_apart_and_case_is_not() -> None:
    red, blue, shout, empty = TEXT.encode(["a red hat", "a blue hat", "A red, HAT!", ""])
    assert red.shape == (4, 64) and empty.shape == (1, 64)
    assert torch.equal(red, shout)
    assert torch.equal(red[0], blue[0]) and not torch.allclose(red[1], blue[1])
    assert pad_text([red, empty]).shape == (2, 4, 64) and not pad_text([red, empty])[1, 1:].any()


def test_long_text_is_cut_to_the_transformers_length() -> None:
    assert len(TEXT.encode(["word " * 500])[0]) == MODEL.transformer.text_len


def test_image_tokens_say_which_colour_is_where() -> None:
    picture = torch.full((1, 3, 96, 64), -1.0)
    picture[:, 0, 72:, 48:] = 1.0
    tokens = IMAGE.encode(picture)
    assert tokens.shape == (1, MODEL.transformer.image_tokens, MODEL.transformer.image_dim)
    assert (tokens[0, 1:].amax(1) > 0).nonzero().flatten().tolist() == [15]


def tone(seconds: float, level: float = 0.3) -> np.ndarray:
    time = np.arange(int(16000 * seconds)) / 16000
    return (level * np.sin(2 * np.pi * 220 * time) * (np.sin(2 * np.pi * time) > 0)).astype(np.float32)


def test_two_features_a_frame_whatever_the_loudness() -> None:
    features = AUDIO.encode(tone(1.32))
    assert features.shape == (66, MODEL.transformer.audio.dim) and features.isfinite().all()
    torch.testing.assert_close(features, AUDIO.encode(tone(1.32, 0.05)), atol=1e-3, rtol=0)
    assert features[:20, 0].min() > features[30:45, 0].max() + 0.3  # a tone, then silence


def test_silence_is_quiet() -> None:
    assert (AUDIO.encode(np.zeros(6400, np.float32))[:, 0] < AUDIO.encode(tone(0.4))[:, 0].min() + 1e-3).all()


def test_a_slice_is_the_same_rows_wherever_it_is_cut() -> None:
    features = AUDIO.encode(tone(4.0))
    assert len(features) == 200
    cut = AUDIO.slice(features, 30, 33, 8)
    assert (cut.frame0, cut.tokens_per_frame, cut.valid, len(cut.tokens)) == (16, 2, (0, 98), 98)
    assert torch.equal(cut.tokens[cut.frame0], features[60])
    edge = AUDIO.slice(features, 0, 97, 8)
    assert edge.valid == (16, 216) and len(edge.tokens) == 226
    assert not edge.tokens[:16].any() and torch.equal(edge.tokens[16:216], features)
    assert edge.mask.sum() == 200
    outside = AUDIO.slice(features, 500, 33, 8)
    assert outside.valid == (0, 0) and not outside.tokens.any()


def test_what_each_variant_hears() -> None:
    cut = AUDIO.slice(AUDIO.encode(tone(4.0)), 10, 33, 8)
    given = cut.tokens[None], cut.mask[None], cut.frame0, 33, 2
    rows, valid, frame0 = AUDIO_VARIANTS["whisper"].inputs(*given)
    assert rows.shape[1] == 98 and valid is not None and valid.all() and frame0 == 16
    rows, valid, frame0 = AUDIO_VARIANTS["preview"].inputs(*given)
    assert torch.equal(rows[0], cut.tokens[16:82]) and valid is None and frame0 == 0
    layers = torch.randn(1, 49, 12, 8)
    rows, _, _ = AUDIO_VARIANTS["flash"].inputs(layers, torch.ones(1, 49, dtype=torch.bool), 8, 33, 1)
    assert rows.shape == (1, 33, 5, 12, 8) and torch.equal(rows[0, 10, 2], layers[0, 18])


@pytest.mark.parametrize("bad", [np.zeros((2, 100), np.float32), np.zeros(0, np.float32)])
def test_no_sound_or_two_channels_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(EchoForgeError, match="one channel"):
        AUDIO.encode(bad)


def test_stand_ins_say_so() -> None:
    assert all("stand-in" in encoder.name and len(encoder.digest) == 16 for encoder in (TEXT, IMAGE, AUDIO))
