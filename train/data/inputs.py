"""From stored samples to what the network takes: the condition of each sample's task, and what was dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor
from torch.nn import functional as F

from configs import dataset_files
from configs.dataset_schema import PROMPTS_FILE
from configs.errors import EchoForgeError
from model import conditions, masks
from model.audio_variants import AUDIO_VARIANTS, AudioInputs
from model.config import Variant
from train import rng
from train.config import TasksConfig
from train.data.batch import Batch
from train.data.index import fetcher


@dataclass(frozen=True)
class Keep:
    """Which conditions of a sample are kept; what is dropped becomes the null condition of guidance."""

    text: bool = True
    image: bool = True
    audio: bool = True


@dataclass(frozen=True)
class Inputs:
    """A (micro-)batch as the network takes it, B samples; fp32 unless said otherwise.

    ``latents`` [B,16,T,h,w] is the video to learn (or to push away), ``real`` the stored one; ``cond`` [B,20,T,h,w];
    ``text`` [B,L,D], zero past each length; ``image`` [B,tokens,D]; ``audio`` as the variant takes it, or None;
    ``audio_valid`` bool [B,N]; ``face_mask`` bool [B,T,tokens of a frame], or None; ``generated`` [B,1,T,h,w], 1 where
    the task generates; ``weight`` [B], 0 for samples that must not count.
    """

    latents: Tensor
    real: Tensor
    cond: Tensor
    text: Tensor
    image: Tensor
    audio: Tensor | None
    audio_valid: Tensor | None
    face_mask: Tensor | None
    generated: Tensor
    weight: Tensor
    audio_frame0: int
    tasks: tuple[str, ...]
    places: tuple[int, ...]
    sample_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, part: slice) -> Inputs:
        return self._each(lambda value: value[part], sequences=True)

    def to(self, device: torch.device | str) -> Inputs:
        """The same on ``device``."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def _each(self, change: Any, sequences: bool = False) -> Inputs:
        kinds = (Tensor, tuple) if sequences else (Tensor,)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if isinstance(value, kinds)})


def read_prompts(dataset: str | Path) -> dict[str, Tensor]:
    """Embeddings of the null and the negative prompts, [L, D] fp32, from a local folder or a URL.

    Raises:
        EchoForgeError: the dataset has none, or it is not what was written.
    """
    root = str(dataset).rstrip("/")
    try:
        data = dataset_files.read_checked(fetcher(root), root, PROMPTS_FILE)
    except OSError as error:
        raise EchoForgeError(f"{dataset} has no readable {PROMPTS_FILE}; is it a dataset made by `shard`?") from error
    dataset_files.check_prompts(data, root)
    return {name: tensor.float() for name, tensor in load(data).items()}


def keep_of(seed: int, step: int, place: int, cfg: TasksConfig) -> Keep:
    """Which conditions the sample at ``place`` of global ``step`` keeps; independent draws."""

    def kept(name: str, rate: float) -> bool:
        return rng.uniform(seed, step, place, f"drop {name}") >= rate

    return Keep(kept("text", cfg.text_dropout), kept("image", cfg.image_dropout), kept("audio", cfg.audio_dropout))


