"""The table of tasks, pixel to latent, and the face mask on latent frames.

Compared exactly: masks hold 0, 1 and halves of them, and conditions are copies of what is stored.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from configs.errors import EchoForgeError
from model import conditions, masks

F, H, W = 113, 32, 48
pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("t2v", {}),
        ("i2v", {0: (1, 1, 1, 1)}),
        ("flf2v", {0: (1, 1, 1, 1), 28: (0, 0, 0, 1)}),
        ("prefix", {0: (1, 1, 1, 1), 1: (1, 1, 1, 1), 2: (1, 1, 1, 0)}),
    ],
)
def test_whole_frame_tasks(task, expected):
    mask = masks.latent_mask(masks.pixel_mask(task, F, H, W, prefix=8))
    assert mask.shape == (4, 29, 4, 6)
    for i in range(29):
        assert torch.equal(
            mask[:, i], torch.tensor(expected.get(i, (0, 0, 0, 0))).view(4, 1, 1).expand(4, 4, 6).float()
        )


def test_a_thin_mouth_never_vanishes_and_moves():
    boxes = torch.tensor([[1.0 + 2 * i, 10.0, 3.0 + 2 * i, 11.0] for i in range(9)])
    boxes[4] = torch.nan
    mask = masks.pixel_mask("lip_sync", 9, H, W, mouth_boxes=boxes)
    for i in (0, 3, 8):
        x0, y0, x1, y1 = boxes[i].int().tolist()
        assert mask[i, y0:y1, x0:x1].all()
    assert mask[4].any()  # takes a neighbour's box
    given = masks.latent_mask(mask)
    assert set(given.unique().tolist()) == {0.0, 1.0}
    assert (given.flatten(2) == 0).any(-1).all()


def test_bilinear_sampling_of_arbitrary_masks():
    mask = torch.ones(1, 16, 16, dtype=torch.bool)
    mask[0, :4] = False  # the edge runs through the middle of the first row of cells
    assert masks.latent_mask(mask)[0, 0].tolist() == [[0.5, 0.5], [0.0, 0.0]]


def test_face_tokens_join_the_frames_of_a_latent():
    boxes = torch.full((9, 4), torch.nan)
    boxes[0] = torch.tensor([0.0, 0, 16, 16])
    boxes[1] = torch.tensor([17.0, 0, 18, 1])
    boxes[4] = torch.tensor([40.0, 20, 48, 32])
    tokens = masks.face_token_mask(boxes, 9, H, W)
    assert tokens.int().tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1], [0] * 6]


def test_bits_are_numpys():
    grid = torch.rand(5, 3, 7) > 0.5
    packed = masks.pack_bits(grid)
    assert np.array_equal(packed.numpy(), np.packbits(grid.flatten(1).numpy(), axis=1))
    assert torch.equal(masks.unpack_bits(packed, 21), grid.flatten(1))


def test_tasks_name_what_they_lack():
    for task, word in (
        ("lip_sync", "mouth_boxes"),
        ("avatar_sync", "face_boxes"),
        ("prefix", "prefix"),
        ("x", "unknown"),
    ):
        with pytest.raises(EchoForgeError, match=word):
            masks.pixel_mask(task, 9, H, W)
    with pytest.raises(EchoForgeError, match="absent"):
        masks.pixel_mask("lip_sync", 9, H, W, mouth_boxes=torch.full((9, 4), torch.nan))
    with pytest.raises(EchoForgeError, match="4k\\+1"):
        masks.latent_frames(8)


def test_conditions_are_rebuilt_from_what_is_stored():
    full = {name: torch.randn(16, 3, 2, 2) for name in ("latents", "lip")}
    i2v, last, mask4 = torch.randn(16, 2, 2, 2), torch.randn(16, 1, 2, 2), torch.ones(4, 3, 2, 2)

    def build(task, **kwargs):
        return conditions.condition(task, full["latents"], mask4=mask4, **kwargs)

    assert torch.equal(build("t2v"), torch.zeros(20, 3, 2, 2))
    assert torch.equal(build("i2v", i2v=i2v)[4:], torch.cat([full["latents"][:, :1], i2v], 1))
    flf = build("flf2v", i2v=i2v, flf2v_last=last)
    assert torch.equal(flf[4:], torch.cat([full["latents"][:, :1], i2v[:, :1], last], 1))
    assert torch.equal(build("lip_sync", lip=full["lip"]), torch.cat([mask4, full["lip"]]))
    for task in ("i2v", "flf2v", "lip_sync", "avatar_sync", "prefix"):
        with pytest.raises(EchoForgeError, match=task):
            build(task)


def test_masked_pixels_are_mid_grey():
    video, mask = torch.rand(3, 5, H, W) + 0.1, masks.pixel_mask("i2v", 5, H, W)
    masked = conditions.masked_video(video, mask)
    assert torch.equal(masked[:, 0], video[:, 0])
    assert masked[:, 1:].eq(0).all()
