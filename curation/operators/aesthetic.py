"""How pleasing a picture is: CLIP ViT-L/14 (through open_clip) and the LAION head, 1 (ugly) … 10; off unless configured.

The head is `improved-aesthetic-predictor` (sac+logos+ava1-l14-linearMSE: linear layers on the normalised embedding, no
activations between them), the score that cosmos-curate and most text-to-video sets filter by.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from configs.errors import EchoForgeError
from configs.runtime.devices import usable
from configs.weights import locate
from curation.clip import Scores
from curation.config import AestheticConfig, CurationConfig
from curation.operators.base import ClipContext, FrameNeed, Picture, PictureOperator

if TYPE_CHECKING:  # heavy: imported where the networks are loaded
    from torch import nn

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
        clip, head = _files(cfg)
        try:
            model, _, self._prepare = open_clip.create_model_and_transforms(cfg.model, pretrained=str(clip))
        except (RuntimeError, ValueError, OSError, pickle.UnpicklingError) as error:
            raise EchoForgeError(f"'{clip}' does not hold open_clip's {cfg.model} ({_first(error)}).") from error
        self._see = model.visual.to(cfg.device).eval()
        self._head = read_head(head).to(cfg.device).eval()
        self._device = cfg.device

    def score(self, pictures: list[np.ndarray]) -> np.ndarray:
        """uint8 [h, w, 3] RGB each → float32 [n]."""
        import torch
        from PIL import Image

        with torch.inference_mode():
            batch = torch.stack([self._prepare(Image.fromarray(picture)) for picture in pictures]).to(self._device)
            seen = torch.nn.functional.normalize(self._see(batch).float(), dim=-1)
            return np.asarray(self._head(seen)[:, 0].cpu().numpy())


def read_head(path: Path) -> nn.Module:
    """The linear layers from a ``.safetensors`` or a ``.pth`` (tensors only: nothing in it is run).

    Raises:
        EchoForgeError: the file holds something else.
    """
    import torch
    from torch import nn

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


class AestheticOperator(PictureOperator[np.ndarray]):
    """Scores the clip's pictures together."""

    name = "aesthetic"
    version = 1
    section = "aesthetic"
    switch = "enabled"
    columns = ("aesthetic",)

    def __init__(self, cfg: AestheticConfig, scorer: Scorer) -> None:
        super().__init__(cfg)
        self.needs = FrameNeed(rate=cfg.rate, side=cfg.side)
        self._scorer = scorer

    @classmethod
    def load(cls, cfg: CurationConfig) -> Callable[[], Self]:
        """Loads both networks.

        Raises:
            MissingWeights: a file is not here.
        """
        scorer = Scorer(cfg.aesthetic)
        return lambda: cls(cfg.aesthetic, scorer)

    @classmethod
    def check(cls, cfg: CurationConfig) -> None:
        """See `Operator.check`."""
        _files(cfg.aesthetic)

    def look(self, picture: Picture) -> np.ndarray:
        """The picture itself, uint8 [h, w, 3] RGB."""
        return picture.image

    def score(self, seen: list[np.ndarray], context: ClipContext) -> Scores:
        """The mean over the clip's pictures."""
        return {"aesthetic": float(self._scorer.score(seen).mean()) if seen else None}


def _files(cfg: AestheticConfig) -> tuple[Path, Path]:
    """The network's and the head's."""
    return locate("aesthetic.clip", cfg.clip, True), locate("aesthetic.head", cfg.head, True)


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
