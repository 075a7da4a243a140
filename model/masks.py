"""Soup-of-Tasks as masks: each task is a pattern of what is given and what is to be generated (section 3.2, Fig. 2).

Pixel masks are bool [F, H, W], True = generate. Latent masks are float32 [4, T, h, w], 1 = given: the four sub-frames
of a latent frame are its channels. Boxes are float [F, 4] = (x0, y0, x1, y1) in pixels, half-open, NaN where absent;
this package detects nothing. F = 4(T−1) + 1, and latent frame i > 0 stands for video frames 4i−3 … 4i.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.errors import EchoForgeError

TASKS = ("t2v", "i2v", "flf2v", "prefix", "lip_sync", "avatar_sync")
PATCH_PX = 16  # one token of the transformer: 8 (codec) times 2 (patch)
TEMPORAL = 4  # video frames per latent frame
SPATIAL = 8  # pixels per latent cell
BOXES = {"lip_sync": "mouth_boxes", "avatar_sync": "face_boxes"}
"""What is generated in every frame, by task."""


def pixel_mask(
    task: str,
    frames: int,
    height: int,
    width: int,
    *,
    face_boxes: Tensor | None = None,
    mouth_boxes: Tensor | None = None,
    prefix: int | None = None,
    patch_px: int = PATCH_PX,
) -> Tensor:
    """What the task generates: bool [F, H, W], True = generate.

    `t2v` everything; `i2v` all but frame 0; `flf2v` all but the first and the last; `prefix` all but the first
    ``prefix`` frames; `lip_sync` the mouth, and `avatar_sync` the face, in every frame. Boxes are snapped outwards to
    the patch grid, so that a thin mouth never falls between the samples of :func:`latent_mask`; a frame without a box
    takes the nearest frame's.

    Raises:
        EchoForgeError: unknown task, or what the task needs is not given.
    """
    mask = torch.ones(frames, height, width, dtype=torch.bool)
    if task == "t2v":
        return mask
    if task == "i2v":
        mask[0] = False
    elif task == "flf2v":
        mask[[0, -1]] = False
    elif task == "prefix":
        if prefix is None or not 0 < prefix < frames:
            raise EchoForgeError(f"task 'prefix' needs prefix between 1 and {frames - 1} frames, got {prefix}.")
        mask[:prefix] = False
    elif name := BOXES.get(task):
        boxes = mouth_boxes if name == "mouth_boxes" else face_boxes
        if boxes is None:
            raise EchoForgeError(f"task '{task}' needs {name}, one per video frame.")
        grid = box_grid(nearest_boxes(boxes, name), frames, height, width, patch_px)
        mask = grid_to_pixels(grid, height, width, patch_px)
    else:
        raise EchoForgeError(f"task '{task}' is unknown; known here: {', '.join(TASKS)}.")
    return mask


def latent_mask(mask: Tensor) -> Tensor:
    """Pixel mask [F, H, W] (True = generate) → float32 [4, T, H/8, W/8], 1 = given.

    Frame 0 is repeated four times, every four frames become the channels of one latent frame, and each cell takes the
    bilinear sample at its centre: the mean of the 2×2 pixels in the middle of its 8×8 block, as released.
    """
    frames, height, width = mask.shape
    given = 1 - torch.cat([mask[:1].expand(TEMPORAL, -1, -1), mask[1:]]).float()
    small = F.interpolate(given[None], (height // SPATIAL, width // SPATIAL), mode="bilinear", align_corners=False)[0]
    return small.unflatten(0, (latent_frames(frames), TEMPORAL)).transpose(0, 1).contiguous()


def face_token_mask(boxes: Tensor, frames: int, height: int, width: int, patch_px: int = PATCH_PX) -> Tensor:
    """M_face: bool [T, tokens of a frame], True where the audio expert may act.

    A token is inside when the box of any of its latent frame's video frames touches it; without boxes, it is outside.
    The released preview uses one static box for all frames; this is its superset.
    """
    return to_latent_frames(box_grid(boxes, frames, height, width, patch_px)).flatten(1)


def box_grid(boxes: Tensor, frames: int, height: int, width: int, patch_px: int = PATCH_PX) -> Tensor:
    """Boxes [F, 4] → bool [F, H/patch, W/patch]: the patches that each box touches; all False where it is NaN."""
    if boxes.shape != (frames, 4):
        raise EchoForgeError(f"boxes must be [{frames}, 4], one per video frame; got {list(boxes.shape)}.")
    x0, y0, x1, y1 = boxes.float().unbind(-1)
    rows = torch.arange(height // patch_px) * patch_px
    columns = torch.arange(width // patch_px) * patch_px
    inside_y = (rows < y1[:, None]) & (rows + patch_px > y0[:, None])
    inside_x = (columns < x1[:, None]) & (columns + patch_px > x0[:, None])
    return inside_y[:, :, None] & inside_x[:, None, :]


def grid_to_pixels(grid: Tensor, height: int, width: int, patch_px: int = PATCH_PX) -> Tensor:
    """Patch grid bool [F, h, w] → pixel mask bool [F, H, W]."""
    return grid.repeat_interleave(patch_px, 1).repeat_interleave(patch_px, 2)[:, :height, :width]


def to_latent_frames(grid: Tensor) -> Tensor:
    """Per video frame [F, …] → per latent frame bool [T, …]: True where any of its video frames is."""
    return torch.cat([grid[:1], grid[1:].unflatten(0, (-1, TEMPORAL)).any(1)])


def latent_frames(frames: int) -> int:
    """T of F = 4(T−1) + 1 video frames.

    Raises:
        EchoForgeError: F is not of that form.
    """
    if frames % TEMPORAL != 1:
        raise EchoForgeError(f"a clip of {frames} frames has no whole number of latent frames; use 4k+1 frames.")
    return (frames - 1) // TEMPORAL + 1


def nearest_boxes(boxes: Tensor, name: str = "boxes") -> Tensor:
    """Boxes [F, 4] with each missing (NaN) row replaced by the nearest present one.

    Raises:
        EchoForgeError: none is present.
    """
    present = torch.isfinite(boxes).all(-1).nonzero().squeeze(-1)
    if len(present) == 0:
        raise EchoForgeError(f"{name} are all absent: this clip cannot serve a task that needs them.")
    frame = torch.arange(len(boxes))
    return boxes[present[(frame[:, None] - present).abs().argmin(1)]]


_BIT = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)


def pack_bits(mask: Tensor) -> Tensor:
    """Bool [F, …] → uint8 [F, ceil(n/8)], most significant bit first (as ``numpy.packbits``)."""
    flat = mask.flatten(1).to(torch.uint8)
    flat = F.pad(flat, (0, -flat.shape[1] % 8))
    return (flat.unflatten(1, (-1, 8)) * _BIT).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """Inverse of :func:`pack_bits`: uint8 [F, m] → bool [F, count]."""
    return (packed[..., None] & _BIT).ne(0).flatten(1)[:, :count]
