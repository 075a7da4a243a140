"""Two voices at once, as far as it can be told without a model: a second harmonic series beside the strongest one.

Every voiced frame is whitened, the fundamental with the strongest comb of harmonics is found and its harmonics are
taken out; what comb is left is the second voice's (or music's). A share of frames comes out, and a modest measure: on
mixtures of two people's real speech its AUC is 0.83, but single voices reach 0.34: a score to look at, not a judge.
"""

from __future__ import annotations

import numpy as np

from curation.clip import Scores
from curation.operators.base import SoundOperator
from curation.schema import SAMPLE_RATE

_WINDOW, _HOP, _FFT = 1024, 320, 4096  # 64 ms hold three periods of the lowest voice; 20 ms steps; 3.9 Hz bins
_F0 = np.geomspace(75, 350, 160)  # Hz: the voices of adults and children
_HARMONICS = 10
_WEIGHTS = 0.9 ** np.arange(_HARMONICS)
_SMOOTH = 101  # bins (400 Hz) of the envelope that is divided out
_PEAK = 4.0  # a whitened line counts for no more than so much
_LOUD = 0.25  # of the level of the loudest third: quieter frames are left out
_VOICED, _SECOND = 0.9, 0.9  # comb strength of speech, and of what counts as one more voice
_LEAST = 25  # voiced frames (half a second): fewer say nothing
_NEAR_HZ = 22.0  # half the width of a line of this window


def _bins(shift: float) -> np.ndarray:
    series = _F0[:, None] * (np.arange(1, _HARMONICS + 1) - shift) * _FFT / SAMPLE_RATE
    return np.clip(series.round().astype(int), 0, _FFT // 2)


_ON, _BETWEEN = _bins(0.0), _bins(0.5)


class OverlappedSpeechOperator(SoundOperator):
    """How much of the speech has a second voice (or music) in it; has no parameters."""

    name = "voices"
    version = 1
    columns = ("second_voice",)

    def clip(self, pcm: np.ndarray, native: np.ndarray, native_rate: int) -> Scores:
        """Share of the voiced frames (0..1) in which a second voice is heard; null where half a second of voice is missing."""
        return {"second_voice": second_voice(pcm)}


def second_voice(pcm: np.ndarray) -> float | None:
    """Of mono float32 [n] at 16 kHz: see :meth:`OverlappedSpeechOperator.clip`."""
    if len(pcm) < _WINDOW:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(pcm, _WINDOW)[::_HOP]
    level = np.sqrt((frames**2).mean(axis=1))
    loudest = np.sort(level)[-max(1, len(level) // 3) :]
    frames = frames[level > max(1e-4, _LOUD * float(np.sqrt((loudest**2).mean())))]
    if not len(frames):
        return None
    lines = _whitened(np.abs(np.fft.rfft(frames * np.hanning(_WINDOW).astype(np.float32), _FFT)).astype(np.float32))
    comb = _comb(lines)
    voiced = comb.max(axis=1) > _VOICED
    if voiced.sum() < _LEAST:
        return None
    first = _F0[comb.argmax(axis=1)][voiced, None]
    hertz = np.arange(_FFT // 2 + 1)[None] * (SAMPLE_RATE / _FFT)
    away = np.abs(hertz - np.round(hertz / first) * first)
    rest = np.where(away < _NEAR_HZ, np.float32(0), lines[voiced])
    return float((_comb(rest).max(axis=1) > _SECOND).mean())


def _whitened(spectrum: np.ndarray) -> np.ndarray:
    """Magnitudes [frames, bins] over their running mean, bounded."""
    sums = np.cumsum(np.pad(spectrum, ((0, 0), (_SMOOTH // 2 + 1, _SMOOTH // 2))), axis=1)
    envelope = (sums[:, _SMOOTH:] - sums[:, :-_SMOOTH]) / _SMOOTH
    return np.minimum(spectrum / (envelope + 1e-6), _PEAK)


def _comb(lines: np.ndarray) -> np.ndarray:
    """Strength of every fundamental: lines on its harmonics minus those half-way between, float [frames, 160]."""
    kept = _WEIGHTS / _WEIGHTS.sum()
    return np.asarray(lines[:, _ON] @ kept - lines[:, _BETWEEN] @ kept)
