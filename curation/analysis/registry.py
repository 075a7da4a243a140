"""What a worker loads once and uses for every video: detectors, networks, and the makers of the light operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from configs import strict
from configs.errors import EchoForgeError, MissingWeights
from configs.weights import locate
from curation import packages
from curation.analysis.inputs import inputs
from curation.config import CurationConfig
from curation.decision import duplicates
from curation.faces import FaceDetector, load_detector
from curation.operators import aesthetic, overlapped_speech, quality, speech
from curation.operators.base import FrameOperator, SoundOperator
from curation.operators.captions import VisionCaptioner
from curation.operators.text import operator as text
from curation.sync import SYNC_VERSION, SyncBackend, load_backend

MakeFrameOperator = Callable[[], FrameOperator]
MakeSoundOperator = Callable[[], SoundOperator]

FRAME_OPERATORS: dict[str, Callable[[Any], Callable[[], Any] | None]] = {
    "text": text.load,
    "quality": quality.load,
    "detail": quality.load_detail,
    "dedup": duplicates.load,
    "aesthetic": aesthetic.load,
}
"""Name → ``load(cfg)``, which may give None (switched off). To add an operator is to add a line here (CONTRIBUTING.md)."""
SOUND_OPERATORS: dict[str, Callable[[Any], Callable[[], Any] | None]] = {
    "sound": speech.load,
    "voices": overlapped_speech.load,
}
"""The same for operators that listen."""


@dataclass(frozen=True)
class Backends:
    """Everything heavy, loaded."""

    detector: FaceDetector
    sync: SyncBackend | None
    frame_operators: dict[str, MakeFrameOperator]
    sound_operators: dict[str, MakeSoundOperator]
    captioner: MakeFrameOperator | None  # of the vision-language model, where one is configured


def load(cfg: CurationConfig) -> Backends:
    """Load what the configuration names, once per worker process.

    Raises:
        MissingWeights: a file is not on this machine; the sentence says which and how to get it.
    """
    return Backends(
        detector=load_detector(cfg.faces),
        sync=load_backend(cfg.sync),
        frame_operators={name: make for name, load_one in FRAME_OPERATORS.items() if (make := load_one(cfg))},
        sound_operators={name: make for name, load_one in SOUND_OPERATORS.items() if (make := load_one(cfg))},
        captioner=VisionCaptioner(cfg.captions).operator if cfg.captions.kind == "vlm" else None,
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
    if cfg.aesthetic.enabled:
        locate("aesthetic.clip", cfg.aesthetic.clip, True)
        locate("aesthetic.head", cfg.aesthetic.head, True)


def faces_alone(cfg: CurationConfig) -> Backends:
    """What finding a face and its place needs, and no more: the detector, and the search for black bars.

    Raises:
        MissingWeights: the detector's file is not on this machine.
    """
    bars: Any = quality.load(cfg)
    return Backends(load_detector(cfg.faces), None, {"quality": bars}, {}, None)


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


def parameters(cfg: CurationConfig) -> dict[str, str]:
    """Digest of the parameters of each operator, by name: what the ledger compares to know what to recompute."""
    hashes = {name: strict.digest(values, section) for name, (section, values) in inputs(cfg).items()}
    if not cfg.aesthetic.enabled:  # switched off, earlier scores stay as they are
        del hashes["aesthetic"]
    hashes["voices"] = strict.digest({})  # has no parameters
    operators = (
        text.TextOperator, quality.QualityOperator, quality.DetailOperator, duplicates.HashOperator, speech.SpeechOperator,
        aesthetic.AestheticOperator, overlapped_speech.VoicesOperator,
    )  # fmt: skip
    versions = {o.name: o.version for o in operators} | {"sync": SYNC_VERSION}
    return {name: f"{digest}.{versions.get(name, 1)}" for name, digest in hashes.items()}
