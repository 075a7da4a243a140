"""Which audio features belong to which latent frame (paper, "Audio Segments" and the alignment after it).

Everything follows from the number of latent frames T, never from the number of features: an encoder returns a feature
more or less than 2·F, and the released code fails on clips cut exactly to 4k+1 frames because it counts those.
"""

from __future__ import annotations

import torch
from torch import Tensor

from configs.errors import EchoForgeError
from model.config import AudioNetConfig


def video_frames(latent_frames: int, reduction: int = 4) -> int:
    """F = r(T−1) + 1."""
    return reduction * (latent_frames - 1) + 1


def segment_windows(latent_frames: int, cfg: AudioNetConfig) -> Tensor:
    """Feature numbers of each latent frame's window: int64 [T, 2(r+e)+1]; 0 is the first feature of video frame 0.

    The sound is cut evenly into segments of r·α features that end with their latent frame; segment i covers
    [α(r(i−1)+1), α(ri+1)), so segment 0 reaches back before the clip. The centre is the lower middle of a segment, and
    the window reaches r+e features to both sides. Released sizes (r 4, α 2, e 4): [8i−11, 8i+5], 17 features; these are
    the numbers of the released preview as well. Numbers below 0 or beyond the clip are real sound where it is stored.
    """
    step = cfg.reduction * cfg.tokens_per_frame
    end = cfg.tokens_per_frame * (cfg.reduction * torch.arange(latent_frames) + 1)
    centre = end - step // 2 - 1
    reach = cfg.reduction + cfg.overlap
    return centre[:, None] + torch.arange(-reach, reach + 1)


def gather_windows(
    features: Tensor, index: Tensor, frame0: int | Tensor = 0, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Take the windows out of a row of features.

    Args:
        features: [B, N, D].
        index: [T, K] from :func:`segment_windows`.
        frame0: row of the first feature of video frame 0, one number or int64 [B].
        valid: bool [B, N], False for rows that are padding.

    Returns:
        Windows [B, T, K, D], zeros where there is no feature, and bool [B, T, K], True where there is one.
    """
    batch, count, _ = features.shape
    start = torch.as_tensor(frame0, device=features.device).expand(batch)
    rows = index.to(features.device)[None] + start[:, None, None]
    present = (rows >= 0) & (rows < count)
    flat = rows.clamp(0, count - 1).flatten(1)
    if valid is not None:
        present = present & valid.gather(1, flat).view_as(present)
    windows = features.gather(1, flat[..., None].expand(-1, -1, features.shape[-1])).unflatten(1, index.shape)
    return windows * present[..., None], present


def neighbourhoods(features: Tensor, window: int = 5) -> Tensor:
    """Flash: features of each video frame's neighbours, [F, L, A] → [F, window, L, A]; clamped at the ends."""
    frames = features.shape[0]
    offset = torch.arange(window, device=features.device) - window // 2
    rows = torch.arange(frames, device=features.device)[:, None] + offset
    return features[rows.clamp(0, frames - 1)]


def flash_groups(features: Tensor, reduction: int = 4) -> tuple[Tensor, Tensor]:
    """Flash: the neighbourhoods that feed each latent frame.

    Of a later latent frame's r video frames, the first gives its past and itself, the middle ones themselves, the last
    itself and its future: 8 slots of 5-frame windows, video frames 4i−5 … 4i+2.

    Args:
        features: [B, F, window, L, A] with F = r(T−1) + 1.

    Returns:
        [B, 1, window, L, A] for latent frame 0 and [B, T−1, window+r−1, L, A] for the others.

    Raises:
        EchoForgeError: F is not of that form.
    """
    frames, window = features.shape[1:3]
    if frames % reduction != 1:
        raise EchoForgeError(f"flash audio has {frames} video frames; use {reduction}k+1.")
    centre = window // 2
    later = features[:, 1:].unflatten(1, ((frames - 1) // reduction, reduction))
    slots = [later[:, :, 0, : centre + 1], later[:, :, 1:-1, centre], later[:, :, -1, centre:]]
    return features[:, :1], torch.cat(slots, dim=2)
