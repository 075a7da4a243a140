"""What a worker loads once and uses for every video: detectors, networks, and the makers of the light operators."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from configs.errors import EchoForgeError, MissingWeights
from configs.weights import locate
from curation import packages
from curation.analysis.stages import FRAME_OPERATORS, OPERATORS, SOUND_OPERATORS, STAGES
from curation.config import CurationConfig
from curation.faces import FaceDetector, load_detector
from curation.operators.base import FrameOperator, SoundOperator
from curation.operators.quality import QualityOperator
from curation.sync import SyncBackend, load_backend


@dataclass(frozen=True)
class Backends:
    """Everything heavy, loaded. The makers give the light operators that serve one video."""

    detector: FaceDetector
    sync: SyncBackend | None
    frame_operators: Mapping[str, Callable[[], FrameOperator]]
    sound_operators: Mapping[str, Callable[[], SoundOperator]]

    def only(self, names: Collection[str]) -> Backends:
        """Those of these stages, and the detector."""
        return replace(
            self,
            sync=self.sync if "sync" in names else None,
            frame_operators={name: make for name, make in self.frame_operators.items() if name in names},
            sound_operators={name: make for name, make in self.sound_operators.items() if name in names},
        )

    def without(self, name: str) -> Backends:
        """All operators but one."""
        return replace(self, frame_operators={n: make for n, make in self.frame_operators.items() if n != name})


def load(cfg: CurationConfig) -> Backends:
    """Load what the configuration names, once per worker process.

    Raises:
        MissingWeights: a file is not on this machine; the sentence says which and how to get it.
    """
    detector, sync = load_detector(cfg.faces), load_backend(cfg.sync)  # first: what fails, fails soon
    on = [name for name, stage in STAGES.items() if stage.on(cfg)]
    frame = {name: FRAME_OPERATORS[name].load(cfg) for name in on if name in FRAME_OPERATORS}
    sound = {name: SOUND_OPERATORS[name].load(cfg) for name in on if name in SOUND_OPERATORS}
    return Backends(
        detector=detector,
        sync=sync,
        frame_operators={name: make for name, make in frame.items() if make},
        sound_operators={name: make for name, make in sound.items() if make},
    )


def notes() -> list[str]:
    """What makes curation slower than it could be on this machine, one sentence each."""
    if packages.installed("openvino"):
        return []
    remedy = packages.REMEDIES["openvino"]
    return [f"openvino is not installed: onnxruntime looks for text instead, four times as slowly; {remedy}."]


def check_files(cfg: CurationConfig) -> None:
    """Fail before any work when a configured file or package is missing: loads what is cheap to load.

    Raises:
        MissingWeights, EchoForgeError: as :func:`load`.
    """
    if cfg.video.backend == "decord":
        packages.require("decord", "video.backend=decord")
    if cfg.sync.backend == "fitted" and not cfg.sync.fitted:
        raise EchoForgeError("sync.backend is fitted, but sync.fitted names no file; make one with `sync fit`.")
    load_detector(cfg.faces)
    load_backend(cfg.sync)
    for name, operator in OPERATORS.items():
        if STAGES[name].on(cfg):
            operator.check(cfg)


def faces_alone(cfg: CurationConfig) -> Backends:
    """What finding a face and its place needs, and no more: the detector, and the search for black bars.

    Raises:
        MissingWeights: the detector's file is not on this machine.
    """
    return Backends(load_detector(cfg.faces), None, {QualityOperator.name: lambda: QualityOperator(cfg.quality)}, {})


def without_missing_sync(cfg: CurationConfig) -> tuple[CurationConfig, MissingWeights | None]:
    """The configuration with ``sync.backend`` none when SyncNet's file is not here, and the error that says so.

    Curation goes on then: everything else can be measured, and the parameters of `sync` differ from those of a scored
    run, so that a run with the file scores the clips and repeats no other score.
    """
    if cfg.sync.backend == "syncnet_v2":
        try:
            locate("sync.weights", cfg.sync.weights, "syncnet_v2")
        except MissingWeights as error:
            return replace(cfg, sync=replace(cfg.sync, backend="none")), error
    return cfg, None
