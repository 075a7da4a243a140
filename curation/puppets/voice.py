"""Speech-like sound by a source-filter synthesiser, with the articulation that made it.

Syllables (an optional consonant and a vowel) in phrases with pauses. A control track at 200 Hz drives both the sound
(glottal pulses and noise, shaped by formants) and the mouth (opening, width), so the two agree by construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.schema import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

CONTROL_RATE = 200  # Hz
_HOP = SAMPLE_RATE // CONTROL_RATE
_WINDOW = 4 * _HOP  # 20 ms
_FFT = 1024

# vowel: F1, F2, F3 in Hz of an adult male voice (Peterson and Barney 1952), opening and width of the mouth
VOWELS: dict[str, tuple[float, float, float, float, float]] = {
    "a": (730, 1090, 2440, 1.0, 0.1),
    "e": (530, 1840, 2480, 0.62, 0.7),
    "i": (270, 2290, 3010, 0.34, 1.0),
    "o": (570, 840, 2410, 0.72, -0.7),
    "u": (300, 870, 2240, 0.30, -1.0),
}
_CONSONANTS = ("stop", "nasal", "fricative", "none")


@dataclass(frozen=True)
class Voice:
    """Who speaks: pitch in Hz, formant scale (shorter vocal tract: > 1), breathiness 0..1, syllables a second."""

    pitch: float
    tract: float
    breath: float
    rate: float

    @property
    def description(self) -> str:
        """A word or two for captions."""
        return "deep" if self.pitch < 125 else "high" if self.pitch > 210 else "middle-pitched"


@dataclass(frozen=True)
class Speech:
    """``pcm`` float32 [F · 640] at 16 kHz; ``opening`` float32 [F] in 0..1, ``width`` float32 [F] in −1..1."""

    pcm: np.ndarray
    opening: np.ndarray
    width: np.ndarray


@dataclass
class _Tracks:
    """Control at 200 Hz: voiced and noise amplitude, formants [n, 3], opening, width."""

    voiced: np.ndarray
    noise: np.ndarray
    formants: np.ndarray
    opening: np.ndarray
    width: np.ndarray


def draw_voice(rng: np.random.Generator) -> Voice:
    """A random voice."""
    pitch = float(np.exp(rng.uniform(np.log(95), np.log(260))))
    tract = float(np.interp(pitch, [95, 260], [0.95, 1.18]) * rng.uniform(0.97, 1.03))
    return Voice(pitch, tract, float(rng.uniform(0.02, 0.12)), float(rng.uniform(3.2, 4.6)))


def speak(voice: Voice, frames: int, rng: np.random.Generator) -> Speech:
    """Speech of ``frames`` video frames (25 fps)."""
    steps = frames * CONTROL_RATE // FPS
    tracks = _articulate(voice, steps, rng)
    pcm = _synthesise(voice, tracks, rng)
    per_frame = CONTROL_RATE // FPS
    opening = tracks.opening.reshape(frames, per_frame).mean(1)
    width = tracks.width.reshape(frames, per_frame).mean(1)
    return Speech(pcm, opening.astype(np.float32), width.astype(np.float32))


def _articulate(voice: Voice, steps: int, rng: np.random.Generator) -> _Tracks:
    """Targets syllable by syllable, then smoothed as a mouth smooths them."""
    rest = np.array([500.0, 1500.0, 2500.0])
    tracks = _Tracks(np.zeros(steps), np.zeros(steps), np.tile(rest, (steps, 1)), np.zeros(steps), np.zeros(steps))
    at = int(rng.uniform(0.04, 0.3) * CONTROL_RATE)
    left = int(rng.integers(3, 8))
    while at < steps:
        at = _syllable(tracks, at, voice, rng)
        left -= 1
        if left == 0:
            at += int(rng.uniform(0.22, 0.5) * CONTROL_RATE)
            left = int(rng.integers(3, 8))
    tracks.voiced, tracks.noise = _smooth(tracks.voiced, 5), _smooth(tracks.noise, 5)
    tracks.formants = np.stack([_smooth(f, 9) for f in tracks.formants.T], 1)
    tracks.opening, tracks.width = _smooth(tracks.opening, 11), _smooth(tracks.width, 15)
    return tracks


def _syllable(tracks: _Tracks, at: int, voice: Voice, rng: np.random.Generator) -> int:
    """Write one syllable at ``at``; returns where it ends."""
    length = CONTROL_RATE / voice.rate * rng.uniform(0.75, 1.3)
    kind = _CONSONANTS[rng.integers(len(_CONSONANTS))]
    onset = 0 if kind == "none" else int(rng.uniform(0.055, 0.09) * CONTROL_RATE)
    f1, f2, f3, opening, width = VOWELS["aeiou"[rng.integers(5)]]
    stress = rng.uniform(0.75, 1.0)
    consonant, vowel = slice(at, at + onset), slice(at + onset, at + max(int(length), onset + 14))
    tracks.formants[at : vowel.stop] = f1, f2, f3
    if kind == "nasal":
        tracks.voiced[consonant] = 0.16
        tracks.formants[consonant] = 250, 1200, 2300
    elif kind == "fricative":
        tracks.noise[consonant] = 0.10
        tracks.opening[consonant] = 0.12
        tracks.width[consonant] = 0.4
    elif kind == "stop":
        tracks.noise[at + onset - 3 : at + onset] = 0.2
    size = tracks.opening[vowel].size
    shape = np.sin(np.linspace(0.12, np.pi - 0.12, size)) ** 0.6 if size else np.zeros(0)
    tracks.voiced[vowel] = stress * (0.15 + 0.85 * opening) * shape  # an open mouth radiates more
    tracks.opening[vowel] = stress * opening * shape
    tracks.width[vowel] = width
    return vowel.stop


def _smooth(track: np.ndarray, width: int) -> np.ndarray:
    window = np.hanning(width + 2)[1:-1]
    return np.convolve(np.pad(track, width // 2, mode="edge"), window / window.sum(), mode="valid")[: len(track)]


def _synthesise(voice: Voice, tracks: _Tracks, rng: np.random.Generator) -> np.ndarray:
    """Glottal pulses and noise → formant filter by overlap-add of 20 ms windows."""
    steps = len(tracks.voiced)
    size = steps * _HOP
    times = np.arange(size) / SAMPLE_RATE
    wander = sum(
        rng.uniform(0.02, 0.06) * np.sin(2 * np.pi * (rng.uniform(0.3, 3.5) * times + rng.uniform())) for _ in range(3)
    )
    pitch = voice.pitch * (1.05 - 0.1 * (times % 1.7) / 1.7) * (1 + wander)
    phase = np.cumsum(pitch) / SAMPLE_RATE % 1.0
    pulse = np.where(phase < 0.6, np.sin(np.pi * phase / 0.6) ** 2, 0.0)  # flow, open 60 % of the period
    pulse = np.diff(pulse, prepend=0.0) * 8.0
    samples = np.arange(size) / _HOP
    amplitude = np.interp(samples, np.arange(steps), tracks.voiced)
    hiss = rng.standard_normal(size)
    voiced = amplitude * (pulse + voice.breath * 0.5 * hiss)
    shaped = _formant_filter(voiced, tracks.formants * voice.tract)
    level = np.sqrt(np.convolve(shaped**2, np.full(_WINDOW, 1 / _WINDOW), mode="same"))
    shaped *= amplitude / (level + 0.05 * level.max() + 1e-9)  # loudness is the mouth's, not the formants'
    noise = np.interp(samples, np.arange(steps), tracks.noise) * np.diff(hiss, prepend=0.0)  # high-passed
    pcm = shaped + 1.5 * noise
    pcm = 0.16 * pcm / (np.sqrt(np.mean(pcm**2)) + 1e-9)
    return np.tanh(pcm * 1.1).astype(np.float32)


def _formant_filter(source: np.ndarray, formants: np.ndarray) -> np.ndarray:
    """Time-varying resonances: each 20 ms window is multiplied by the response of its formants (zero phase)."""
    steps = len(formants)
    padded = np.pad(source, (_WINDOW // 2, _WINDOW))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[: steps * _HOP : _HOP] * np.hanning(_WINDOW)
    hz = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    response = np.full((steps, len(hz)), 0.03)
    for number, (gain, bandwidth) in enumerate(((1.0, 90.0), (0.6, 120.0), (0.25, 180.0))):
        centre = formants[:, number, None]
        response += gain / np.sqrt(1.0 + ((hz - centre) / bandwidth) ** 2)
    shaped = np.fft.irfft(np.fft.rfft(windows, _FFT) * response, _FFT)
    shaped = np.roll(shaped, _FFT // 4, axis=1)  # zero phase: let the ringing before the window's start through
    out = np.zeros(steps * _HOP + 2 * _FFT)
    for part in range(_FFT // _HOP + 1):  # add every slice of one hop at once
        piece = shaped[:, part * _HOP : (part + 1) * _HOP]
        if piece.shape[1] < _HOP:
            piece = np.pad(piece, ((0, 0), (0, _HOP - piece.shape[1])))
        out[part * _HOP : part * _HOP + steps * _HOP] += piece.reshape(-1)
    start = _FFT // 4 + _WINDOW // 2
    return out[start : start + steps * _HOP]


def silence(frames: int) -> np.ndarray:
    """Nothing at all, float32 [frames · 640]."""
    return np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
