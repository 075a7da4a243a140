"""What can be wrong with a puppet video, and the verdict that a careful person would give it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from curation.schema import SAMPLE_RATE, SAMPLES_PER_FRAME


@dataclass(frozen=True)
class Fault:
    """``verdict`` ∈ keep | fixable (keep after a correction) | reject | uncertain, with the ``reasons`` to expect."""

    name: str
    verdict: str
    reasons: tuple[str, ...]


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("audio_late", "fixable", ("av_offset",)),
        Fault("subtitles", "reject", ("subtitle",)),
        Fault("foreign_audio", "reject", ("av_mismatch",)),
        Fault("cut", "fixable", ("cut",)),
        Fault("no_face", "reject", ("no_face",)),
        Fault("silence", "reject", ("silent_audio",)),
        Fault("duplicate_reencoded", "reject", ("duplicate",)),
        Fault("truncated", "reject", ("truncated",)),
        Fault("audio_early", "fixable", ("av_offset",)),
        Fault("freeze", "reject", ("frozen",)),
        Fault("watermark", "reject", ("watermark_text",)),
        Fault("blur", "reject", ("low_sharpness",)),
        Fault("audio_far_late", "reject", ("av_offset",)),
        Fault("two_puppets", "reject", ("multiple_faces",)),
        Fault("dark", "reject", ("low_light",)),
        Fault("noise", "reject", ("no_speech",)),
        Fault("duplicate_exact", "reject", ("duplicate",)),
        Fault("damaged", "reject", ("undecodable",)),
        Fault("colour_drift", "uncertain", ("colour_drift",)),
    )
}
"""In the order in which a small corpus receives them."""

_LINES = (
    "Hello there",
    "How are you",
    "Fine, thanks",
    "See you soon",
    "What a day",
    "Tell me more",
    "I like tea",
    "Good morning",
    "Very well",
    "Never mind",
    "Look at this",
    "Come with me",
)


def shift_frames(fault: str | None, rng: np.random.Generator) -> int:
    """How many frames the sound is late (> 0) or early (< 0) under this fault."""
    if fault == "audio_late":
        return int(rng.integers(3, 6))
    if fault == "audio_early":
        return -int(rng.integers(3, 6))
    if fault == "audio_far_late":
        return int(rng.integers(10, 14))
    return 0


def spoil_picture(frames: np.ndarray, fault: str | None, rng: np.random.Generator) -> np.ndarray:
    """The faults that work on the finished picture, uint8 [F, H, W, 3] → the same; others leave it alone."""
    out = frames
    if fault == "subtitles":
        out = _subtitles(frames, rng)
    elif fault == "watermark":
        out = _watermark(frames)
    elif fault == "freeze":
        out = frames.copy()
        out[len(frames) // 3 :] = frames[len(frames) // 3]
    elif fault == "blur":
        out = np.stack([cv2.GaussianBlur(f, (0, 0), frames.shape[1] / 32) for f in frames])
    elif fault == "dark":
        out = (frames * 0.08).astype(np.uint8)
    elif fault == "colour_drift":
        gain = 1 + np.linspace(0, 1, len(frames))[:, None] * np.array([0.45, -0.1, -0.45])
        out = np.clip(frames * gain[:, None, None], 0, 255).astype(np.uint8)
    return out


def spoil_sound(pcm: np.ndarray, fault: str | None, rng: np.random.Generator) -> np.ndarray:
    """Silence or pink noise in place of the speech, float32 [n] → the same."""
    if fault == "silence":
        return np.zeros_like(pcm)
    if fault == "noise":
        spectrum = np.fft.rfft(rng.standard_normal(len(pcm)))
        spectrum /= np.sqrt(np.maximum(np.fft.rfftfreq(len(pcm), 1 / SAMPLE_RATE), 20.0))
        noise = np.fft.irfft(spectrum, len(pcm))
        return (0.1 * noise / (noise.std() + 1e-9)).astype(np.float32)
    return pcm


def spoil_file(data: bytes, fault: str | None, rng: np.random.Generator) -> bytes:
    """A file that breaks off, or one that holds nothing of what its name promises."""
    if fault == "truncated":
        return data[: int(len(data) * 0.55)]
    if fault == "damaged":
        return rng.integers(0, 256, len(data) // 2, dtype=np.uint8).tobytes()
    return data


def empty_scene(background: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
    """A ball that rolls before the backdrop: something moves, nobody is there. uint8 [frames, S, S, 3]."""
    size = background.shape[0]
    colour = tuple(int(c) for c in rng.integers(40, 220, 3))
    out = []
    for index in range(frames):
        picture = background.copy()
        centre = (int(size * (0.2 + 0.6 * (index / max(frames - 1, 1)))), int(size * 0.75))
        cv2.circle(picture, centre, size // 9, colour, -1, cv2.LINE_AA)
        out.append(picture)
    return np.stack(out)


def shifted(pcm: np.ndarray, late: int, frames: int) -> tuple[np.ndarray, slice]:
    """Sound of ``frames`` video frames that lags the picture by ``late`` frames (negative: leads it).

    ``pcm`` covers ``frames + |late|`` frames. Returns the sound and the frames of the articulation to be drawn.
    """
    heard = max(-late, 0)
    seen = max(late, 0)
    return pcm[heard * SAMPLES_PER_FRAME : (heard + frames) * SAMPLES_PER_FRAME], slice(seen, seen + frames)


def _stamp(size: tuple[int, int], text: str, height: int, at: str, ink: int = 255) -> tuple[np.ndarray, np.ndarray]:
    """Text as (ink [h, w] 0..1, outline [h, w] 0..1) at 'bottom' or 'corner' of a picture (h, w)."""
    font = ImageFont.load_default(height)
    page = Image.new("L", (size[1], size[0]), 0)
    pen = ImageDraw.Draw(page)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    if at == "bottom":
        place = ((size[1] - (right - left)) / 2 - left, size[0] - height * 0.45 - bottom)
    else:
        place = (size[1] - (right - left) - size[1] * 0.03 - left, size[0] * 0.03 - top)
    pen.text(place, text, fill=ink, font=font)
    letters = np.asarray(page, np.float32) / 255.0
    return letters, np.minimum(cv2.dilate(letters, np.ones((3, 3), np.uint8)), 1.0)


def _print(frames: np.ndarray, letters: np.ndarray, outline: np.ndarray, opacity: float) -> np.ndarray:
    dark = frames * (1 - opacity * outline[..., None])
    return (dark + (255 - dark) * (opacity * letters)[..., None]).astype(np.uint8)


def _subtitles(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out = frames.copy()
    height, width = frames.shape[1:3]
    at = 0
    for line in rng.permutation(np.array(_LINES)):
        until = min(at + int(rng.integers(18, 32)), len(frames))
        letters, outline = _stamp((height, width), str(line), max(round(height * 0.135), 9), "bottom")
        out[at:until] = _print(frames[at:until], letters, outline, 1.0)
        at = until
        if at >= len(frames):
            break
    return out


def _watermark(frames: np.ndarray) -> np.ndarray:
    letters, outline = _stamp(frames.shape[1:3], "PUPPET TV", max(round(frames.shape[1] * 0.11), 9), "corner")  # type: ignore[arg-type]
    return _print(frames, letters, outline, 0.85)
