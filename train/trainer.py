"""A run: build, resume, go through the stages, commit, and stop where somebody else has to work.

    outcome = train(dataset, out, config.model, config.train)

`needs_negatives` means that a `negatives` stage was reached: its checkpoint is pinned, and the samples that it makes
are to be gathered into RUN/negatives/<stage>/ (`train/` generates nothing). Calling again continues.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from configs import folders, strict
from configs.errors import EchoForgeError
from configs.runtime import disk, locks, stopping
from configs.weights import locate
from model import attention
from model.checkpoint import load_into, load_weights
from model.config import ModelConfig
from model.transformer import EchoMimicTransformer
from train import parallel, rng, stages
from train.checkpoints import checkpoint
from train.checkpoints.checkpoint import Progress, State
from train.config import TrainConfig
from train.data import inputs, negatives
from train.data.index import SampleIndex, made_with, open_index
from train.data.loader import Loader
from train.ema import EMA
from train.log import Log, Pace, Tally, Value
from train.loop import Loop, StepReport
from train.objectives import ndpo, reference
from train.objectives.base import Context, Method
from train.objectives.sft import SFT
from train.stages import Stage
from train.validation import Validation

_PACE_STEPS = 50
"""The mean behind the time that is left is over at least so many steps: enough that one slow batch hardly shows."""

Status = Literal["finished", "needs_negatives", "paused"]


@dataclass(frozen=True)
class TrainOutcome:
    """Why :func:`train` returned: at the end, at a `negatives` stage, or because it was asked to stop."""

    status: Status
    step: int
    stage: str | None
    checkpoint: Path


def train(
    dataset: str | Path,
    out: Path,
    model_cfg: ModelConfig,
    cfg: TrainConfig,
    *,
    seed: int = 0,
    resume: bool = True,
    max_steps: int | None = None,
    accept_flags: bool = True,
    say: Callable[[str], None] | None = print,
    device: str | None = None,
    preset: str | None = None,
) -> TrainOutcome:
    """Train through the stages, from the last committed checkpoint on. A requested stop (`configs.runtime.stopping`) pauses the
    run at the end of a step, with a checkpoint: all ranks at the same one.

    Args:
        resume: continue a run in ``out``; otherwise ``out`` must hold none.
        max_steps: commit and return when the run has done so many steps in all.
        accept_flags: a flagged negative counts although nobody reviewed it.
        say: takes a line of progress now and then.
        preset: name of the preset that the configuration comes from, for checkpoints and messages.

    Raises:
        EchoForgeError: the dataset does not serve the configuration, the run in ``out`` is another one, training diverged,
            another process works on the run.
    """
    folders.check_out(out, "run")
    with ExitStack() as stack:
        stack.enter_context(stopping.listening())
        world = parallel.start(cfg.optim, device)
        stack.callback(parallel.stop)
        parallel.on_main(lambda: stack.enter_context(locks.locked(out, "run", "train")), "locking the run")
        run = stack.enter_context(_Run(dataset, out, model_cfg, cfg, seed, resume, accept_flags, say, world, preset))
        return run.go(max_steps)


class _Run:
    """The parts of a run and the walk through its stages."""

    def __init__(
        self,
        dataset: str | Path,
        out: Path,
        model_cfg: ModelConfig,
        cfg: TrainConfig,
        seed: int,
        resume: bool,
        accept_flags: bool,
        say: Callable[[str], None] | None,
        world: parallel.World,
        preset: str | None,
    ) -> None:
        self.dataset, self.out, self.cfg, self.seed, self.world = dataset, out, cfg, seed, world
        self.model_cfg, self.accept_flags = model_cfg, accept_flags
        self.preset = preset
        self.stages = stages.plan(cfg)
        parallel.on_main(lambda: checkpoint.clean(out), "cleaning up after an interrupted checkpoint")
        found = checkpoint.latest(out)
        if found is not None and not resume:
            raise EchoForgeError(f"{out} already holds a run; continue it, or name another folder.")
        index = open_index(dataset, split="train", keep=cfg.loader.keep)
        _check_dataset(index, cfg, model_cfg)
        self.loader = self._loader(index)
        if found is not None:
            self._check_same_run(found)
        network = _build(model_cfg, cfg, seed, found is None)
        parallel.apply(network, cfg.optim, world)
        network.to(world.device)
        self.state = State(network, _optimizer(network, cfg), EMA(network, cfg.ema), Progress())
        _seed_adam(self.state)
        self.about = self._about()
        disk.check_room(out, self._checkpoint_bytes(), "the next checkpoint")
        if found is not None:
            checkpoint.load(found, self.state)
        out.mkdir(parents=True, exist_ok=True)
        self.log = Log(out if world.main else None, say)
        self._new = found is None
        parallel.on_all(lambda: self.log.rewind(None if self._new else self.state.progress.step))
        self.tally = Tally()
        self.context = Context(
            network, model_cfg.phda, cfg, seed, world.device, inputs.read_prompts(dataset),
            model_cfg.transformer.text_len, model_cfg.transformer.variant, cfg.loader.global_batch, self.tally,
        )  # fmt: skip
        self.validation = self._validation()
        self._base_loss: float | None = None
        self._pace, self._ended = self._new_pace(), 0.0  # of the stage; when its last step ended

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.loader.close()

    # ---- the walk -------------------------------------------------------------------------------------------------

    def go(self, max_steps: int | None) -> TrainOutcome:
        """Every stage that is left."""
        progress = self.state.progress
        if self._new:
            stopping.check()
            if self.validation is not None:
                self.log.say("measuring the held-out loss before the first step")
            self._validate("start")
        for stage in self.stages[progress.stage :]:
            if progress.stage != stage.index:
                progress.stage, progress.method = stage.index, {}
            if stage.cfg.kind == "negatives":
                if not negatives.gathered(self.out, stage.name):
                    return self._outcome("needs_negatives", stage, self._pinned(stage))
                continue
            if not self._walk(stage, max_steps):
                return self._outcome("paused", stage, self._commit(None))
        return self._outcome("finished", None, checkpoint.latest(self.out) or self._commit("end"))

    def _walk(self, stage: Stage, max_steps: int | None) -> bool:
        """Do one stage; False when the run is to pause before its end."""
        progress = self.state.progress
        if progress.step >= stage.last:
            return True
        self.loader.seek(self.loader.order.position_of(progress.step))
        until = stage.last if max_steps is None else min(stage.last, max_steps)
        self._base_loss = None
        self._pace, self._ended = self._new_pace(), 0.0
        with self._method(stage) as method:
            if stage.cfg.kind == "ndpo" and self.validation is not None:
                self._base_loss = self.validation.losses()["loss"]
            loop = Loop(self.state, self.cfg.optim, [partial(self._report, until)])
            try:
                reason = loop.run(stage, method)
            except _Pause:
                return False
            except _EarlyEnd as end:
                reason = str(end)
        if reason is not None:
            self.log.say(f"stage '{stage.name}' ends early at step {progress.step}: {reason}")
            self.log.write("early_end", progress.step, {"stage": stage.name, "reason": reason})
            progress.step = stage.last
        progress.stage, progress.method = stage.index + 1, {}
        self._validate(stage.name)
        self._commit(stage.name)
        return True

    def _report(self, until: int, stage: Stage, report: StepReport) -> None:
        """After a step: log, validate, commit; stop where asked."""
        step, now = report.step + 1, time.perf_counter()
        self._pace.add(now - self._ended if self._ended else report.seconds)
        self._ended = now
        if step % self.cfg.log.every == 0 or step in (stage.last, until):
            values = {name: parallel.mean(value) for name, value in self.tally.means().items()}
            timing: dict[str, Value] = {
                "lr": report.lr,
                "grad_norm": report.grad_norm,
                "seconds": report.seconds,
                "waited": report.waited,
            }
            self.log.write("step", step, {"stage": stage.name, "taken": report.taken, **values, **timing})
            self.log.progress(step, until, stage.name, values.get("loss", float("nan")), self._pace)
        every = self.cfg.log.validate_every
        if every and step % every == 0 and step < stage.last:
            self._validate(stage.name, during=True)
        asked = parallel.any_of(stopping.requested() is not None)  # a launcher signals ranks one after the other
        if step < stage.last and (step >= until or asked):
            raise _Pause
        if self.cfg.checkpoint.every and step % self.cfg.checkpoint.every == 0 and step < stage.last:
            self._commit(None)

    def _validate(self, stage: str, during: bool = False) -> None:
        if self.validation is None:
            return
        losses = self.validation.losses()
        with self.state.ema.swapped():
            averaged = self.validation.losses()["loss"]
        step = self.state.progress.step
        self.log.write("validation", step, {"stage": stage, **losses, "loss_ema": averaged})
        self.log.say(f"held-out loss {losses['loss']:.4f} (average of weights: {averaged:.4f}) at step {step}")
        limit = self.cfg.objective.negative.ratio_stop
        if during and self._base_loss is not None and limit and losses["loss"] > limit * self._base_loss:
            raise _EarlyEnd(f"the held-out loss rose from {self._base_loss:.4f} to {losses['loss']:.4f}")

    # ---- objectives -----------------------------------------------------------------------------------------------

    @contextmanager
    def _method(self, stage: Stage) -> Iterator[Method]:
        positives = SFT(self.context, self.loader)
        if stage.cfg.kind == "sft":
            yield positives
            return
        assert stage.source is not None
        chosen = negatives.read(self.out, stage.source, stage.cfg.issues, accept_flags=self.accept_flags)
        index = negatives.condition_index(self.dataset, self.cfg.loader, chosen)
        by_id = {n.negative_id: n for n in chosen}
        tasks = sorted({n.task for n in chosen})
        source = partial(Loader, self.dataset, self.cfg.loader, seed=self.seed, tasks=tasks, index=index)
        cache, network = self._reference(stage, source, by_id)
        size = self.cfg.objective.negative.batch_size
        with source(global_batch=size, rank=self.world.rank, world=self.world.size) as stream:
            stream.seek(stream.order.position_of(self.state.progress.step - stage.first))
            yield ndpo.NDPO(
                self.context, positives, stream, chosen, cache=cache, network=network, state=self.state.progress.method
            )

    def _reference(
        self, stage: Stage, source: Callable[..., Loader], by_id: dict[str, negatives.Negative]
    ) -> tuple[reference.Cache | None, torch.nn.Module | None]:
        """The checkpoint that made the negatives: its losses at fixed draws, or the network itself."""
        cfg = self.cfg.objective.negative
        origin = next(s for s in self.stages if s.name == stage.source)
        path = self._pinned(origin)
        kind = origin.cfg.weights

        def network() -> torch.nn.Module:
            built = EchoMimicTransformer(self.model_cfg.transformer)
            load_into(built, load_weights(checkpoint.exported(path, kind) or path), source=str(path))
            return ndpo.frozen_copy(built.to(self.world.device))

        if cfg.reference == "model":
            return None, network()
        key = strict.digest([checkpoint.digest(path, kind), cfg.draws, cfg.t_min, cfg.t_max, self.cfg.objective.shift,
                             sorted((name, *(n.frames or ())) for name, n in by_id.items())])  # fmt: skip
        table = negatives.folder(self.out, str(stage.source)) / negatives.CACHE_FOLDER / f"{key}.parquet"

        def compute() -> None:
            if not table.is_file():
                with source(global_batch=1, once=True) as once:
                    ndpo.cache_losses(table, self.context, once, by_id, network())

        parallel.on_main(compute, "computing the reference's losses")
        return reference.read(table), None

    # ---- parts ----------------------------------------------------------------------------------------------------

    def _loader(self, index: SampleIndex) -> Loader:
        cfg = self.cfg

        def task_of(step: int, place: int) -> str:
            stage = next((s for s in self.stages if s.first <= step < s.last), self.stages[-1])
            return rng.choice(stages.mix_of(stage.cfg, cfg.tasks), self.seed, step, place, "task")

        mixes = [stages.mix_of(s.cfg, cfg.tasks) for s in self.stages if s.cfg.kind != "negatives"]
        tasks = sorted({task for mix in mixes for task, weight in mix.items() if weight > 0})
        return Loader(
            self.dataset, cfg.loader, seed=self.seed, tasks=tasks, task_of=task_of,
            rank=self.world.rank, world=self.world.size, index=index,
        )  # fmt: skip

    def _new_pace(self) -> Pace:
        """Its window holds a whole round of held-out losses and checkpoints, so that the time left does not jump."""
        return Pace(max(_PACE_STEPS, self.cfg.log.validate_every, self.cfg.checkpoint.every))

    def _validation(self) -> Validation | None:
        if not self.cfg.log.validation_samples:
            return None
        mix = self.cfg.tasks.mix
        task = max(sorted(mix), key=lambda name: mix[name])
        return Validation(
            self.dataset, self.cfg.loader, self.context, task=task, rank=self.world.rank, world=self.world.size
        )

    def _pinned(self, stage: Stage) -> Path:
        """The pinned checkpoint that stands before ``stage``; committed now when it is not there."""
        for path in reversed(checkpoint.committed(self.out)):
            if checkpoint.is_pinned(path) and path.name == f"step-{stage.first:06d}":
                return path
        return self._commit(stage.name)

    def _commit(self, pin: str | None) -> Path:
        parallel.on_main(lambda: locks.check(self.out), "committing a checkpoint")
        try:
            with disk.refused(self.out / f"step-{self.state.progress.step:06d}"):
                return checkpoint.save(
                    self.out, self.state, self.about, keep_last=self.cfg.checkpoint.keep_last, pin=pin
                )
        except disk.Refused:
            if self.world.main:
                checkpoint.clean(self.out)  # the half takes the room that the others need
            raise

    def _checkpoint_bytes(self) -> int:
        """Of one checkpoint at the end of a stage: every tensor of the state, and the weights once more, raw and averaged.

        It is written beside the one that it replaces. Checkpoints that are kept add up; they are not counted here.
        """
        tensors = self.state.tensors()
        weights = sum(t.numel() * t.element_size() for name, t in tensors.items() if name.startswith("model."))
        return 2 * weights + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    def _outcome(self, status: Status, stage: Stage | None, path: Path) -> TrainOutcome:
        return TrainOutcome(status, self.state.progress.step, stage.name if stage else None, path)

    def _about(self) -> dict[str, Any]:
        """What every checkpoint says of the run that made it."""
        return {
            "model": strict.to_dict(self.model_cfg),
            "train": strict.to_dict(self.cfg),
            "preset": self.preset,
            "seed": self.seed,
            "dataset": str(self.dataset),
            "dataset_digest": self.loader.index.digest,
            "revision": _revision(),
            "torch": torch.__version__,
            "world_size": self.world.size,
            "device": str(self.world.device),
        }

    def _check_same_run(self, path: Path) -> None:
        """Raise EchoForgeError when the run was made with another network, seed or selection of samples."""
        before = checkpoint.read_about(path)
        checkpoint.check_transformer(
            before, self.model_cfg.transformer, f"the run in {self.out} cannot continue", self.preset
        )
        remedy = "use what the run was made with, or give another --out"
        if before["seed"] != self.seed:
            raise EchoForgeError(
                f"the run in {self.out} cannot continue: its seed {before['seed']} → {self.seed}; {remedy}."
            )
        if before["dataset_digest"] != self.loader.index.digest:
            raise EchoForgeError(
                f"the run in {self.out} cannot continue: the samples that it trains on changed "
                f"(it began with dataset {before['dataset']}; this is {self.dataset}); {remedy}."
            )


def _check_dataset(index: SampleIndex, cfg: TrainConfig, model_cfg: ModelConfig) -> None:
    """Raise EchoForgeError when the stored features have other widths than the network takes, or `dataset.json` is damaged."""
    preset = made_with(index.root)
    made_by = f", made with preset '{preset}'," if preset else ""
    net = model_cfg.transformer
    wanted = {"text.0": ("text_dim", net.text_dim), "image": ("image_dim", net.image_dim)}
    if net.variant != "base":
        wanted[f"audio.{cfg.loader.audio}"] = ("audio.dim", net.audio.dim)
    for bucket in index.members:
        layout = index.layout(bucket)
        for name, (key, width) in wanted.items():
            stored = layout[name][1][-1] if name in layout else width
            if stored != width:
                raise EchoForgeError(
                    f"dataset '{index.root}'{made_by} holds {name.partition('.')[0]} features of width {stored}, "
                    f"transformer.{key} is {width}: train with the preset that made it, or shard again with this one."
                )


class _EarlyEnd(Exception):
    """Raised inside a step's report: the stage does harm; the message says what."""


