"""A talking video from files: a picture (or a video) of a person, a voice, and a prompt."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs import weights
from configs.errors import EchoForgeError
from configs.folders import check_out_file
from configs.schema import Config
from curation.analysis import registry as curation_backends
from curation.analysis.video import analyse_video
from curation.clip import Clip, Rect, Track
from curation.faces import load_detector
from curation.media.audio import SoundReader
from curation.media.clip_reader import read_clip
from curation.media.clip_writer import write_video
from curation.media.container import named
from curation.media.stills import read_picture
from curation.media.video_file import VideoFile
from curation.schema import FPS, SAMPLES_PER_FRAME
from curation.sources.source import Source
from model import conditions, masks, pixels
from model.audio_variants import AUDIO_VARIANTS
from model.codecs import load_codec
from model.encoders import load_audio_encoder, load_image_encoder, load_text_encoder, pad_text
from model.sampler import SamplerInputs, sample
from pipeline.dataset import buckets
from workflows.networks import autocast_for, check_network, load_network

TASKS = ("i2v", "lip_sync", "avatar_sync")
_CHUNK = 250  # frames of sound read at a time
_MIN_FRAMES = 5  # two latent frames: less has no motion
_BYTES_PER_PIXEL = 39
"""Of every frame, held at once: given, masked and generated picture in float32 (12 each) and the bytes written (3)."""


@dataclass(frozen=True)
class GenerateSummary:
    """What was made."""

    path: Path
    frames: int
    width: int
    height: int
    note: str
    warning: str = ""

    def __str__(self) -> str:
        line = (
            f"{self.path}: {self.frames} frames ({self.frames / FPS:.1f} s) of {self.width}x{self.height}. {self.note}"
        )
        return f"{line}\nwarning: {self.warning}" if self.warning else line


def generate(
    checkpoint: str | Path,
    config: Config,
    *,
    audio: Path,
    out: Path,
    image: Path | None = None,
    video: Path | None = None,
    prompt: str = "",
    task: str = "i2v",
    seconds: float | None = None,
    seed: int = 0,
    device: str | None = None,
) -> GenerateSummary:
    """Generate one video with sound.

    Args:
        checkpoint: a run, a checkpoint folder, or a weights file.
        image: for `i2v`: a picture, or a video whose first frame is taken.
        video: for `lip_sync` and `avatar_sync`: the video whose mouth (face) is generated anew.
        seconds: length; by default that of the sound (and of ``video``).

    Raises:
        EchoForgeError: a file that cannot be used, no face where one is needed, or weights that do not fit.
    """
    source = _check_task(task, image, video)
    check_out_file(out, (".mp4",), inputs=[p for p in (audio, image, video) if p is not None])
    for option, path, what in (
        ("--audio", audio, "the voice"),
        ("--image", image, "a picture of the person"),
        ("--video", video, "the video that is to speak"),
    ):
        if path is not None and not path.is_file():
            raise EchoForgeError(
                f"{option} {path} {'is not a file' if path.exists() else 'does not exist'}; give {what}."
            )
    if seconds is not None:
        _check_length(seconds, config)
    check_network(checkpoint, config)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    weights.require({**vars(config.model), "faces": config.curation.faces})
    pcm = read_sound(audio, _longest(config))
    spoken = len(pcm) // SAMPLES_PER_FRAME
    frames = spoken if seconds is None else round(seconds * FPS)
    if frames > spoken + 1:  # rounding
        raise EchoForgeError(
            f"--seconds {seconds:g} is more than the {spoken / FPS:.2f} s of {audio}; leave --seconds out to speak all of it."
        )
    _check_length(frames / FPS, config)
    given = _picture(source, frames, config) if task == "i2v" else _video(source, frames, task, config)
    warning = "" if given.face is not None else (
        f"no face was found in {source}: the middle of the picture is used, and the face mask is off."
    )  # fmt: skip
    count = given.video.shape[1]
    inputs = _inputs(given, pcm, prompt, config, device)
    network = load_network(checkpoint, config.model.transformer, device)
    latents = sample(
        network, inputs, config.model.sampler, config.model.guidance, config.model.phda,
        seeds=[seed], device=device, autocast=autocast_for(device),
    )  # fmt: skip
    codec = load_codec(config.model.codec, device)
    with torch.inference_mode():
        made = codec.decode(latents)[0].cpu()
    if task != "i2v":  # what was given stays as it was, to the pixel
        made = torch.where(given.mask, made, given.video)
    shown = pixels.to_bytes(made)
    sound = np.pad(pcm, (0, max(0, count * SAMPLES_PER_FRAME - len(pcm))))[: count * SAMPLES_PER_FRAME]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_video(out, shown, sound)
    note = "" if config.model.codec.kind == "wan" else (
        "Made with the weight-free stand-in codec and encoders of this preset: blurry by construction, no measure of quality."
    )  # fmt: skip
    return GenerateSummary(out, count, shown.shape[2], shown.shape[1], note, warning)


@dataclass(frozen=True)
class _Given:
    """What a video starts from.

    ``video`` [3, F, H, W] in −1..1, of which ``task`` keeps a part; boxes [F, 4] in its pixels, None where there is none.
    """

    task: str
    video: Tensor
    face: Tensor | None
    mouth: Tensor | None = None

    @property
    def boxes(self) -> Tensor | None:
        """Of what the task generates in every frame."""
        return {"face_boxes": self.face, "mouth_boxes": self.mouth}.get(masks.BOXES.get(self.task, ""))

    @cached_property
    def mask(self) -> Tensor:
        """bool [F, H, W], True where the task generates."""
        return masks.pixel_mask(self.task, *self.video.shape[1:], face_boxes=self.face, mouth_boxes=self.mouth)


def _check_task(task: str, image: Path | None, video: Path | None) -> Path:
    """The picture or video that ``task`` starts from."""
    if task not in TASKS:
        raise EchoForgeError(f"task '{task}' is unknown; it is one of {', '.join(TASKS)}.")
    if task == "i2v":
        if image is None:
            raise EchoForgeError("task i2v needs --image: a picture or a video of the person.")
        return image
    if video is None:
        raise EchoForgeError(f"task {task} needs --video: the video that is to speak.")
    return video


def _check_length(seconds: float, config: Config) -> None:
    """Raise EchoForgeError unless a video of this length has motion and fits this machine's memory."""
    if not math.isfinite(seconds) or round(seconds * FPS) < _MIN_FRAMES:
        raise EchoForgeError(
            f"--seconds {seconds:g} is no length; give at least {_MIN_FRAMES / FPS:g} ({_MIN_FRAMES} frames)."
        )
    if seconds > (longest := _longest(config)):
        raise EchoForgeError(
            f"{seconds:.0f} s of video do not fit: all frames are held in memory, and this machine's "
            f"{_memory() / 2**30:.0f} GiB hold at most {longest:.0f} s; give a shorter --seconds."
        )


