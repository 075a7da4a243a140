"""Windows from the latent length: the released numbers, and clips cut exactly to 4k+1 frames."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.audio_projection import WhisperProjection
from model.audio_windows import flash_groups, gather_windows, neighbourhoods, segment_windows
from model.config import AudioNetConfig

pytestmark = pytest.mark.numeric


def test_released_ranges():
    index = segment_windows(29, AudioNetConfig(dim=1))
    assert index.shape == (29, 17)
    for i in (0, 1, 28):
        assert index[i].tolist() == list(range(8 * i - 11, 8 * i + 6))


def test_ranges_follow_the_paper_for_other_rates():
    cfg = AudioNetConfig(dim=1, tokens_per_frame=4, reduction=4, overlap=2)
    index = segment_windows(3, cfg)
    assert index.shape == (3, 2 * (4 + 2) + 1)
    segment = range(4 * 5, 4 * 9)  # video frames 5 … 8
    assert index[2, 6].item() == segment[len(segment) // 2 - 1]
    assert (index.diff(dim=0) == 16).all()


def test_225_features_make_29_windows():
    """113 frames exactly: wav2vec2 gives 225 features, one less than two a frame."""
    features = torch.arange(1.0, 226.0).view(1, 225, 1)
    windows, present = gather_windows(features, segment_windows(29, AudioNetConfig(dim=1)))
    assert windows.shape == (1, 29, 17, 1)
    assert present[0].sum(-1).tolist() == [6, 14, *[17] * 26, 12]
    assert sorted(windows[0, 0, :, 0].tolist()) == [0] * 11 + [1, 2, 3, 4, 5, 6]
    assert windows[0, 28, :12, 0].tolist() == list(range(214, 226))


def test_flash_slots():
    frames = 113
    numbers = torch.arange(frames).float().view(frames, 1, 1)
    first, later = flash_groups(neighbourhoods(numbers)[None])
    assert first.flatten().tolist() == [0, 0, 0, 1, 2]
    assert later[0, 0].flatten().tolist() == [0, 0, 1, 2, 3, 4, 5, 6]
    assert later[0, 1].flatten().tolist() == list(range(3, 11))
    assert later[0, 27].flatten().tolist() == [107, 108, 109, 110, 111, 112, 112, 112]
    assert flash_groups(neighbourhoods(numbers[:1])[None])[1].shape[1] == 0


@pytest.mark.parametrize("positions", ["none", "sinusoidal"])
def test_the_order_in_a_window_counts_only_with_positions(positions):
    """Two sounds whose windows hold the same features in another order give the same set of tokens, or another one."""
    torch.manual_seed(0)
    cfg = dataclasses.replace(AudioNetConfig(dim=8, hidden=16), positions=positions)
    projection = WhisperProjection(cfg, dim=32)
    sound = torch.randn(1, 17, 8)  # frame 0 at row 11: the first window is exactly these rows
    tokens, swapped = (projection(x, 1, 11, None).tokens for x in (sound, sound.flip(1)))
    same = torch.allclose(tokens.sort(dim=2).values, swapped.sort(dim=2).values, atol=1e-6)
    assert same == (positions == "none")
