"""From a loader's batch to what the network is called with: task masks, rebuilt conditions, dropped modalities.

Everything here is a pure function of the batch and of the draws; nothing depends on rank, device or world size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from configs.errors import EchoForgeError
from model import conditions, masks
from train import draws
from train.assembly import TASK_FIELDS, Batch
from train.config import TasksConfig

NULL_PROMPT = "null"  # name in prompts.safetensors: the embedding of the empty caption


@dataclass(frozen=True)
class Keep:
    """Which conditions a slot keeps; a dropped one is replaced by its null embedding, as guidance does when sampling."""

    text: bool = True
    image: bool = True
    audio: bool = True


@dataclass(frozen=True)
class Inputs:
    """A micro-batch, everything but noise and time. B samples of one bucket; T, h, w latent sizes; all floats fp32.

    Attributes:
        latents: [B, C, T, h, w], the clean video.
        cond: [B, 4 + C, T, h, w], mask channels and masked latents.
        generated: [B, 1, T, h, w], 1 where the loss counts (the network generates), 0 where the latent was given.
        weight: [B], 0 for places that must not count.
        text: [B, text_len, D], zero rows past each caption's end.
        image: [B, K, D]; zeros where dropped.
        audio: the variant's layout (see ``EchoMimicTransformer.forward``); zeros where dropped. None without audio.
        audio_valid: [B, N] bool, or None where the variant does not mask.
        face_mask: [B, T, tokens] bool, or None.
        audio_frame0: row of the first token of video frame 0.
        tasks, sample_ids, places: one per sample; places in the global batch.
    """

    latents: Tensor
    cond: Tensor
    generated: Tensor
    weight: Tensor
    text: Tensor
    image: Tensor
    audio: Tensor | None
    audio_valid: Tensor | None
    face_mask: Tensor | None
    audio_frame0: int
    tasks: tuple[str, ...]
    sample_ids: tuple[str, ...]
    places: tuple[int, ...]

    def to(self, device: torch.device) -> Inputs:
        """The same on ``device``."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def __getitem__(self, span: slice) -> Inputs:
        """A part of the samples."""
        cut: dict[str, Any] = {
            f.name: value[span] for f in fields(self) if isinstance(value := getattr(self, f.name), (Tensor, tuple))
        }
        return replace(self, **cut)

    def __len__(self) -> int:
        return self.latents.shape[0]


def task_of(seed: int, step: int, place: int, mix: Mapping[str, float]) -> str:
    """The task of one place of a global batch."""
    return draws.choice(mix, seed, step, place, "task")


def keep_of(seed: int, step: int, place: int, cfg: TasksConfig) -> Keep:
    """The dropped conditions of one place; the three draws are independent of each other and of the task."""
    return Keep(
        text=draws.uniform(seed, step, place, "drop text") >= cfg.text_dropout,
        image=draws.uniform(seed, step, place, "drop image") >= cfg.image_dropout,
        audio=draws.uniform(seed, step, place, "drop audio") >= cfg.audio_dropout,
    )


def assemble(
    batch: Batch,
    keeps: Sequence[Keep],
    prompts: Mapping[str, Tensor],
    cfg: TasksConfig,
    *,
    text_len: int,
    audio: bool,
    tasks: Sequence[str] | None = None,
    targets: Tensor | None = None,
) -> Inputs:
    """Build the network's inputs.

    Args:
        batch: stored tensors, stacked.
        keeps: one per sample.
        prompts: embeddings [L, D] by name; ``null`` replaces a dropped caption.
        cfg: section ``tasks``.
        text_len: rows of the text tensor.
        audio: the network has an audio expert.
        tasks: instead of the batch's own.
        targets: videos [B, C, T, h, w] to learn instead of the samples' own (the sampled latents of negatives); the
            conditions stay the samples'.

    Raises:
        EchoForgeError: the batch lacks a tensor that a task needs.
    """
    tasks = tuple(batch.tasks if tasks is None else tasks)
    visual = [_visual(batch, i, task) for i, task in enumerate(tasks)]
    kept = {name: torch.tensor([getattr(k, name) for k in keeps]) for name in ("text", "image", "audio")}
    sound = _need(batch, "audio", tasks[0]) if audio else None
    image = _need(batch, "image", tasks[0])
    return Inputs(
        latents=(batch["latents"] if targets is None else targets).float(),
        cond=torch.stack([cond for cond, _ in visual]),
        generated=torch.stack([generated for _, generated in visual]),
        weight=batch["weight"],
        text=_text(batch, kept["text"], prompts, text_len),
        image=torch.where(_column(kept["image"], image), image.float(), 0.0),
        audio=None if sound is None else torch.where(_column(kept["audio"], sound), sound.float(), 0.0),
        audio_valid=batch["audio_valid"] if sound is not None and sound.ndim == 3 else None,
        face_mask=_face_masks(batch, tasks[0]) if cfg.face_mask and audio else None,
        audio_frame0=batch.audio_frame0,
        tasks=tasks,
        sample_ids=batch.sample_ids,
        places=batch.places,
    )


def _need(batch: Batch, name: str, task: str) -> Tensor:
    if name not in batch:
        raise EchoForgeError(
            f"the samples of bucket {batch.bucket} have no tensor '{name}', which task '{task}' needs; "
            "write it when sharding, or take the task out of the mix."
        )
    return batch[name]


def _column(flags: Tensor, like: Tensor) -> Tensor:
    return flags.view(-1, *([1] * (like.ndim - 1)))


def _visual(batch: Batch, i: int, task: str) -> tuple[Tensor, Tensor]:
    """cond [4 + C, T, h, w] and generated [1, T, h, w] of sample ``i``."""
    stored = {name: _need(batch, name, task)[i].float() for name in TASK_FIELDS[task]}
    pixels = masks.pixel_mask(
        task,
        batch.frames,
        batch.height,
        batch.width,
        face_boxes=_need(batch, "face_boxes", task)[i] if task == "avatar_sync" else None,
        mouth_boxes=_need(batch, "mouth_boxes", task)[i] if task == "lip_sync" else None,
    )
    mask4 = masks.latent_mask(pixels)
    cond = conditions.condition(
        task,
        batch["latents"][i].float(),
        i2v=stored.get("cond_i2v"),
        flf2v_last=stored.get("cond_flf2v_last"),
        lip=stored.get("cond_lip"),
        avatar=stored.get("cond_avatar"),
        mask4=mask4,
    )
    return cond.float(), (mask4.amin(dim=0, keepdim=True) < 0.5).float()


def _text(batch: Batch, kept: Tensor, prompts: Mapping[str, Tensor], text_len: int) -> Tensor:
    def padded(rows: Tensor) -> Tensor:
        rows = rows[..., :text_len, :].float()
        return F.pad(rows, (0, 0, 0, text_len - rows.shape[-2]))

    return torch.where(_column(kept, batch["text"]), padded(batch["text"]), padded(prompts[NULL_PROMPT]))


def _face_masks(batch: Batch, task: str) -> Tensor:
    boxes = _need(batch, "face_boxes", task)
    return torch.stack([masks.face_token_mask(b, batch.frames, batch.height, batch.width) for b in boxes])