def _longest(config: Config) -> float:
    """Seconds of video whose frames fit this machine's memory."""
    return _memory() / (min(config.pipeline.buckets.areas) * _BYTES_PER_PIXEL) / FPS


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_sound(path: Path, longest_s: float = math.inf) -> np.ndarray:
    """The whole sound of a file, float32 mono 16 kHz.

    Raises:
        EchoForgeError: no sound in it, or more than ``longest_s`` seconds: time stamps can promise years of silence.
    """
    parts: list[np.ndarray] = []
    with named(path, "give a file with the voice"), SoundReader(str(path), 0.0) as sound:
        if not sound.present:
            raise EchoForgeError(f"{path} has no sound; give a file with the voice.")
        start = 0
        while True:
            part = sound.read(start, start + _CHUNK)
            parts.append(part.pcm[: round(part.measured * len(part.pcm))])
            if part.measured < 1:
                break
            start += _CHUNK
            sound.forget(start)
            if start / FPS > longest_s:
                raise EchoForgeError(
                    f"{path} has more than the {longest_s:.0f} s of sound that fit; give a shorter one."
                )
    pcm = np.concatenate(parts)
    if len(pcm) < 5 * SAMPLES_PER_FRAME:
        raise EchoForgeError(f"{path} has {len(pcm) / 16000:.2f} s of sound; at least 0.2 s is needed.")
    return pcm


def _picture(path: Path, frames: int, config: Config) -> _Given:
    """A video whose first frame is the picture."""
    frames = max(_MIN_FRAMES, (frames - 1) // 4 * 4 + 1)
    shown = _open_picture(path)
    faces = load_detector(config.curation.faces).detect(shown)
    box = max(faces, key=lambda f: float(f.box[2] - f.box[0])).box if faces else None
    (width, height), rect = _fit(_pictured(shown.shape[1], shown.shape[0], box), config, path)
    import cv2

    cut = shown[rect.y : rect.y + rect.h, rect.x : rect.x + rect.w]
    small = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA if rect.w > width else cv2.INTER_CUBIC)
    video = torch.zeros(3, frames, height, width)
    video[:, 0] = pixels.from_bytes(small[None])[:, 0]
    face = None
    if box is not None:
        scale = np.array([width / rect.w, height / rect.h] * 2, np.float32)
        face = torch.tensor((box - np.array([rect.x, rect.y] * 2)) * scale, dtype=torch.float32).expand(frames, 4)
    return _Given("i2v", video, face)