class _Pause(Exception):
    """Raised inside a step's report to leave the loop; the state is whole."""


def _build(model_cfg: ModelConfig, cfg: TrainConfig, seed: int, new: bool) -> EchoMimicTransformer:
    """The network with fp32 weights: from ``checkpoint.init``, or random by ``seed``."""
    attention.use_kernel("auto")
    with torch.device("meta"):
        network = EchoMimicTransformer(model_cfg.transformer)
    network.to(torch.float32).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.init_weights()
    if new and cfg.checkpoint.init is not None:
        path = locate("checkpoint.init", cfg.checkpoint.init)
        load_into(network, load_weights(path), source=str(path))
    return network


def _optimizer(network: torch.nn.Module, cfg: TrainConfig) -> torch.optim.AdamW:
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.dim() >= 2 and not name.endswith("modulation")]
    kept = [p for name, p in named if p.dim() < 2 or name.endswith("modulation")]
    groups = [
        {"params": decayed, "weight_decay": cfg.optim.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.optim.lr, betas=cfg.optim.betas, eps=cfg.optim.eps, fused=True)


def _seed_adam(state: State) -> None:
    """Zero moments before the first step, so that a checkpoint always has the same names."""
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            state.optimizer.state[parameter] = {
                "step": torch.tensor(0.0, device=parameter.device),  # the fused update wants it there
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _revision() -> str:
    """The git revision of this code, or 'unknown' outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()
