"""Typed configuration of `train/`: one dataclass per section of a preset. The values and their sources are in the presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from configs.errors import ConfigError
from configs.paths import FilePath


@dataclass(frozen=True)
class KeepConfig:
    """The keep-list: a query over the index. An unmeasured score fails its bound."""

    verdicts: tuple[str, ...] = ("keep",)
    tiers: tuple[str, ...] = ()  # empty = any
    at_least: dict[str, float] = field(default_factory=dict)  # score column -> lowest value
    at_most: dict[str, float] = field(default_factory=dict)
    skip: tuple[str, ...] = ()  # sample ids left out


@dataclass(frozen=True)
class LoaderConfig:
    """How shards are read."""

    keep: KeepConfig
    global_batch: int  # samples per step over all ranks, all of one bucket
    audio: str  # variant whose features are read: `audio.<variant>` in the shards
    captions: Literal["any", "first"]  # one of a sample's captions anew every pass, or always the main one
    threads: int  # readers; reads and digests release the interpreter lock
    prefetch: int  # batches read ahead of the step
    check_digests: bool  # sha256 of every tensor read
    check_finite: bool  # NaN and infinity; digests already prove that nothing changed since `shards verify`
    bad_samples: Literal["skip", "stop"]  # skip: name it, use another with weight 0
    max_bad: int  # bad samples in one process before the run stops whatever the policy

    def __post_init__(self) -> None:
        if self.global_batch < 1:
            raise ConfigError(f"configuration key 'loader.global_batch' is {self.global_batch}; it must be at least 1.")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW on fp32 master weights, and how the step runs."""

    micro_batch: int  # samples per forward on one rank; gradients accumulate over the rest of loader.global_batch
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float  # on matrices only; biases, norms and modulation are not decayed
    warmup_steps: int  # of every stage
    decay: Literal["constant", "cosine"]  # within a stage, after its warm-up
    final_lr: float  # cosine ends at this fraction of the stage's rate
    grad_clip: float  # global norm
    skip_factor: float  # a step whose gradient norm exceeds this many times its running mean is skipped; 0 = never
    max_skips: int  # consecutive skipped steps before the run stops with a sentence
    precision: Literal["fp32", "bf16"]  # bf16 = autocast over fp32 weights
    threads: int  # CPU threads of torch; 0 = leave as it is
    compile: bool  # torch.compile per block
    activation_checkpoint: Literal["none", "selective", "full"]
    shard: int  # FSDP shard degree; 0 = all ranks; the rest of the ranks replicate (HSDP)

    def __post_init__(self) -> None:
        if self.micro_batch < 1:
            raise ConfigError(f"configuration key 'optim.micro_batch' is {self.micro_batch}; it must be at least 1.")


@dataclass(frozen=True)
class NegativeConfig:
    """The preference objective of an `ndpo` stage (formulas: train/objectives/ndpo.py)."""

    kind: Literal["npo", "reflect", "kto", "dpo", "paper"]
    batch_size: int  # negatives per step over all ranks, beside the ordinary batch of positives
    margin: float  # relative increase of a negative's loss at which the push has fallen to 5 %: beta = ln 19 / margin
    weight: float  # lambda of the negative term
    t_min: float  # negatives draw sigma in [t_min, t_max]: at sigma -> 1 x_t carries no identity of the sample …
    t_max: float  # … and the push would act on the whole condition
    path: float  # eta, weight of |u - u_ref|^2; needs the reference in memory
    strength: float  # `reflect`: s, follows the observed rate of negatives
    reference: Literal["cache", "model"]  # cached losses of the reference, or the reference in memory
    draws: int  # (t, noise) pairs per negative in the cache
    smoothing: float  # label smoothing for noisy reviewers, 0 = off
    ratio_stop: float  # stop the stage when held-out loss / reference's exceeds this; 0 = never
    weight_stop: float  # stop the stage when the mean push weight falls below this; 0 = never


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised."""

    shift: float  # sigma = shift u / (1 + (shift - 1) u), u uniform and stratified over the batch
    t_bins: int  # per-bin logging of the loss over the network's t
    negative: NegativeConfig


@dataclass(frozen=True)
class EMAConfig:
    """Exponential moving average of the weights, fp32, kept across task switches (Soup-of-Tasks)."""

    decay: float
    warmup: bool  # min(decay, (1 + n) / (10 + n))


@dataclass(frozen=True)
class CheckpointConfig:
    """What a run starts from, when checkpoints are committed and which are kept."""

    init: FilePath | None  # weights of a new run: a file, `weights:…`, or null for random ones
    every: int  # steps; the end of a stage is always committed and pinned
    keep_last: int  # committed checkpoints beside the pinned ones


@dataclass(frozen=True)
class TasksConfig:
    """The task mix, and which conditions are dropped so that guidance has a null branch."""

    mix: dict[str, float]  # task -> weight, for stages that name none
    text_dropout: float
    image_dropout: float
    audio_dropout: float
    face_mask: bool  # M_face on the audio expert


@dataclass(frozen=True)
class StageConfig:
    """One stage of the cycle. A `negatives` stage stops the run until its samples are gathered."""

    name: str
    kind: Literal["sft", "negatives", "ndpo"]
    steps: int = 0
    lr: float | None = None  # None = optim.lr
    mix: dict[str, float] | None = None  # None = tasks.mix
    ema_decay: float | None = None  # None = ema.decay
    negatives: str | None = None  # ndpo: the `negatives` stage to learn from; None = the last one before it
    issues: tuple[str, ...] = ()  # ndpo: only negatives with one of these issues; empty = all
    samples: int = 0  # negatives: how many to generate
    weights: Literal["raw", "ema"] = "ema"  # negatives: which weights generate, and so are the reference


@dataclass(frozen=True)
class LogConfig:
    """What is written to metrics.jsonl and how often."""

    every: int  # steps between lines
    validate_every: int  # steps between held-out losses; 0 = only at the ends of stages
    validation_samples: int  # of split `val`
    validation_sigmas: tuple[float, ...]  # network noise levels at which the held-out loss is taken, fixed noise


@dataclass(frozen=True)
class TrainConfig:
    """All sections that `train/` reads."""

    loader: LoaderConfig
    optim: OptimConfig
    objective: ObjectiveConfig
    ema: EMAConfig
    checkpoint: CheckpointConfig
    tasks: TasksConfig
    stages: tuple[StageConfig, ...]
    log: LogConfig
