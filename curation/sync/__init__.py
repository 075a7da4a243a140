"""Audio-visual sync: two backends behind one interface, measured here and decided in `curation/decision/decide.py`."""

from __future__ import annotations

from curation.config import SyncConfig
from curation.sync.base import CropNeed, SyncBackend, SyncScore
from curation.sync.crops import Square, cut, cut_all, square
from curation.sync.measure import Residual, measure_residual

SYNC_VERSION = 2
"""2: the residual is measured for every offset. A new number makes `curate` measure sync again: shots and faces are
found again for the crops, and no other score is computed (`curation/analysis/incremental.py`)."""

__all__ = [
    "SYNC_VERSION",
    "CropNeed",
    "Residual",
    "Square",
    "SyncBackend",
    "SyncScore",
    "cut",
    "cut_all",
    "load_backend",
    "measure_residual",
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
