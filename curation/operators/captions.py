"""Captions by a vision-language model, of clips that nobody described."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np

from configs.errors import MissingWeights
from configs.runtime.devices import usable
from curation.captions import PARTS, caption
from curation.clip import Caption, Scores
from curation.config import CaptionsConfig, CurationConfig
from curation.operators.base import ClipContext, FrameNeed, Picture, PictureOperator

PROMPT = (
    "These pictures are frames of one short video of a person talking, in order. Answer with one JSON object and "
    "nothing else, with exactly these keys, each a plain English sentence about what can be seen: "
    '"hands" (visible or not, gestures), "posture", "face" (expression and how it changes), "eyes" (gaze, blinks), '
    '"head" (movement), "coverage" (close-up, head and shoulders, half body, full body), "clothing", "background", '
    '"overall" (two sentences that describe the whole video). Do not guess who the person is.'
)


class VisionCaptioner:
    """A vision-language model through `transformers` (any image-text-to-text model with a chat template)."""

    def __init__(self, cfg: CaptionsConfig) -> None:
        """Loads the model once per worker.

        Raises:
            MissingWeights: no model is configured, or it is not on this machine.
        """
        if not cfg.model:
            raise MissingWeights("captions.kind is vlm but captions.model names none; give a local folder or hub id.")
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._cfg = cfg
        usable(cfg.device, "captions.device")
        try:
            self._processor: Any = AutoProcessor.from_pretrained(cfg.model, trust_remote_code=False)
            dtype = torch.bfloat16 if cfg.device.startswith("cuda") else torch.float32
            model: Any = AutoModelForImageTextToText.from_pretrained(cfg.model, dtype=dtype, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise MissingWeights(
                f"the captioning model '{cfg.model}' could not be loaded ({error}); set captions.model to its folder."
            ) from error
        self._model: Any = model.to(cfg.device).eval()
        self._source = f"vlm:{Path(cfg.model).name if Path(cfg.model).is_dir() else cfg.model}"

    def describe(self, frames: np.ndarray) -> list[Caption]:
        """Captions of uint8 [F, H, W, 3] RGB: one per part that the model answered."""
        import torch
        from PIL import Image

        picks = np.linspace(0, len(frames) - 1, min(self._cfg.frames, len(frames))).round().astype(int)
        images = [Image.fromarray(frames[i]) for i in picks]
        content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": PROMPT}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._model.device)
        with torch.inference_mode():
            out = self._model.generate(**inputs, max_new_tokens=self._cfg.max_tokens, do_sample=False)
        answer = self._processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        return parse_answer(answer, self._source)


class CaptionOperator(PictureOperator[np.ndarray]):
    """Keeps a few pictures a second and shows those of a clip with a face to the model.

    It runs only for videos that nobody described; sidecars, manifests and the template need no pictures
    (`curation.captions`), and its name stands for those, too.
    """

    name = "captions"
    version = 1
    section = "captions"
    requires = ("faces",)  # the model is asked only about clips with a face
    columns = ("captions",)

    def __init__(self, cfg: CaptionsConfig, model: VisionCaptioner) -> None:
        super().__init__(cfg)
        self.needs = FrameNeed(rate=cfg.rate, side=cfg.side)
        self._model = model

    @classmethod
    def load(cls, cfg: CurationConfig) -> Callable[[], Self] | None:
        """Loads the model; None where ``captions.kind`` asks for none.

        Raises:
            MissingWeights: no model is configured, or it is not on this machine.
        """
        if cfg.captions.kind != "vlm":
            return None
        model = VisionCaptioner(cfg.captions)
        return lambda: cls(cfg.captions, model)

    def look(self, picture: Picture) -> np.ndarray:
        """The picture itself, uint8 [h, w, 3] RGB."""
        return picture.image

    def score(self, seen: list[np.ndarray], context: ClipContext) -> Scores:
        """The model's captions; none for a clip without a face, which is never kept."""
        return {"captions": self._model.describe(np.stack(seen)) if seen and context.tracks else []}


def parse_answer(answer: str, source: str) -> list[Caption]:
    """A model's answer → captions; prose around the JSON is dropped, prose without JSON becomes ``overall``."""
    begin, end = answer.find("{"), answer.rfind("}")
    try:
        data = json.loads(answer[begin : end + 1]) if 0 <= begin < end else None
    except json.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        return [caption(answer, source)] if answer.strip() else []
    return [caption(str(data[part]), source, part) for part in reversed(PARTS) if str(data.get(part) or "").strip()]
