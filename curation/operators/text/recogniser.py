"""RapidOCR's detector and recogniser (PP-OCRv6, models in the wheel) on numpy pictures, one thread, bounded input.

RapidOCR's own defaults enlarge every picture to 736 px and cost nine times as much for the same boxes. OpenVINO runs
the detector's network four times as fast as onnxruntime and finds the same boxes; the recogniser gains nothing by it.
Where OpenVINO is not installed, onnxruntime runs the detector, too (`backends.notes` tells the user).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation import packages
from curation.config import TextConfig

_DETECTOR = "PP-OCRv6_det_small.onnx"  # RapidOCR's default


@dataclass(frozen=True)
class Found:
    """One box of the detector: x0, y0, x1, y1 in pixels of the picture given, and its score 0..1."""

    box: tuple[float, float, float, float]
    score: float


class Recogniser:
    """Finds boxes and reads patches. Heavy to make, so once per worker; holds no state of a video."""

    def __init__(self, cfg: TextConfig) -> None:
        import rapidocr

        self._cfg = cfg
        engine: Any = rapidocr.RapidOCR(
            params={
                "Global.use_cls": False,
                "Global.log_level": "error",
                "Det.limit_type": "max",
                "Det.limit_side_len": 4096,  # pictures arrive at the right size
                "Det.box_thresh": cfg.box_score,
                "EngineConfig.onnxruntime.intra_op_num_threads": cfg.threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
        self._detector: Any = engine._load_det_model()
        if packages.installed("openvino"):
            self._detector.session = _OpenVino(Path(rapidocr.__file__).parent / "models" / _DETECTOR, cfg.threads)
        self._reader: Any = engine._load_rec_model()

    def detect(self, image: np.ndarray) -> list[Found]:
        """Boxes in a uint8 [h, w, 3] RGB picture, those of impossible geometry left out."""
        height, width = image.shape[:2]
        if min(height, width) < 16:
            return []
        result = self._detector(np.ascontiguousarray(image[..., ::-1]))
        found = []
        for quad, score in zip(result.boxes if result.boxes is not None else [], result.scores or [], strict=False):
            x0, y0 = np.clip(quad.min(axis=0), 0, [width, height])
            x1, y1 = np.clip(quad.max(axis=0), 0, [width, height])
            if x1 - x0 >= self._cfg.min_aspect * (y1 - y0) > 0:
                found.append(Found((float(x0), float(y0), float(x1), float(y1)), float(score)))
        return found

    def read(self, patches: list[np.ndarray]) -> list[tuple[str, float]]:
        """Text and score of each uint8 [h, w, 3] RGB patch; scripts that the model does not know read as blanks."""
        from rapidocr.ch_ppocr_rec.typings import TextRecInput

        if not patches:
            return []
        images = [np.ascontiguousarray(patch[..., ::-1]) for patch in patches]
        result = self._reader(TextRecInput(img=images, return_word_box=False))
        return [(str(t).strip(" \u3000"), float(s)) for t, s in zip(result.txts, result.scores, strict=True)]


class _OpenVino:
    """A network for RapidOCR: float32 [1, 3, h, w] in, its output out. Always in float32, whatever the processor offers."""

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        options = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False, "INFERENCE_PRECISION_HINT": "f32"}
        self._request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        self._request.infer([pictures])
        return np.asarray(self._request.get_output_tensor(0).data)


def fit(image: np.ndarray, cfg: TextConfig) -> np.ndarray:
    """A whole frame at the size the detector gets: the shorter side ``detect_side``, unless the area grows too large."""
    height, width = image.shape[:2]
    scale = min(cfg.detect_side / min(height, width), (cfg.detect_pixels / (height * width)) ** 0.5)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
