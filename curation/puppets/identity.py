"""Who a puppet is and how it moves: random traits, their words, and the motion of head, eyes and gaze."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from curation.puppets.voice import Voice, draw_voice

RGB = tuple[int, int, int]

SKINS: dict[str, RGB] = {
    "pale": (250, 218, 196),
    "fair": (243, 200, 170),
    "peach": (236, 184, 146),
    "olive": (218, 170, 124),
    "tan": (204, 148, 106),
    "brown": (176, 122, 84),
}
HAIRS: dict[str, RGB] = {
    "black": (34, 28, 30),
    "dark brown": (70, 44, 30),
    "chestnut": (122, 66, 36),
    "red": (176, 72, 30),
    "blond": (222, 180, 96),
    "grey": (150, 150, 156),
    "blue": (58, 84, 170),
    "pink": (214, 104, 150),
}
EYES: dict[str, RGB] = {"brown": (84, 50, 26), "blue": (46, 92, 160), "green": (52, 120, 72), "grey": (86, 96, 108)}
CLOTHES: dict[str, RGB] = {
    "red": (190, 44, 48),
    "orange": (226, 126, 40),
    "yellow": (232, 196, 60),
    "green": (48, 130, 76),
    "teal": (28, 132, 140),
    "blue": (46, 78, 168),
    "purple": (116, 62, 150),
    "white": (232, 232, 228),
    "black": (44, 44, 52),
}
BACKDROPS: dict[str, RGB] = {
    "light grey": (206, 208, 210),
    "cream": (238, 226, 200),
    "sky blue": (164, 202, 230),
    "mint": (176, 220, 196),
    "lilac": (204, 190, 228),
    "rose": (234, 192, 196),
    "slate": (112, 124, 140),
    "forest green": (92, 128, 104),
    "navy": (66, 80, 118),
}
PATTERNS = ("plain", "gradient", "two-tone", "dots")
FACES: dict[str, tuple[float, float, float]] = {  # half width, half height, squareness of the jaw
    "round": (24.0, 27.0, 2.1),
    "oval": (22.0, 29.0, 2.1),
    "square": (23.0, 27.5, 2.7),
    "narrow": (20.5, 29.0, 2.0),
}
STYLES = ("short", "long", "bun", "curly", "cap", "fringe")
COLLARS = ("round neck", "collar", "scarf")


@dataclass(frozen=True)
class Identity:
    """Everything that stays the same in all videos of one puppet."""

    skin: str
    hair: str
    style: str
    eyes: str
    face: str
    clothes: str
    collar: str
    accent: str
    glasses: bool
    blush: float
    eye_gap: float  # distance of the pupils, px at 96
    mouth_width: float  # half width at rest, px at 96
    lip: float  # redness of the lips, 0..1
    brow: float  # thickness, px at 96
    voice: Voice


@dataclass(frozen=True)
class Backdrop:
    """What is behind the puppet."""

    colour: str
    pattern: str
    second: str


@dataclass(frozen=True)
class Motion:
    """Per frame: float32 [F] ``x``, ``y`` (px at 96), ``angle`` (degrees), ``blink`` (0 open .. 1 shut), ``gaze``."""

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    blink: np.ndarray
    gaze: np.ndarray


def _pick(rng: np.random.Generator, names: Any) -> str:
    names = list(names)
    return str(names[rng.integers(len(names))])


def draw_identity(rng: np.random.Generator) -> Identity:
    """A random puppet."""
    return Identity(
        skin=_pick(rng, SKINS),
        hair=_pick(rng, HAIRS),
        style=_pick(rng, STYLES),
        eyes=_pick(rng, EYES),
        face=_pick(rng, FACES),
        clothes=_pick(rng, CLOTHES),
        collar=_pick(rng, COLLARS),
        accent=_pick(rng, CLOTHES),
        glasses=bool(rng.uniform() < 0.12),
        blush=float(rng.uniform(0.0, 0.5)),
        eye_gap=float(rng.uniform(9.4, 10.8)),
        mouth_width=float(rng.uniform(8.0, 9.4)),
        lip=float(rng.uniform(0.3, 1.0)),
        brow=float(rng.uniform(2.0, 3.2)),
        voice=draw_voice(rng),
    )


def draw_backdrop(rng: np.random.Generator) -> Backdrop:
    """A random background: plain or lightly textured."""
    return Backdrop(_pick(rng, BACKDROPS), _pick(rng, PATTERNS), _pick(rng, BACKDROPS))


def draw_motion(frames: int, opening: np.ndarray, rng: np.random.Generator, sway: float) -> Motion:
    """Slow smooth sway (``sway`` px at 96), a slight nod with the speech, blinks of a fifth of a second."""
    times = np.arange(frames) / 25.0

    def drift(size: float) -> np.ndarray:
        parts = [
            rng.uniform(0.4, 1.0) * np.sin(2 * np.pi * (rng.uniform(0.08, 0.45) * times + rng.uniform()))
            for _ in range(2)
        ]
        return (size * (parts[0] + parts[1]) / 1.4).astype(np.float32)

    blink = np.zeros(frames, np.float32)
    at = int(rng.uniform(10, 60))
    while at < frames:
        for step, shut in enumerate((0.5, 1.0, 1.0, 0.5)):
            if at + step < frames:
                blink[at + step] = shut
        at += int(rng.uniform(35, 110))
    nod = np.convolve(np.pad(opening, 7, mode="edge"), np.ones(15) / 15, mode="valid")
    gaze = np.repeat(rng.uniform(-0.9, 0.9, frames // 30 + 1), 30)[:frames] * (rng.uniform() < 0.7)
    return Motion(
        drift(sway),
        drift(0.7 * sway) + 1.2 * sway * nod.astype(np.float32),
        drift(1.6 * sway),
        blink,
        gaze.astype(np.float32),
    )


def captions(identity: Identity, backdrop: Backdrop) -> tuple[str, dict[str, str]]:
    """(one short sentence, the field's schema of a talking-human caption as key → text)."""
    behind = f"a plain {backdrop.colour} background"
    if backdrop.pattern in ("gradient", "two-tone"):
        behind = f"a {backdrop.pattern} background of {backdrop.colour} and {backdrop.second}"
    elif backdrop.pattern == "dots":
        behind = f"a {backdrop.colour} background with faint {backdrop.second} dots"
    head = (
        f"a {identity.accent} cap over {identity.hair} hair"
        if identity.style == "cap"
        else (f"{identity.style} {identity.hair} hair")
    )
    glasses = " and round glasses" if identity.glasses else ""
    top = {
        "round neck": f"a {identity.clothes} sweater",
        "collar": f"a {identity.clothes} shirt with a collar",
        "scarf": f"a {identity.clothes} sweater and a {identity.accent} scarf",
    }[identity.collar]
    short = f"A puppet with {head}{glasses} in {top} is talking in front of {behind}."
    fields = {
        "hands": "not visible",
        "posture": "facing the camera, upright, swaying slightly",
        "face": f"{identity.face} face, {identity.skin} skin, {identity.eyes} eyes{glasses}",
        "eyes": "looking at the camera, blinking",
        "head": f"centred, small movements; {head}",
        "coverage": "head and shoulders",
        "clothing": top,
        "background": behind,
        "overall": f"{short} The voice is {identity.voice.description}.",
    }
    return short, fields