def _video(path: Path, frames: int, task: str, config: Config) -> _Given:
    """The first clip of a video that has a face."""
    backends = curation_backends.faces_alone(config.curation)
    found, clips = analyse_video(Source(str(path)), config.curation, backends=backends)
    if found.verdict == "error":
        raise EchoForgeError(f"{path}: {str(found.error).rstrip('.')}; give the video that is to speak.")
    clip = next((c for c in clips if c.tracks), None)
    if clip is None:
        raise EchoForgeError(f"{path} has no clip with a steady face; task {task} needs one.")
    count = min(frames, len(clip))
    count = max(_MIN_FRAMES, (count - 1) // 4 * 4 + 1)
    (width, height), rect = _fit(clip, config, path)  # nothing looked for text to crop away
    start = clip.start_frame
    seen = read_clip(
        str(path), start, start + count, width=width, height=height,
        crop=asdict(rect),
    )  # fmt: skip
    track = buckets.active_track(clip)
    face = torch.from_numpy(buckets.frame_boxes(track, "boxes", 0, count, rect, (width, height)))
    mouth = torch.from_numpy(buckets.frame_boxes(track, "mouth_boxes", 0, count, rect, (width, height)))
    return _Given(task, pixels.from_bytes(seen.frames), face, mouth)


def _inputs(given: _Given, pcm: np.ndarray, prompt: str, config: Config, device: str) -> SamplerInputs:
    """Everything that the sampler takes, for one video; the same encoders and slicing as in sharding."""
    model = config.model
    count, height, width = given.video.shape[1:]
    video = given.video[None].to(device)
    mask4 = masks.latent_mask(given.mask)[None]  # before any network: a task without its boxes ends here
    with torch.inference_mode():
        latents = conditions.encode_conditions(load_codec(model.codec, device), video, given.task, given.boxes)
        cond = conditions.condition(given.task, latents, masked=latents, mask4=mask4)
        text = load_text_encoder(model.text_encoder, device)
        rows = text.encode([prompt, *model.guidance.prompts.values()])
        image = load_image_encoder(model.image_encoder, device).encode(video[:, :, 0])
        sound = load_audio_encoder(model.audio_encoder, device)
        features = sound.encode(np.pad(pcm, (0, max(0, count * SAMPLES_PER_FRAME - len(pcm)))))
        cut = sound.slice(features, 0, count, model.audio_encoder.context_frames)
    variant = AUDIO_VARIANTS.get(model.transformer.variant) or AUDIO_VARIANTS[sound.variant]  # `base` hears nothing
    heard = variant.inputs(cut.tokens[None], cut.mask[None], cut.frame0, count, cut.tokens_per_frame)
    face = None
    if config.train.tasks.face_mask and given.face is not None:
        face = masks.face_token_mask(given.face, count, height, width)[None]
    return SamplerInputs(
        cond=cond.float(), text=pad_text(rows[:1]).float(),
        negatives=dict(zip(model.guidance.prompts, (r.float() for r in rows[1:]), strict=True)), image=image.float(),
        audio=heard.audio.float(), audio_valid=heard.valid, audio_frame0=heard.frame0,
        tokens_per_frame=cut.tokens_per_frame, face_mask=face,
    )  # fmt: skip


def _open_picture(path: Path) -> np.ndarray:
    with named(path, "give a picture or a video of the person (JPEG, PNG, WebP and BMP are read)"):
        if (picture := read_picture(path)) is not None:
            return picture
        with VideoFile(str(path), identify=False) as video:
            first = next(video.frames())
            return first.picture(video.info.width, video.info.height)


def _pictured(width: int, height: int, box: np.ndarray | None) -> Clip:
    """A picture as a clip of one frame, with the face in it."""
    face = None if box is None else Track(0, (tuple(box.tolist()),), (0,), (), 0.0, 0.0, 1.0)
    return Clip("", "", "", 0, 1, width, height, tracks=(face,) if face else (), active_track=0)


def _fit(clip: Clip, config: Config, path: Path) -> tuple[tuple[int, int], Rect]:
    """Bucket size (width, height) and crop."""
    fit = buckets.choose(clip, config.pipeline.buckets)
    if fit is None:
        raise EchoForgeError(f"{path} ({clip.width}x{clip.height}) is too small for every bucket of this preset.")
    return fit
