"""Judgement of a clip's sound: speech by silero-vad, loudness by BS.1770, clipping."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np

from configs.errors import EchoForgeError
from curation.clip import Scores
from curation.config import CurationConfig, SoundConfig
from curation.operators.base import SoundOperator
from curation.schema import SAMPLE_RATE

_STEP = 512  # samples that silero-vad judges at once at 16 kHz
_CONTEXT = 64  # samples of the step before that it wants in front
_BLOCK_S = 0.4  # shortest sound that BS.1770 can measure
_SILENCE = -70.0  # LUFS: BS.1770's absolute gate; what lies below is silence


class Vad:
    """silero-vad's ONNX model as it lies in the wheel (the package itself would import torch). Heavy: one a worker."""

    def __init__(self, threads: int) -> None:
        import onnxruntime as ort

        spec = importlib.util.find_spec("silero_vad")
        folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
        file = folder / "data" / "silero_vad_16k_sequence.onnx" if folder else None
        if file is None or not file.exists():
            raise EchoForgeError(
                "the package silero-vad lacks its speech model; install it again with "
                "`pip install --force-reinstall --no-deps 'silero-vad>=6.2'`."
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def probabilities(self, pcm: np.ndarray) -> np.ndarray:
        """Speech probability of each 512 samples of float32 [n] at 16 kHz: float32 [ceil(n / 512)]."""
        count = -(-len(pcm) // _STEP)
        if not count:
            return np.zeros(0, np.float32)
        steps = np.zeros((count, _STEP), np.float32)
        steps.reshape(-1)[: len(pcm)] = pcm
        before = np.vstack([np.zeros((1, _CONTEXT), np.float32), steps[:-1, -_CONTEXT:]])
        state = np.zeros((1, 1, 128), np.float32)
        inputs = {"input": np.hstack([before, steps]), "h": state, "c": state}
        values = self._session.run(["speech_probs"], inputs)[0]
        return np.asarray(values, np.float32).reshape(-1)


class SpeechOperator(SoundOperator):
    """How much of a clip is speech, how loud it is, how much of it is clipped."""

    name = "sound"
    version = 1
    section = "sound"
    columns = ("lufs", "speech_frac", "clip_frac")

    def __init__(self, cfg: SoundConfig, vad: Vad) -> None:
        super().__init__(cfg)
        self._cfg = cfg
        self._vad = vad

    @classmethod
    def load(cls, cfg: CurationConfig) -> Callable[[], Self]:
        """Loads the model."""
        vad = Vad(cfg.sound.threads)
        return lambda: cls(cfg.sound, vad)

    def clip(self, pcm: np.ndarray, native: np.ndarray, native_rate: int) -> Scores:
        """``pcm`` float32 [n] mono at 16 kHz; ``native`` float32 [n, channels] at its own rate."""
        return {
            "lufs": loudness(native, native_rate),
            "speech_frac": speech_frac(self._vad.probabilities(pcm), self._cfg),
            "clip_frac": clipped(native, self._cfg.clip_level),
        }


def speech_frac(probabilities: np.ndarray, cfg: SoundConfig) -> float:
    """Share of the steps inside speech: started at one level, ended at a lower one, gaps closed, blips dropped."""
    if not len(probabilities):
        return 0.0
    second = SAMPLE_RATE / _STEP
    speech = np.zeros(len(probabilities), bool)
    inside = False
    for i, p in enumerate(probabilities):
        inside = p >= (cfg.vad_release if inside else cfg.vad_threshold)
        speech[i] = inside
    speech = _runs(speech, False, round(cfg.min_gap_s * second))
    return float(_runs(speech, True, round(cfg.min_speech_s * second)).mean())


def loudness(native: np.ndarray, rate: int) -> float:
    """Integrated loudness in LUFS, −70 for silence or for what is too short to measure."""
    import pyloudnorm

    if len(native) < _BLOCK_S * rate or not np.any(native):
        return _SILENCE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyloudnorm warns of silence by numpy
        value = float(pyloudnorm.Meter(rate, block_size=_BLOCK_S).integrated_loudness(native[:, :5].astype(np.float64)))
    return value if np.isfinite(value) and value > _SILENCE else _SILENCE


def clipped(native: np.ndarray, level: float) -> float:
    """Share of samples in flat tops: two neighbours or more at the sound's own peak, if that is near full scale."""
    peak = float(np.abs(native).max(initial=0.0))
    if peak < 0.5:
        return 0.0
    top = np.abs(native) >= level * min(peak, 1.0)
    flat = top[1:] & top[:-1]
    return float(flat.mean()) if flat.size else 0.0


def _runs(values: np.ndarray, of: bool, shorter: int) -> np.ndarray:
    """Runs of ``of`` shorter than so many steps are turned over; those at the ends stay."""
    edges = np.flatnonzero(np.diff(values.astype(np.int8))) + 1
    result = values.copy()
    for begin, end in pairwise(edges):
        if values[begin] == of and end - begin < shorter:
            result[begin:end] = not of
    return result
