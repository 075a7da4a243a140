"""Drawing a puppet: a head layer with shading made once, eyes and mouth drawn per frame, all at twice the size.

Units of the code are pixels of a 96 × 96 picture; everything scales to any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from curation.puppets import identity as who
from curation.puppets.identity import Backdrop, Identity, Motion
from curation.puppets.voice import Speech

UNIT = 96.0
_OVER = 2  # oversampling
_SHIFT = 4  # fractional bits of OpenCV's coordinates
FACE = (48.0, 47.0)  # centre of the face at rest
MOUTH_Y = 62.5
EYE_Y = 41.5
OPEN_PX = 9.0  # opening of the lips at full articulation, px at 96


@dataclass(frozen=True)
class Rendered:
    """Frames with ground truth.

    ``frames`` uint8 [F, S, S, 3] RGB; ``face_boxes``, ``mouth_boxes`` float32 [F, 4] (x0, y0, x1, y1 in px);
    ``mouth_px`` float32 [F], the gap between the lips in px.
    """

    frames: np.ndarray
    face_boxes: np.ndarray
    mouth_boxes: np.ndarray
    mouth_px: np.ndarray


class _Canvas:
    """A picture with an alpha plane; shapes are drawn on both."""

    def __init__(self, side: int, fill: who.RGB) -> None:
        self.k = side / UNIT
        self.rgb = np.full((side, side, 3), fill, np.uint8)
        self.alpha = np.zeros((side, side), np.uint8)

    def polygon(self, points: np.ndarray, colour: who.RGB) -> None:
        fixed = np.round(points * self.k * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(self.rgb, [fixed], colour, cv2.LINE_AA, _SHIFT)
        cv2.fillPoly(self.alpha, [fixed], 255, cv2.LINE_AA, _SHIFT)  # type: ignore[call-overload]

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: who.RGB) -> None:
        self.polygon(oval(x, y, rx, ry), colour)


def oval(x: float, y: float, rx: float, ry: float, power: float = 2.0, points: int = 40) -> np.ndarray:
    """Outline of a superellipse, float [points, 2]."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    across, down = np.sign(cos) * np.abs(cos) ** (2 / power), np.sign(sin) * np.abs(sin) ** (2 / power)
    return np.stack([x + rx * across, y + ry * down], 1)


def mix(a: who.RGB, b: who.RGB, share: float) -> who.RGB:
    """``a`` with ``share`` of ``b``."""
    return tuple(round(p + (q - p) * share) for p, q in zip(a, b, strict=True))  # type: ignore[return-value]


def backdrop_picture(backdrop: Backdrop, size: int) -> np.ndarray:
    """uint8 [size, size, 3]."""
    first, second = (np.array(who.BACKDROPS[c], np.float32) for c in (backdrop.colour, backdrop.second))
    picture = np.tile(first, (size, size, 1))
    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    if backdrop.pattern == "gradient":
        picture += (second - first) * ramp
    elif backdrop.pattern == "two-tone":
        picture += (second - first) * np.clip((ramp - 0.66) * size / 3, 0, 1)
    elif backdrop.pattern == "dots":
        plane = np.zeros((size, size), np.float32)
        step = size / 6
        for row in range(7):
            for column in range(7):
                centre = (round((column + 0.5 * (row % 2)) * step), round(row * step))
                cv2.circle(plane, centre, max(round(step / 6), 1), 0.35, -1, cv2.LINE_AA)
        picture += (second - first) * plane[..., None]
    vignette = 1.0 - 0.10 * (np.linspace(-1, 1, size) ** 2)[:, None] - 0.10 * (np.linspace(-1, 1, size) ** 2)[None]
    return np.clip(picture * vignette[..., None], 0, 255).astype(np.uint8)


def _body(identity: Identity, side: int) -> _Canvas:
    clothes, accent = who.CLOTHES[identity.clothes], who.CLOTHES[identity.accent]
    skin = mix(who.SKINS[identity.skin], (90, 40, 30), 0.22)
    canvas = _Canvas(side, clothes)
    canvas.polygon(oval(48, 104, 36, 24, 2.6), clothes)
    canvas.polygon(np.array([[40, 66], [56, 66], [57.5, 85], [48, 90], [38.5, 85]]), skin)  # neck
    if identity.collar == "scarf":
        canvas.polygon(oval(48, 85, 15, 5.5, 2.5), accent)
        canvas.polygon(np.array([[50, 86], [58, 86], [59, 97], [52, 97]]), mix(accent, (0, 0, 0), 0.15))
    elif identity.collar == "collar":
        light = mix(clothes, (255, 255, 255), 0.55)
        canvas.polygon(np.array([[38, 81], [48, 91], [42, 95], [33, 86]]), light)
        canvas.polygon(np.array([[58, 81], [48, 91], [54, 95], [63, 86]]), light)
    else:
        canvas.polygon(
            np.array([[36, 83], [48, 92], [60, 83], [62, 86], [48, 96], [34, 86]]), mix(clothes, (0, 0, 0), 0.25)
        )
    shade = np.linspace(1.06, 0.86, side)[None, :, None]
    canvas.rgb = np.clip(canvas.rgb * shade, 0, 255).astype(np.uint8)
    return canvas


