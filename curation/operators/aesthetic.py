"""How pleasing a picture is: CLIP ViT-L/14 (through open_clip) and the LAION head, 1 (ugly) … 10; off unless configured.

The head is `improved-aesthetic-predictor` (sac+logos+ava1-l14-linearMSE: linear layers on the normalised embedding, no
activations between them), the score that cosmos-curate and most text-to-video sets filter by.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from configs.errors import EchoForgeError
from configs.runtime.devices import usable
from configs.weights import locate
from curation.config import AestheticConfig
from curation.operators.base import ClipContext, FrameNeed, Picture, Span

_WIDTHS = (1024, 128, 64, 16, 1)


class Scorer:
    """Both networks. Heavy to make, so once per worker; holds no state of a video."""

    def __init__(self, cfg: AestheticConfig) -> None:
        """Loads them.

        Raises:
            MissingWeights: a file is not here.
            EchoForgeError: it does not hold this network, or ``aesthetic.device`` is a GPU that is not there.
        """
        import open_clip

        usable(cfg.device, "aesthetic.device")
        clip, head = locate("aesthetic.clip", cfg.clip, True), locate("aesthetic.head", cfg.head, True)
        try:
            model, _, self._prepare = open_clip.create_model_and_transforms(cfg.model, pretrained=str(clip))
        except (RuntimeError, ValueError, OSError, pickle.UnpicklingError) as error:
            raise EchoForgeError(f"'{clip}' does not hold open_clip's {cfg.model} ({_first(error)}).") from error
        self._see = model.visual.to(cfg.device).eval()
        self._head = read_head(head).to(cfg.device).eval()
        self._device = cfg.device

    @torch.inference_mode()
    def score(self, pictures: list[np.ndarray]) -> np.ndarray:
        """uint8 [h, w, 3] RGB each → float32 [n]."""
        from PIL import Image

        batch = torch.stack([self._prepare(Image.fromarray(picture)) for picture in pictures]).to(self._device)
        return np.asarray(self._head(nn.functional.normalize(self._see(batch).float(), dim=-1))[:, 0].cpu().numpy())


def read_head(path: Path) -> nn.Module:
    """The linear layers from a ``.safetensors`` or a ``.pth`` (tensors only: nothing in it is run).

    Raises:
        EchoForgeError: the file holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        sizes = (state["layers.0.weight"].shape[1], *_WIDTHS)
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(pairwise(sizes)):
            layers += [nn.Linear(inputs, outputs)] + ([nn.Identity()] if number < 3 else [])  # its dropouts
        net = nn.Sequential(*layers)
        net.load_state_dict({name.removeprefix("layers."): value for name, value in state.items()})
    except Exception as error:  # pickles and headers fail in many ways
        raise EchoForgeError(
            f"'{path}' is not the aesthetic head ({type(error).__name__}: {_first(error)})."
        ) from error
    return net


class AestheticOperator:
    """Serves one video."""

    name = "aesthetic"
    version = 1
    columns: tuple[str, ...] = ("aesthetic",)

    def __init__(self, cfg: AestheticConfig, scorer: Scorer) -> None:
        self.needs = FrameNeed(rate=cfg.rate, side=cfg.side)
        self._scorer = scorer
        self._kept: list[tuple[int, np.ndarray]] = []

    def frame(self, picture: Picture) -> None:
        """See one picture, uint8 [h, w, 3] RGB."""
        self._kept.append((picture.index, picture.image))

    def clip(self, span: Span, context: ClipContext) -> dict[str, Any]:
        """The mean over the clip's pictures, which go through the networks together."""
        seen = [image for index, image in self._kept if span.start <= index < span.end]
        return {"aesthetic": float(self._scorer.score(seen).mean()) if seen else None}

    def forget(self, before: int) -> None:
        """See :class:`curation.operators.base.FrameOperator`."""
        self._kept = [k for k in self._kept if k[0] >= before]


def load(cfg: Any) -> Callable[[], AestheticOperator] | None:
    """``cfg``: CurationConfig. None where it is switched off.

    Raises:
        MissingWeights: it is on, and a file is not here.
    """
    if not cfg.aesthetic.enabled:
        return None
    scorer = Scorer(cfg.aesthetic)
    return lambda: AestheticOperator(cfg.aesthetic, scorer)


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
