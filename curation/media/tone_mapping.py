"""High dynamic range shown on an ordinary screen: one table per transfer function, applied to 8-bit code values."""

from __future__ import annotations

from functools import cache

import numpy as np

PQ, HLG = 16, 18  # AVColorTransferCharacteristic: SMPTE 2084, ARIB STD-B67


@cache
def tone_curve(transfer: int) -> np.ndarray:
    """uint8 [256]: code value of PQ or HLG → sRGB code value, diffuse white (203 nit, BT.2408) just below the top.

    Luminance above white is rolled off by x/(1+x) scaled to the curve's peak; primaries are left as they are.
    """
    code = np.arange(256) / 255.0
    if transfer == PQ:  # SMPTE ST 2084, in units of 203 nit
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        power = code ** (1 / m2)
        light = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1) * 10_000 / 203
    else:  # ARIB STD-B67 and the 1.2 gamma of a 1000-nit display
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
        light = scene**1.2 * 1000 / 203
    light = light / (1 + light) * 2
    light = np.clip(light, 0, 1)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)