def _hair_behind(canvas: _Canvas, identity: Identity, rx: float, ry: float) -> None:
    hair, (x, y) = who.HAIRS[identity.hair], FACE
    if identity.style == "long":
        canvas.polygon(oval(x, y + 4, rx + 6.5, ry + 7, 2.8), mix(hair, (0, 0, 0), 0.18))
        neck = mix(who.SKINS[identity.skin], (90, 40, 30), 0.22)
        canvas.polygon(np.array([[x - 8, 68], [x + 8, 68], [x + 8, 81], [x, 85.5], [x - 8, 81]]), neck)
    elif identity.style == "bun":
        canvas.ellipse(x, y - ry - 5, 8.5, 7.5, mix(hair, (0, 0, 0), 0.12))
    elif identity.style == "curly":
        for angle in np.linspace(np.pi * 0.95, np.pi * 2.05, 12):
            canvas.ellipse(x + (rx + 2) * np.cos(angle), y - 4 + (ry - 1) * np.sin(angle), 6.5, 6.5, hair)


def _hair_before(canvas: _Canvas, identity: Identity, rx: float, ry: float) -> None:
    hair, (x, y) = who.HAIRS[identity.hair], FACE
    top = oval(x, y, rx + 1.4, ry + 2.0, 2.2, 80)
    line = {"short": 15.0, "long": 14.5, "bun": 15.5, "curly": 15.0, "cap": 14.5, "fringe": 11.5}[identity.style]
    cap = top[top[:, 1] < y - line]
    cap = cap[np.argsort(cap[:, 0])]
    curve = np.linspace(cap[-1, 0], cap[0, 0], 20)
    sag = 0.0 if identity.style in ("fringe", "cap") else 4.5
    edge = np.stack([curve, y - line - sag * np.cos((curve - x) / (rx + 2) * np.pi / 2)], 1)
    if identity.style == "cap":
        accent = who.CLOTHES[identity.accent]
        canvas.polygon(np.concatenate([cap, edge]), accent)
        canvas.polygon(oval(x, y - line, rx + 3, 2.6, 3), mix(accent, (0, 0, 0), 0.3))
        return
    canvas.polygon(np.concatenate([cap, edge]), hair)
    if identity.style != "bun":  # sideburns
        for sign in (-1, 1):
            canvas.polygon(
                np.array(
                    [
                        [x + sign * (rx + 1.2), y - line - 4],
                        [x + sign * (rx - 3.2), y - line - 3],
                        [x + sign * (rx - 1.2), y - 3],
                        [x + sign * (rx + 1.6), y - 2],
                    ]
                ),
                hair,
            )


def _shade(canvas: _Canvas, identity: Identity, rx: float, ry: float) -> None:
    """Light from above left; sockets and the sides of the nose darker, forehead, nose and cheeks lighter."""
    side, (x, y) = canvas.rgb.shape[0], FACE
    yy, xx = np.mgrid[0:side, 0:side].astype(np.float32) / canvas.k

    def blob(bx: float, by: float, sx: float, sy: float) -> np.ndarray:
        return np.exp(-0.5 * (((xx - bx) / sx) ** 2 + ((yy - by) / sy) ** 2))

    light = 1.0 - 0.26 * (((xx - x) / rx) ** 2 + 0.6 * ((yy - y) / ry) ** 2).clip(0, 1.4) ** 1.5 - 0.05 * (xx - x) / rx
    for sign in (-1, 1):
        light -= 0.34 * blob(x + sign * identity.eye_gap, EYE_Y - 0.5, 6.0, 3.6)
        light += 0.18 * blob(x + sign * 11.0, EYE_Y + 10.5, 5.5, 4.5)
        light -= 0.12 * blob(x + sign * 4.6, EYE_Y + 9, 1.6, 3.5)
    light += 0.17 * blob(x, EYE_Y + 3.5, 1.9, 7.5) + 0.10 * blob(x, EYE_Y - 12, 11, 5)
    light -= 0.10 * blob(x, MOUTH_Y + 7.5, 5.5, 1.6)
    red = identity.blush * 0.16 * (blob(x - 13, EYE_Y + 13, 4, 3) + blob(x + 13, EYE_Y + 13, 4, 3))
    tint = np.stack([light + 0.5 * red, light - red, light - 0.8 * red], -1)
    canvas.rgb = np.clip(canvas.rgb * tint, 0, 255).astype(np.uint8)


