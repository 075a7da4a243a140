"""SyncNet v2 (Chung and Zisserman 2016) with the network and weight file of `syncnet-python`, in memory and batched.

Same numbers as that package's `SyncNetInstance.evaluate` for the same crops and sound: windows of 5 frames and 20
MFCC frames, ``frames − 5`` of them, pairwise distances over ±vshift with zero vectors beyond the ends. The lip network
has no padding in time, so it slides over a clip once instead of seeing every window anew.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.errors import EchoForgeError
from configs.weights import locate
from curation import packages
from curation.config import SyncConfig
from curation.schema import SAMPLE_RATE
from curation.sync.base import CropNeed, SyncScore, checked, distance_matrix, summarise

_WINDOW = 5  # frames
_MFCC_PER_FRAME = 4


def network() -> torch.nn.Module:
    """The package's network with random weights. Its file is loaded alone: the package's front drags in much else.

    Raises:
        EchoForgeError: `syncnet-python` is not installed.
    """
    packages.require("syncnet_python", "sync.backend=syncnet_v2")
    spec = importlib.util.find_spec("syncnet_python")
    assert spec is not None and spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "SyncNetModel.py"
    inner = importlib.util.spec_from_file_location("_syncnet_model", path)
    assert inner is not None and inner.loader is not None
    module = importlib.util.module_from_spec(inner)
    inner.loader.exec_module(module)
    return module.S(num_layers_in_fc_layers=1024)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """State dict of ``syncnet_v2.model`` (tensors only: nothing in the file is run) or of a ``.safetensors``.

    Raises:
        EchoForgeError: the file is not such a state dict.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        return {str(name): torch.as_tensor(value) for name, value in state.items()}
    except Exception as error:  # pickles and headers fail in many ways
        raise EchoForgeError(f"{path} is not a SyncNet v2 weight file ({type(error).__name__}: {error}).") from error


class SyncNetV2:
    """Backend ``syncnet_v2``; crops are faces, 224 × 224 RGB (cut by `crops.square`, SyncNet's own margins)."""

    name = "syncnet_v2"
    crop = CropNeed("face", 224, gray=False)
    unit = 1.0

    def __init__(self, net: torch.nn.Module, cfg: SyncConfig, device: str = "cpu") -> None:
        self._net = net.eval().requires_grad_(False).to(device)
        self._cfg = cfg
        self._device = device

    @classmethod
    def load(cls, cfg: SyncConfig, device: str = "cpu") -> SyncNetV2:
        """From the weight file that the configuration names.

        Raises:
            MissingWeights: there is none.
            EchoForgeError: it does not fit the network.
        """
        path = locate("sync.weights", cfg.weights, "syncnet_v2")
        net = network()
        try:
            net.load_state_dict(read_weights(path))
        except RuntimeError as error:
            raise EchoForgeError(f"{path} does not fit SyncNet v2: {str(error).splitlines()[-1].strip()}") from error
        return cls(net, cfg, device)

    def score(self, crops: np.ndarray, pcm: np.ndarray) -> SyncScore:
        """See :class:`curation.sync.base.SyncBackend`."""
        return self.score_many([(crops, pcm)])[0]

    @torch.inference_mode()
    def score_many(self, clips: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[SyncScore]:
        """Sound windows of all clips go through the network together; lips clip by clip, in pieces of a batch."""
        counts = [checked(crops, pcm, self.crop, _WINDOW + 1) - _WINDOW for crops, pcm in clips]
        sound = torch.cat([mfcc_windows(pcm, count) for (_, pcm), count in zip(clips, counts, strict=True)])
        heard = torch.cat(
            [
                self._net.forward_aud(part.to(self._device)).float().cpu()  # type: ignore[operator]
                for part in sound.split(self._cfg.batch_size * 4)
            ]
        )
        scores = []
        for (crops, _), count, aud in zip(clips, counts, heard.split(counts), strict=True):
            matrix = distance_matrix(self._lips(crops, count), aud, self._cfg.vshift, padded=True)
            scores.append(summarise(matrix, self._cfg.vshift))
        return scores

    def _lips(self, crops: np.ndarray, count: int) -> torch.Tensor:
        """Embeddings of ``count`` windows, float32 [count, 1024]."""
        out = []
        for at in range(0, count, self._cfg.batch_size):
            size = min(self._cfg.batch_size, count - at)
            piece = np.ascontiguousarray(crops[at : at + size + _WINDOW - 1, ..., ::-1])  # the network learned BGR
            video = torch.from_numpy(piece).to(self._device).permute(3, 0, 1, 2)[None].float()
            features = self._net.netcnnlip(video)[0, :, :, 0, 0].T  # type: ignore[operator]  # [size, 512]
            out.append(self._net.netfclip(features).float().cpu())  # type: ignore[operator]
        return torch.cat(out)


def mfcc_windows(pcm: np.ndarray, count: int) -> torch.Tensor:
    """float32 [count, 1, 13, 20]: MFCC of the 16-bit sound, 100 a second, windows starting every 4."""
    import python_speech_features

    audio = np.clip(np.round(np.asarray(pcm, np.float64) * 32768), -32768, 32767).astype(np.int16)
    mfcc = torch.from_numpy(python_speech_features.mfcc(audio, SAMPLE_RATE)).float().T.contiguous()
    return mfcc.unfold(1, 20, _MFCC_PER_FRAME)[:, :count].permute(1, 0, 2)[:, None].contiguous()