def assemble(
    batch: Batch,
    keeps: Sequence[Keep],
    prompts: Mapping[str, Tensor],
    cfg: TasksConfig,
    *,
    text_len: int,
    variant: Variant,
    tasks: Sequence[str] | None = None,
    targets: Tensor | None = None,
) -> Inputs:
    """Network inputs of a batch, on the CPU.

    Args:
        keeps: per sample, what is kept.
        prompts: from :func:`read_prompts`; ``null`` replaces a dropped text.
        text_len: rows that the network takes at most; longer texts are cut.
        variant: audio path of the network; `base` takes no sound.
        tasks: per sample; default the batch's own.
        targets: latents to learn instead of the stored ones (negatives), [B,16,T,h,w].

    A `lip_sync` or `avatar_sync` sample without any box gets weight 0: there is nothing to mask.
    """
    tasks = tuple(tasks or batch.tasks)
    real = batch["latents"].float()
    weight = batch["weight"].float().clone() if "weight" in batch else torch.ones(len(batch))
    built = [_condition(batch, k, task, real[k]) for k, task in enumerate(tasks)]
    for k, (_, mask4) in enumerate(built):
        if mask4 is None:
            weight[k] = 0.0
    mask = torch.stack([torch.zeros_like(real[0, :4]) if m is None else m for _, m in built])
    heard = variant != "base" and "audio" in batch
    sound, valid, frame0 = _audio(batch, keeps, variant) if heard else (None, None, 0)
    return Inputs(
        latents=real if targets is None else targets.float(),
        real=real,
        cond=torch.stack([cond for cond, _ in built]),
        text=_text(batch, keeps, prompts, text_len),
        image=_image(batch, keeps, tasks),
        audio=sound,
        audio_valid=valid,
        face_mask=_face_mask(batch) if cfg.face_mask and "face_mask" in batch else None,
        generated=(mask.amin(1, keepdim=True) < 1).float(),
        weight=weight,
        audio_frame0=frame0,
        tasks=tasks,
        places=batch.places,
        sample_ids=batch.sample_ids,
    )


def _condition(batch: Batch, k: int, task: str, latents: Tensor) -> tuple[Tensor, Tensor | None]:
    """(cond [20, T, h, w], latent mask [4, T, h, w] or None where the sample cannot serve the task)."""
    boxes: dict[str, Any] = {}
    if name := masks.BOXES.get(task):
        boxes = {name: batch[name][k]}
        if not torch.isfinite(boxes[name]).all(-1).any():
            return latents.new_zeros(latents.shape[0] + 4, *latents.shape[1:]), None
    mask4 = masks.latent_mask(masks.pixel_mask(task, batch.frames, batch.height, batch.width, **boxes))

    def stored(field: str) -> Tensor | None:
        return batch[field][k].float() if field in batch else None

    cond = conditions.condition(
        task,
        latents,
        i2v=stored("cond_i2v"),
        flf2v_last=stored("cond_flf2v_last"),
        lip=stored("cond_lip"),
        avatar=stored("cond_avatar"),
        mask4=mask4,
    )
    return cond, mask4


def _text(batch: Batch, keeps: Sequence[Keep], prompts: Mapping[str, Tensor], text_len: int) -> Tensor:
    null = prompts["null"][:text_len]
    stored = batch["text"].float()[:, :text_len]
    rows = [stored[k] if keep.text else null for k, keep in enumerate(keeps)]
    longest = max(len(r) for r in rows)
    return torch.stack([F.pad(r, (0, 0, 0, longest - len(r))) for r in rows])


def _image(batch: Batch, keeps: Sequence[Keep], tasks: Sequence[str]) -> Tensor:
    """T2V has no reference image: zeros, as a dropped one."""
    kept = torch.tensor([keep.image and task != "t2v" for keep, task in zip(keeps, tasks, strict=True)])
    return batch["image"].float() * kept[:, None, None]


def _audio(batch: Batch, keeps: Sequence[Keep], variant: Variant) -> AudioInputs:
    """A dropped sound is all zeros."""
    kept = torch.tensor([keep.audio for keep in keeps])
    sound = batch["audio"].float()
    sound = sound * kept.view(-1, *[1] * (sound.dim() - 1))
    rate = round(batch.tokens_per_frame)
    return AUDIO_VARIANTS[variant].inputs(sound, batch["audio_valid"], batch.audio_frame0, batch.frames, rate)


def _face_mask(batch: Batch) -> Tensor:
    side = masks.PATCH_PX
    cells = -(-batch.height // side) * -(-batch.width // side)
    grids = [masks.to_latent_frames(masks.unpack_bits(bits, cells)) for bits in batch["face_mask"]]
    return torch.stack(grids)
