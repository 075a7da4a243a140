"""One group of samples → tensors: latents, the least redundant conditions, image, sound, boxes and masks.

Composition of the batches is fixed by the plan, so the same device and versions give the same bytes again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from configs import strict, weights
from configs.errors import EchoForgeError
from configs.runtime import scratch, stopping
from configs.runtime.devices import usable
from curation.media.clip_reader import ReadClip, read_clip
from curation.media.clip_writer import write_video
from model import masks, pixels
from model.codecs import Codec, load_codec
from model.conditions import encode_conditions
from model.config import ModelConfig
from model.encoders import (
    AudioEncoder,
    ImageEncoder,
    TextEncoder,
    load_audio_encoder,
    load_image_encoder,
    load_text_encoder,
)
from pipeline.catalog import identity
from pipeline.config import EncodeConfig
from pipeline.dataset.index import AudioGrid
from pipeline.dataset.sample import Boxes, PlannedSample
from pipeline.dataset.tar import ShardSample
from pipeline.dataset.texts import text_key

_FLOOR = torch.finfo(torch.bfloat16).eps


@dataclass
class Encoders:
    """The four networks, loaded once per worker."""

    codec: Codec
    text: TextEncoder
    image: ImageEncoder
    audio: AudioEncoder

    @property
    def digests(self) -> dict[str, dict[str, str]]:
        """Name and digest of each, for `dataset.json`; the names of stand-ins say so."""
        parts = {"codec": self.codec, "text": self.text, "image": self.image, "audio": self.audio}
        return {key: {"name": part.name, "digest": part.digest} for key, part in parts.items()}  # type: ignore[attr-defined]

    @property
    def digest(self) -> str:
        """16 hex over all of them: part of every sample id."""
        return strict.digest({key: part["digest"] for key, part in self.digests.items()})


def load_encoders(model: ModelConfig, cfg: EncodeConfig) -> Encoders:
    """Load codec and encoders on ``cfg.device``.

    Raises:
        MissingWeights: a configured file is not there.
        ConfigError: ``cfg.device`` is a GPU, and there is none.
    """
    usable(cfg.device, "encode.device", "execution.shard.gpus=0")
    weights.require(vars(model))
    device, dtype = torch.device(cfg.device), getattr(torch, cfg.dtype)
    return Encoders(
        load_codec(model.codec, device, dtype),
        load_text_encoder(model.text_encoder, device, dtype),
        load_image_encoder(model.image_encoder, device, dtype),
        load_audio_encoder(model.audio_encoder, device, dtype),
    )


@dataclass(frozen=True)
class Encoded:
    """A sample that is ready to be written, and how its audio rows lie."""

    sample: PlannedSample
    written: ShardSample
    audio: AudioGrid


@dataclass(frozen=True)
class LeftOut:
    """A sample that could not be read, and why."""

    sample: PlannedSample
    cause: str


def encode_group(
    samples: Sequence[PlannedSample], encoders: Encoders, cfg: EncodeConfig, context_frames: int
) -> tuple[list[Encoded], list[LeftOut]]:
    """Encode planned samples of one bucket.

    A clip that cannot be read, or whose file is not the one that was curated (`pipeline.catalog.identity`), is left out and
    named; the batches are cut from the plan before reading, so that it changes no other sample's company.
    """
    encoded: list[Encoded] = []
    failed: list[LeftOut] = []
    for first in range(0, len(samples), cfg.batch):
        stopping.check()
        batch = []
        for sample in samples[first : first + cfg.batch]:
            try:
                batch.append((sample, _read(sample, cfg)))
            except (EchoForgeError, OSError) as error:
                failed.append(LeftOut(sample, str(error)))
        if batch:
            videos = torch.stack([pixels.from_bytes(clip.frames) for _, clip in batch]).to(cfg.device)
            pictures = _encode_pictures([s for s, _ in batch], videos, encoders, cfg)
            for (sample, clip), seen in zip(batch, pictures, strict=True):
                grid, others = _encode_rest(sample, clip, encoders, cfg, context_frames)
                files = _files(sample, clip, grid, encoders, cfg)
                encoded.append(Encoded(sample, ShardSample(sample.sample_id, seen | others, files), grid))
    return encoded, failed


def _read(sample: PlannedSample, cfg: EncodeConfig) -> ReadClip:
    if not sample.stored:  # a copy out of the dataset is no source
        identity.check(sample.source)
    start = sample.start_frame
    return read_clip(
        sample.source.uri,
        start,
        start + sample.frames,
        width=sample.width,
        height=sample.height,
        crop=asdict(sample.crop) if sample.crop else None,
        offset_samples=sample.offset_samples,
        context_frames=cfg.sound_frames,
    )


@torch.inference_mode()
def _encode_pictures(
    samples: Sequence[PlannedSample], videos: Tensor, encoders: Encoders, cfg: EncodeConfig
) -> list[dict[str, Tensor]]:
    """Latents, conditions and image tokens of a batch [B, 3, F, H, W]."""
    latents = _half(encoders.codec.encode(videos))
    image = _half(encoders.image.encode(videos[:, :, 0]))
    result = [{"latents": latents[k], "image": image[k]} for k in range(len(samples))]
    i2v = None
    if "i2v" in cfg.tasks or "flf2v" in cfg.tasks:
        i2v = _half(encode_conditions(encoders.codec, videos, "i2v"))
        _same(i2v[:, :, :1], latents[:, :, :1], "the first latent of the I2V condition", "the video's")
        for k, tensors in enumerate(result):
            tensors["cond_i2v"] = i2v[k, :, 1:]
    if "flf2v" in cfg.tasks and i2v is not None:
        both = _half(encode_conditions(encoders.codec, videos, "flf2v"))
        _same(both[:, :, :-1], i2v[:, :, :-1], "a latent of the FLF2V condition before the last", "the I2V condition's")
        for k, tensors in enumerate(result):
            tensors["cond_flf2v_last"] = both[k, :, -1:]
    for task, name in (("lip_sync", "cond_lip"), ("avatar_sync", "cond_avatar")):
        if task in cfg.tasks:
            for k, (sample, tensors) in enumerate(zip(samples, result, strict=True)):
                boxes = _boxes(sample.mouth_boxes if task == "lip_sync" else sample.face_boxes)
                tensors[name] = _half(encode_conditions(encoders.codec, videos[k : k + 1], task, boxes))[0]
    return result


def _same(a: Tensor, b: Tensor, what: str, other: str) -> None:
    """The codec is causal: what is not stored twice must be equal, to the last bit but one of bf16."""
    if not torch.allclose(a.float(), b.float(), rtol=4 * _FLOOR, atol=4 * _FLOOR):
        worst = (a.float() - b.float()).abs().max()
        raise EchoForgeError(f"{what} differs from {other} by {worst:.3g}: this codec is not causal; store it whole.")


@torch.inference_mode()
def _encode_rest(
    sample: PlannedSample, clip: ReadClip, encoders: Encoders, cfg: EncodeConfig, context_frames: int
) -> tuple[AudioGrid, dict[str, Tensor]]:
    """Sound, boxes and masks of one sample; first the grid of its audio rows. (Captions: `pipeline.dataset.texts`.)"""
    tensors: dict[str, Tensor] = {}
    lead, pcm = _existing_sound(sample.start_frame, clip.context, cfg.sound_frames)
    features = encoders.audio.encode(pcm)
    cut = encoders.audio.slice(features, lead, sample.frames, context_frames)
    tensors[f"audio.{encoders.audio.variant}"] = _half(cut.tokens)
    for part, planned in (("face", sample.face_boxes), ("mouth", sample.mouth_boxes)):
        boxes = _boxes(planned)
        tensors[f"{part}_boxes"] = boxes
        tensors[f"{part}_mask"] = masks.pack_bits(masks.box_grid(boxes, sample.frames, sample.height, sample.width))
    return AudioGrid(encoders.audio.variant, float(cut.tokens_per_frame), cut.frame0, *cut.valid), tensors


def _existing_sound(start_frame: int, context: np.ndarray, frames: int) -> tuple[int, np.ndarray]:
    """The sound around a sample without what lies before the file or after its end, and the frames before it.

    ``context`` has zeros where there is no file; the end is where nothing but zeros follows, to whole frames.
    """
    missing = max(frames - start_frame, 0)
    inside = context.reshape(-1, 640)[missing:]
    loud = np.flatnonzero(np.abs(inside).max(1))
    least = len(context) // 640 - missing - frames  # the sample itself always stays
    last = max(int(loud[-1]) + 1 if len(loud) else 0, least)
    return frames - missing, inside[:last].reshape(-1)


def _boxes(rows: Boxes) -> Tensor:
    return torch.tensor([[float("nan")] * 4 if row is None else row for row in rows], dtype=torch.float32)


def _half(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16).cpu()


def _files(
    sample: PlannedSample, clip: ReadClip, audio: AudioGrid, encoders: Encoders, cfg: EncodeConfig
) -> dict[str, bytes]:
    """The members beside the tensors, as bytes by extension."""
    names = ("sample_id", "clip_id", "bucket", "split", "speaker", "tier", "start_frame", "offset_samples", "captions")
    grid = asdict(audio)
    meta = {
        **{name: getattr(sample, name) for name in names},
        "video_id": sample.source.video_id,
        "source_uri": sample.source.uri,
        "F": sample.frames,
        "H": sample.height,
        "W": sample.width,
        "crop": asdict(sample.crop) if sample.crop else None,
        "fps": 25,
        "scores": {name: value for name, value in sample.scores.items() if isinstance(value, float)},
        "text_keys": [text_key(text, encoders.text.digest) for text in sample.captions],
        "audio": {grid.pop("variant"): grid},
        "encoders": encoders.digests,
        "has_sound": bool(clip.has_sound),
    }
    files = {
        "json": json.dumps(meta, sort_keys=True, ensure_ascii=False, indent=1).encode(),
        "txt": sample.captions[0].encode(),
        "jpg": _jpeg(clip.frames[0], cfg.jpeg_quality),
        "flac": _flac(clip.pcm),
    }
    if cfg.mp4:
        with scratch.folder() as folder:
            files["mp4"] = write_video(folder / "clip.mp4", clip.frames, clip.pcm).read_bytes()
    return files


def _jpeg(picture: np.ndarray, quality: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _flac(pcm: np.ndarray) -> bytes:
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, np.clip(pcm, -1, 1), 16_000, format="FLAC", subtype="PCM_16")
    return stream.getvalue()
