"""The cycle as data: which stage a step belongs to, its task mix and its learning rate (paper, figure 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from configs import members
from configs.errors import ConfigError
from configs.runtime.shown import one_line
from train.config import OptimConfig, StageConfig, TasksConfig, TrainConfig


@dataclass(frozen=True)
class Stage:
    """A stage with its place on the run's step axis: it owns steps ``first … last - 1`` (none for `negatives`)."""

    index: int
    cfg: StageConfig
    first: int
    last: int
    source: str | None = None  # ndpo: the `negatives` stage that it learns from

    @property
    def name(self) -> str:
        """The name in the configuration; the folder of its negatives."""
        return self.cfg.name


def plan(cfg: TrainConfig) -> list[Stage]:
    """Lay the stages end to end.

    Raises:
        ConfigError: no stage, a bad name or one twice, steps missing, or an `ndpo` stage with no `negatives` stage before it.
    """
    if not cfg.stages:
        raise ConfigError("configuration key 'stages' is empty; a run needs at least one stage.")
    stages: list[Stage] = []
    step, gathered = 0, list[str]()
    for index, stage in enumerate(cfg.stages):
        check_name(stage.name)
        if any(stage.name == other.name for other in stages):
            raise ConfigError(f"two stages are called '{stage.name}'; give each its own name.")
        if (stage.kind == "negatives") != (stage.steps == 0):
            raise ConfigError(
                f"stage '{stage.name}' is {stage.kind} with {stage.steps} steps; sft and ndpo need steps."
            )
        source = None
        if stage.kind == "negatives":
            gathered.append(stage.name)
        elif stage.kind == "ndpo":
            source = stage.negatives or (gathered[-1] if gathered else None)
            if source not in gathered:
                raise ConfigError(f"stage '{stage.name}' learns from negatives, but no such stage comes before it.")
        stages.append(Stage(index, stage, step, step + stage.steps, source))
        step += stage.steps
    for mix in [cfg.tasks.mix, *(s.mix for s in cfg.stages if s.mix is not None)]:
        check_mix(mix)
    return stages


def check_name(name: str) -> str:
    """``name`` itself, when a folder of a run can be called so: that of the stage's negatives is.

    Raises:
        ConfigError: it leads elsewhere, or to a hidden folder.
    """
    try:
        if "/" not in members.relative(name) and not name.startswith("."):
            return name
    except members.BadMember:
        pass
    raise ConfigError(
        f"stage '{one_line(name)[:200]}' cannot be called so: its folder in the run has the same name; take one "
        "without '/', '\\', ':', '%', '?' and '#' that does not begin with a dot."
    )


def check_mix(mix: Mapping[str, float]) -> None:
    """Raise ConfigError unless ``mix`` maps tasks to weights that are ≥ 0 and not all 0.

    `prefix` is for generation: shards do not hold the latents of its masked video.
    """
    known = ("t2v", "i2v", "flf2v", "lip_sync", "avatar_sync")
    if unknown := sorted(set(mix) - set(known)):
        raise ConfigError(f"task '{unknown[0]}' in a task mix cannot be trained; the tasks are {', '.join(known)}.")
    if not mix or min(mix.values()) < 0 or sum(mix.values()) <= 0:
        raise ConfigError(f"the task mix {dict(mix)} must hold weights that are at least 0 and not all 0.")


def mix_of(stage: StageConfig, tasks: TasksConfig) -> dict[str, float]:
    """The stage's own task mix, or the default one."""
    return dict(stage.mix if stage.mix is not None else tasks.mix)


def learning_rate(stage: Stage, step: int, cfg: OptimConfig) -> float:
    """The rate of global ``step``: linear warm-up from the stage's start, then constant or cosine to ``final_lr``."""
    peak = cfg.lr if stage.cfg.lr is None else stage.cfg.lr
    done, total = step - stage.first, stage.last - stage.first
    warmup = min(cfg.warmup_steps, total // 2)
    if done < warmup:
        return peak * (done + 1) / warmup
    if cfg.decay == "constant":
        return peak
    progress = (done - warmup) / max(1, total - warmup)
    return peak * (cfg.final_lr + (1 - cfg.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))
