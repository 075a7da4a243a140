"""Audio-visual sync: two backends behind one interface, and what to do about an offset. offset > 0: sound early."""

from __future__ import annotations

from curation.config import SyncConfig
from curation.sync.base import CropNeed, SyncBackend, SyncScore
from curation.sync.correct import Correction, correct
from curation.sync.crops import Square, cut, cut_all, square

__all__ = [
    "Correction",
    "CropNeed",
    "Square",
    "SyncBackend",
    "SyncScore",
    "correct",
    "cut",
    "cut_all",
    "load_backend",
    "square",
]


def load_backend(cfg: SyncConfig, device: str = "cpu") -> SyncBackend | None:
    """The backend that the configuration names; None for ``none`` (clips are then held where sync is required).

    Raises:
        MissingWeights: its file is not on this machine.
        EchoForgeError: its file is of another kind.
    """
    if cfg.backend == "syncnet_v2":
        from curation.sync.syncnet_v2 import SyncNetV2

        return SyncNetV2.load(cfg, device)
    if cfg.backend == "fitted":
        from curation.sync.fitted import FittedSync

        return FittedSync.load(cfg, device)
    return None