def _head(identity: Identity, side: int) -> _Canvas:
    """Everything of the head that does not move against it."""
    rx, ry, power = who.FACES[identity.face]
    skin, hair, (x, y) = who.SKINS[identity.skin], who.HAIRS[identity.hair], FACE
    canvas = _Canvas(side, mix(skin, (60, 30, 20), 0.5))
    _hair_behind(canvas, identity, rx, ry)
    for sign in (-1, 1):
        canvas.ellipse(x + sign * (rx + 0.6), EYE_Y + 6, 3.0, 4.8, mix(skin, (120, 50, 40), 0.22))
    outline = oval(x, y, rx, ry, power, 60)
    lower = np.clip((outline[:, 1] - y) / ry, 0, 1)
    outline[:, 0] = x + (outline[:, 0] - x) * (1 - 0.16 * lower**2)
    canvas.polygon(outline, skin)
    _hair_before(canvas, identity, rx, ry)
    _shade(canvas, identity, rx, ry)
    dark = mix(hair, (30, 20, 20), 0.45)
    for sign in (-1, 1):  # brows
        across = np.linspace(-5.4, 5.4, 12)
        arch = EYE_Y - 8.2 + 1.6 * (across / 5.4) ** 2 + sign * across * -0.05
        upper = np.stack([x + sign * identity.eye_gap + across, arch], 1)
        thick = np.stack([np.zeros(12), identity.brow * np.cos(across / 5.4 * 1.2)], 1)
        canvas.polygon(np.concatenate([upper, (upper + thick)[::-1]]), dark)
    nostril = mix(skin, (90, 30, 20), 0.6)
    canvas.polygon(oval(x, EYE_Y + 11.6, 3.9, 1.3), mix(skin, (120, 50, 40), 0.30))
    for sign in (-1, 1):
        canvas.ellipse(x + sign * 2.2, EYE_Y + 12.0, 1.1, 0.8, nostril)
    return canvas


def _draw_eyes(canvas: _Canvas, identity: Identity, blink: float, gaze: float) -> None:
    skin, iris = who.SKINS[identity.skin], who.EYES[identity.eyes]
    lash = mix(who.HAIRS[identity.hair], (20, 14, 14), 0.75)
    height = 3.3 * (1 - blink)
    for sign in (-1, 1):
        x = FACE[0] + sign * identity.eye_gap
        canvas.ellipse(x, EYE_Y, 5.4, max(height, 0.5) + 0.9, lash)
        if height > 0.8:
            canvas.ellipse(x, EYE_Y + 0.5, 4.7, height, (244, 242, 238))
            canvas.ellipse(x + 1.1 * gaze, EYE_Y + 0.2, 2.9, min(height, 2.9), iris)
            canvas.ellipse(x + 1.1 * gaze, EYE_Y + 0.2, 1.5, min(height, 1.5), (12, 10, 12))
            canvas.ellipse(x + 1.1 * gaze - 0.9, EYE_Y - 0.9, 0.7, 0.7, (255, 255, 255))
        else:
            canvas.ellipse(x, EYE_Y - 0.9, 5.0, 1.1, mix(skin, (120, 60, 50), 0.3))
        if identity.glasses:
            k = canvas.k * (1 << _SHIFT)
            points = np.round(oval(x, EYE_Y + 0.4, 7.6, 6.4) * k).astype(np.int32)
            cv2.polylines(canvas.rgb, [points], True, (46, 40, 44), round(canvas.k * 0.8), cv2.LINE_AA, _SHIFT)


