"""Pixels as the codec takes them, and the latents of what a task keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from configs import schema
from model import conditions, masks, pixels
from model.codecs import load_codec


@pytest.mark.parametrize("shape", [(2, 4, 6), (3, 1, 4, 6)])
def test_every_byte_comes_back_and_what_lies_outside_is_clipped(shape: tuple[int, ...]) -> None:
    frames = np.resize(np.arange(256, dtype=np.uint8), (*shape, 3))
    video = pixels.from_bytes(frames)
    assert video.dtype == torch.float32 and video.shape == (*shape[:-3], 3, *shape[-3:])
    assert float(video.min()) >= -1 and float(video.max()) <= 1
    assert np.array_equal(pixels.to_bytes(video), frames)
    assert np.array_equal(pixels.to_bytes(torch.full((3, 1, 1, 1), 1.5)), np.full((1, 1, 1, 3), 255))


def test_what_a_task_generates_is_grey_and_without_any_box_nothing_is_known() -> None:
    codec = load_codec(schema.load("tiny").model.codec)
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    mouth = torch.tensor([[8.0, 8, 24, 24]]).expand(9, 4)
    given = conditions.encode_conditions(codec, video, "lip_sync", mouth)
    hidden = video.clone()
    hidden[masks.pixel_mask("lip_sync", 9, 32, 32, mouth_boxes=mouth).expand_as(video)] = 0
    assert torch.equal(given, codec.encode(hidden)) and not torch.equal(given, codec.encode(video))
    assert not conditions.encode_conditions(codec, video, "lip_sync", torch.full((9, 4), float("nan"))).any()
