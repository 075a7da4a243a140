"""What a batch holds, and the memory that its samples are read into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from configs.errors import EchoForgeError
from train.data.index import BadSample, SampleRecord, TensorRef

TASK_FIELDS: dict[str, tuple[str, ...]] = {
    "t2v": (),
    "i2v": ("cond_i2v",),
    "flf2v": ("cond_i2v", "cond_flf2v_last"),
    "prefix": ("cond_i2v",),
    "lip_sync": ("cond_lip",),
    "avatar_sync": ("cond_avatar",),
}
"""What each task needs beside the latents."""
IF_PRESENT = ("image", "face_boxes", "mouth_boxes", "face_mask", "mouth_mask")
"""Read for every task when the dataset has them."""

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch; ``b`` samples of one bucket.

    ``tensors`` (CPU, pinned where a GPU is in use; F video frames, T = 1 + (F − 1) / 4 latent frames):
    ``latents`` [b,16,T,h,w] bf16; ``cond_i2v`` [b,16,T−1,h,w], ``cond_flf2v_last`` [b,16,1,h,w], ``cond_lip`` and
    ``cond_avatar`` [b,16,T,h,w] bf16, present when a task of the loader needs them and zero for samples whose own
    task does not; ``text`` [b,L,D] bf16, zero past ``text_lens`` [b] i64; ``image`` [b,tokens,D] bf16; ``audio``
    [b,N,…] with ``audio_valid`` [b,N] bool, row ``audio_frame0`` being the first token of video frame 0;
    ``face_boxes`` and ``mouth_boxes`` [b,F,4] f32, bucket pixels, NaN where absent; ``face_mask`` and ``mouth_mask``
    [b,F,n] u8, bit-packed on the 16-px grid; ``weight`` [b] f32, 0 for places that must not count in the loss.
    """

    step: int
    epoch: int
    bucket: str
    frames: int
    height: int
    width: int
    places: tuple[int, ...]  # in the global batch
    sample_ids: tuple[str, ...]
    tasks: tuple[str, ...]  # one per sample; empty strings when the loader was given no function of tasks
    captions: tuple[int, ...]  # which caption's embedding ``text`` holds
    audio_frame0: int
    tokens_per_frame: float
    skipped: tuple[str, ...]  # why places were given weight 0, one sentence each
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __len__(self) -> int:
        return len(self.sample_ids)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device`` (asynchronously from pinned memory)."""
        return replace(self, tensors={k: v.to(device, non_blocking=True) for k, v in self.tensors.items()})


Read = tuple[TensorRef, Tensor]
"""One tensor to be read and the place in the batch where its bytes go."""


class Assembly:
    """Lays samples of one bucket side by side: allocates the batch and says what must be read where."""

    def __init__(self, layout: Layout, tasks: Sequence[str], *, bucket: str, audio: str, pin: bool):
        """``layout``: what the bucket's samples hold. Raises EchoForgeError when the tasks need more than that."""
        if unknown := [task for task in tasks if task not in TASK_FIELDS]:
            raise EchoForgeError(f"task '{unknown[0]}' is unknown; known: {', '.join(TASK_FIELDS)}.")
        needed = dict.fromkeys(["latents", *(name for task in tasks for name in TASK_FIELDS[task])])
        if missing := [name for name in needed if name not in layout]:
            raise EchoForgeError(
                f"bucket {bucket} holds no '{missing[0]}', which the tasks {', '.join(tasks)} need: "
                f"add it with `shards add {missing[0]}`, or leave the task out."
            )
        self.fields = tuple(needed) + tuple(name for name in IF_PRESENT if name in layout)
        self._layout, self._bucket, self._pin = layout, bucket, pin
        self._variant, self._audio = audio, f"audio.{audio}"
        self.has_text, self.has_audio = "text.0" in layout, self._audio in layout

    def check(self, record: SampleRecord, caption: int) -> None:
        """Raises BadSample when ``record`` cannot lie in one batch with the rest of its bucket."""
        for name in self.fields:
            ref = record.tensors.get(name)
            if ref is None or (ref.dtype, ref.shape) != self._layout[name]:
                found = "is missing" if ref is None else f"is {list(ref.shape)} {ref.dtype}"
                dtype, shape = self._layout[name]
                raise BadSample(
                    record.sample_id, f", tensor '{name}': {found}; bucket {self._bucket} has {list(shape)} {dtype}."
                )
        for present, name, like in (
            (self.has_text, f"text.{caption}", "text.0"),
            (self.has_audio, self._audio, self._audio),
        ):
            if present:
                ref, (dtype, shape) = record.tensors.get(name), self._layout[like]
                if ref is None or ref.dtype != dtype or ref.shape[1:] != shape[1:] or len(ref.shape) != len(shape):
                    raise BadSample(record.sample_id, f": '{name}' is missing or is unlike the rest of the bucket.")
        if self.has_audio:
            grid, rows = record.audio.get(self._variant), record.tensors[self._audio].shape[0]
            if grid is None or not 0 <= grid.valid_from <= grid.valid_to <= rows or not 0 <= grid.frame0 <= rows:
                raise BadSample(record.sample_id, ": its audio rows do not lie on the video's clock.")

    def allocate(self, records: list[SampleRecord], captions: list[int]) -> tuple[dict[str, Tensor], int]:
        """Memory for the batch, and ``audio_frame0``: rows are aligned so that one number serves the batch."""
        b = len(records)
        tensors = {name: self._empty((b, *shape), dtype) for name, (dtype, shape) in self._chosen().items()}
        if self.has_text:
            lens = [r.tensors[f"text.{c}"].shape[0] for r, c in zip(records, captions, strict=True)]
            dtype, shape = self._layout["text.0"]
            tensors["text"] = self._empty((b, max(lens), *shape[1:]), dtype)
            tensors["text_lens"] = torch.tensor(lens)
        if not self.has_audio:
            return tensors, 0
        frame0 = max(r.audio[self._variant].frame0 for r in records)
        rows = max(frame0 - r.audio[self._variant].frame0 + r.tensors[self._audio].shape[0] for r in records)
        dtype, shape = self._layout[self._audio]
        tensors["audio"] = self._empty((b, rows, *shape[1:]), dtype)
        tensors["audio_valid"] = torch.zeros((b, rows), dtype=torch.bool)
        return tensors, frame0

    def wanted(self, record: SampleRecord, caption: int, task: str) -> list[tuple[str, TensorRef]]:
        """(name in the batch, tensor) of everything that a sample of ``task`` needs read; '' = all tasks."""
        unused = set().union(*TASK_FIELDS.values()) - set(TASK_FIELDS[task]) if task else set()
        found = [(name, record.tensors[name]) for name in self.fields if name not in unused]
        if self.has_text:
            found.append(("text", record.tensors[f"text.{caption}"]))
        if self.has_audio:
            found.append(("audio", record.tensors[self._audio]))
        return sorted(found, key=lambda item: -item[1].length)

    def reads(
        self, record: SampleRecord, caption: int, task: str, tensors: dict[str, Tensor], k: int, frame0: int
    ) -> list[Read]:
        """What place ``k`` needs read and where to, big tensors first; what is not read into is zeroed."""
        wanted = self.wanted(record, caption, task)
        for name in set(self.fields) - {name for name, _ in wanted}:
            tensors[name][k].zero_()
        shift = 0
        if self.has_audio:
            grid = record.audio[self._variant]
            shift = frame0 - grid.frame0
            tensors["audio_valid"][k, shift + grid.valid_from : shift + grid.valid_to] = True
        first = {"text": 0, "audio": shift}
        found: list[Read] = []
        for name, ref in wanted:
            place = tensors[name][k]
            if name in first:
                begin, end = first[name], first[name] + ref.shape[0]
                place[:begin].zero_()
                place[end:].zero_()
                place = place[begin:end]
            found.append((ref, place))
        return found

    def tokens_per_frame(self, record: SampleRecord) -> float:
        """Audio tokens a video frame; 0 without audio."""
        return record.audio[self._variant].tokens_per_frame if self.has_audio else 0.0

    def _chosen(self) -> Layout:
        return {name: self._layout[name] for name in self.fields}

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self._pin)
