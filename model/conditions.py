"""The 20 condition channels beside the noisy latents: 4 mask channels (1 = given), then 16 latents of the masked video.

The codec sees the video with the pixels to generate set to 0 in −1..1 (mid grey). Where nothing is given (T2V) all 20
channels are exact zeros, which is not the codec's grey.
"""

from __future__ import annotations

import torch
from torch import Tensor

from configs.errors import EchoForgeError
from model import masks
from model.codecs import Codec


def masked_video(video: Tensor, pixel_mask: Tensor) -> Tensor:
    """Video [..., 3, F, H, W] in −1..1 with the pixels to generate (mask [F, H, W] True) set to 0."""
    return video * ~pixel_mask.bool()


def encode_conditions(codec: Codec, videos: Tensor, task: str, boxes: Tensor | None = None) -> Tensor:
    """Latents [B, 16, T, h, w] of videos [B, 3, F, H, W] in which everything that ``task`` generates is grey.

    Args:
        boxes: for `lip_sync` of the mouth and for `avatar_sync` of the face, [F, 4] in pixels, NaN where absent. Without
            any box everything is to be generated: zeros.
    """
    given: dict[str, Tensor] = {}
    if boxes is not None:
        if not torch.isfinite(boxes).all(1).any():
            return torch.zeros_like(codec.encode(videos))
        given = {masks.BOXES[task]: boxes}
    mask = masks.pixel_mask(task, *videos.shape[2:], **given).to(videos.device)  # type: ignore[arg-type]
    return codec.encode(masked_video(videos, mask))


def condition(
    task: str,
    latents: Tensor,
    *,
    i2v: Tensor | None = None,
    flf2v_last: Tensor | None = None,
    lip: Tensor | None = None,
    avatar: Tensor | None = None,
    masked: Tensor | None = None,
    mask4: Tensor,
) -> Tensor:
    """Rebuild the condition [..., 20, T, h, w] of a task from what a shard stores.

    The codec is causal, so the first condition latent of I2V is the video's own, and FLF2V differs from I2V in its last
    latent only.

    Args:
        latents: the video, [..., 16, T, h, w].
        i2v: condition latents 1 … T−1 of I2V, [..., 16, T−1, h, w].
        flf2v_last: last condition latent of FLF2V, [..., 16, 1, h, w].
        lip, avatar: whole condition latents [..., 16, T, h, w].
        masked: latents of the masked video, encoded now, for any task (needed by `prefix`).
        mask4: from :func:`model.masks.latent_mask`, [..., 4, T, h, w].

    Raises:
        EchoForgeError: unknown task, or the stored field that it needs is not given.
    """
    if task == "t2v":
        return torch.zeros_like(torch.cat([mask4.to(latents), latents], dim=-4))
    if masked is None:
        masked = _from_stored(task, latents, i2v, flf2v_last, lip, avatar)
    return torch.cat([mask4.to(masked), masked], dim=-4)


def _from_stored(
    task: str, latents: Tensor, i2v: Tensor | None, last: Tensor | None, lip: Tensor | None, avatar: Tensor | None
) -> Tensor:
    if task == "i2v":
        return torch.cat([latents[..., :1, :, :], _need(i2v, task, "cond_i2v")], dim=-3)
    if task == "flf2v":
        middle = _need(i2v, task, "cond_i2v")[..., :-1, :, :]
        return torch.cat([latents[..., :1, :, :], middle, _need(last, task, "cond_flf2v_last")], dim=-3)
    if task == "lip_sync":
        return _need(lip, task, "cond_lip")
    if task == "avatar_sync":
        return _need(avatar, task, "cond_avatar")
    if task == "prefix":
        return _need(None, task, "latents of the masked video")
    raise EchoForgeError(f"task '{task}' is unknown.")


def _need(value: Tensor | None, task: str, name: str) -> Tensor:
    if value is None:
        raise EchoForgeError(
            f"task '{task}' needs {name}, which this sample does not have; encode it or add the field."
        )
    return value