def _draw_mouth(canvas: _Canvas, identity: Identity, opening: float, width: float) -> tuple[float, float]:
    """Lips, and between them teeth, dark and tongue. Returns (half width, gap) in px at 96."""
    skin = who.SKINS[identity.skin]
    lip = mix(mix(skin, (150, 40, 50), 0.5), (186, 30, 52), 0.55 * identity.lip)
    half = identity.mouth_width + 1.9 * width - 0.6 * opening
    gap = OPEN_PX * opening
    y = MOUTH_Y + 0.34 * gap
    smile = 2.2 * (1 - min(1.6 * opening, 1.0))

    def curved(down: float, rx: float, ry: float, power: float = 2.0) -> np.ndarray:
        points = oval(FACE[0], y + down, rx, ry, power)
        points[:, 1] -= smile * (((points[:, 0] - FACE[0]) / half) ** 2 - 0.35)
        return points

    canvas.polygon(curved(0, half, 0.5 * gap + 2.2), lip)
    canvas.polygon(curved(0.5 * gap + 1.3, half * 0.5, 0.7), mix(lip, (255, 255, 255), 0.22))
    if gap > 0.5:
        canvas.polygon(curved(0, half - 1.6, 0.5 * gap), (44, 10, 16))
        if gap > 3.2:
            canvas.polygon(curved(0.27 * gap, (half - 2) * 0.62, 0.20 * gap), (132, 40, 50))
            canvas.polygon(curved(-0.36 * gap, (half - 2) * 0.6, 0.75, 2.6), (226, 220, 210))
    else:
        canvas.polygon(curved(0, half - 1.0, 0.45), mix(lip, (40, 8, 14), 0.7))
    return half, gap


def _place(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def _box(points: np.ndarray, k: float) -> np.ndarray:
    return np.concatenate([points.min(0), points.max(0)]) * k


def render(
    identity: Identity,
    background: np.ndarray,
    speech: Speech,
    motion: Motion,
    *,
    centre: float = 48.0,
    zoom: float = 1.0,
) -> Rendered:
    """Draw one puppet over ``background`` uint8 [S, S, 3] or [F, S, S, 3], its face around x = ``centre`` (of 96)."""
    size = background.shape[-2]
    side = size * _OVER
    body, head = _body(identity, side), _head(identity, side)
    rx, ry, _ = who.FACES[identity.face]
    face_outline = oval(FACE[0], FACE[1] + 1, rx, ry - 2)
    frames, face_boxes, mouth_boxes, gaps = [], [], [], []
    layer = _Canvas(side, (0, 0, 0))
    for index in range(len(speech.opening)):
        layer.rgb, layer.alpha = head.rgb.copy(), head.alpha.copy()
        _draw_eyes(layer, identity, float(motion.blink[index]), float(motion.gaze[index]))
        half, gap = _draw_mouth(layer, identity, float(speech.opening[index]), float(speech.width[index]))
        torso = _pose(0.35 * float(motion.x[index]), 0.0, 0.0, centre, zoom)
        pose = _pose(float(motion.x[index]), float(motion.y[index]), float(motion.angle[index]), centre, zoom)
        picture = cv2.resize(
            background if background.ndim == 3 else background[index], (side, side), interpolation=cv2.INTER_LINEAR
        )
        for canvas, matrix in ((body, torso), (layer, pose)):
            picture = _over(picture, canvas, matrix)
        frames.append(cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA))
        k = size / UNIT
        face_boxes.append(_box(_place(face_outline, pose), k))
        mouth = oval(FACE[0], MOUTH_Y + 0.34 * gap, half, 0.5 * gap + 2.2)
        mouth_boxes.append(_box(_place(mouth, pose), k))
        gaps.append(gap * zoom * k)
    return Rendered(
        np.stack(frames),
        np.array(face_boxes, np.float32),
        np.array(mouth_boxes, np.float32),
        np.array(gaps, np.float32),
    )


def _pose(x: float, y: float, angle: float, centre: float, zoom: float) -> np.ndarray:
    """2 × 3 matrix in px at 96: turn about the neck, scale about the bottom centre, move."""
    matrix = cv2.getRotationMatrix2D((FACE[0], 74.0), angle, zoom)
    matrix[:, 2] += np.array([x * zoom + centre - FACE[0], y * zoom + (zoom - 1) * (12.0 if zoom > 1 else -24.0)])
    return matrix


def _over(picture: np.ndarray, canvas: _Canvas, matrix: np.ndarray) -> np.ndarray:
    side = picture.shape[0]
    scaled = matrix.copy()
    scaled[:, 2] *= canvas.k
    rgb = cv2.warpAffine(canvas.rgb, scaled, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(canvas.alpha, scaled, (side, side), flags=cv2.INTER_LINEAR)
    share = alpha.astype(np.float32) / 255.0
    return cv2.blendLinear(rgb, picture, share, 1.0 - share)
