"""`train`: run the stages of the cycle until they are done or until negatives must be gathered.

The same function under torchrun. It never samples a video and never waits for a person: at a `negatives` stage it
commits a checkpoint and returns; called again when the samples are there, it goes on.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from configs import strict
from configs.dataset_schema import PROMPTS_FILE
from configs.errors import EchoForgeError
from model.config import ModelConfig
from model.transformer import EchoMimicTransformer
from train import checkpoint, negatives, parallel
from train.assembly import TASK_FIELDS
from train.checkpoint import Progress, State
from train.config import OptimConfig, TrainConfig
from train.ema import EMA
from train.inputs import NULL_PROMPT, task_of
from train.loader import Loader
from train.log import Log, Tally
from train.loop import Loop, StepReport
from train.method import Context, Method
from train.objectives.ndpo import NDPO, build_cache, check
from train.objectives.sft import SFT
from train.parallel import World
from train.reference import Cache
from train.stages import Stage, mix_of, plan
from train.validation import Validation


@dataclass(frozen=True)
class TrainOutcome:
    """How far a call of :func:`train` came. ``checkpoint`` holds `raw.safetensors` and `ema.safetensors`."""

    status: Literal["finished", "needs_negatives"]
    stage: str
    checkpoint: Path


def train(
    dataset: str | Path,
    out: str | Path,
    model_cfg: ModelConfig,
    train_cfg: TrainConfig,
    *,
    resume: bool = True,
    seed: int = 0,
    init: str | Path | None = None,
    accept_flags: bool = True,
    device: str | None = None,
    say: Callable[[str], None] | None = print,
) -> TrainOutcome:
    """Train on a dataset of shards, in ``out``.

    Args:
        dataset: folder or URL of shards.
        out: the run's folder.
        resume: go on from the newest committed checkpoint; otherwise ``out`` must not have one.
        seed: of initial weights, data order and every draw.
        init: weights to start from (safetensors or .pth); None = random.
        accept_flags: in an `ndpo` stage, flagged samples that nobody reviewed count as negatives.
        device: `cpu` or `cuda`; None = what there is.
        say: receives lines of progress on rank 0.

    Raises:
        EchoForgeError: the dataset, the run's folder, the configuration or a gathered table is unusable.
    """
    stages = plan(train_cfg)
    check(train_cfg.objective.negative)
    world = parallel.start(train_cfg.optim, device)
    try:
        run = Run(str(dataset), Path(out), model_cfg, train_cfg, world, seed, accept_flags, say)
        run.begin(resume, init)
        return run.follow(stages)
    finally:
        parallel.stop()


class Run:
    """One call of :func:`train`: the live state and what surrounds it."""

    def __init__(
        self,
        dataset: str,
        out: Path,
        model_cfg: ModelConfig,
        cfg: TrainConfig,
        world: World,
        seed: int,
        accept_flags: bool,
        say: Callable[[str], None] | None,
    ) -> None:
        self.dataset, self.out, self.model_cfg, self.cfg = dataset, out, model_cfg, cfg
        self.world, self.seed, self.accept_flags = world, seed, accept_flags
        self.stages = plan(cfg)
        if world.main:
            out.mkdir(parents=True, exist_ok=True)
        self.log = Log(out if world.main else None, say)
        self.tally = Tally()
        self.loader = self._loader()
        self.state = self._state()
        self.context = Context(
            network=self.state.network, phda=model_cfg.phda, cfg=cfg, seed=seed, device=world.device,
            prompts=read_prompts(dataset), text_len=model_cfg.transformer.text_len,
            audio=model_cfg.transformer.variant != "base", global_batch=cfg.loader.global_batch, tally=self.tally,
        )  # fmt: skip
        self.validation: Validation | None = None

    # ---- building -------------------------------------------------------------------------------------------------

    def _loader(self) -> Loader:
        trained = [s for s in self.stages if s.cfg.kind != "negatives"]

        def task(step: int, place: int) -> str:
            stage = next((s for s in trained if step < s.last), trained[-1])
            return task_of(self.seed, step, place, mix_of(stage.cfg, self.cfg.tasks))

        names = {n for s in trained for n, w in mix_of(s.cfg, self.cfg.tasks).items() if w > 0}
        tasks = [n for n in TASK_FIELDS if n in names]
        return Loader(self.dataset, self.cfg.loader, seed=self.seed, tasks=tasks, task_of=task,
                      rank=self.world.rank, world=self.world.size)  # fmt: skip

    def build(self, *, trainable: bool = True) -> nn.Module:
        """A network with random weights of ``seed``, prepared for this world."""
        torch.manual_seed(self.seed)
        network = EchoMimicTransformer(self.model_cfg.transformer).to(self.world.device)
        if not trainable:
            network.requires_grad_(False)
        parallel.apply(network, self.cfg.optim, self.world)
        return network

    def _state(self) -> State:
        network = self.build()
        return State(network, adamw(network, self.cfg.optim), EMA(network, self.cfg.ema), Progress())

    def begin(self, resume: bool, init: str | Path | None) -> None:
        """Load the newest checkpoint, or the initial weights."""
        parallel.on_main(lambda: checkpoint.clean(self.out), "cleaning the run's folder")
        newest = checkpoint.latest(self.out)
        if newest is not None and not resume:
            raise EchoForgeError(f"{self.out} already holds {newest.name}; continue it, or choose another folder.")
        if newest is not None:
            self._check_same(newest)
            checkpoint.load(newest, self.state)
        elif init is not None:
            load_initial(self.state, init, self.model_cfg)
        if self.cfg.log.validation_samples:
            self.validation = Validation(
                self.dataset, self.cfg.loader, self.context, task=self._main_task(),
                rank=self.world.rank, world=self.world.size,
            )  # fmt: skip
        parallel.on_main(lambda: self.log.rewind(self.state.progress.step), "opening the log")
        if newest is None:
            self.validate(self.stages[0])

    def _main_task(self) -> str:
        mix = self.cfg.tasks.mix
        return max(sorted(mix), key=lambda name: mix[name])

    def _check_same(self, path: Path) -> None:
        about = checkpoint.read_about(path)
        mine = self.about()
        for key, what in (("model", "the transformer's configuration"), ("samples", "the samples (dataset or keep-list)"),
                          ("global_batch", "loader.global_batch"), ("seed", "the seed")):  # fmt: skip
            if about.get(key) != mine[key]:
                raise EchoForgeError(
                    f"{self.out} cannot be continued: {what} changed since {path.name}; restore it or start a new run."
                )

    def about(self) -> dict[str, Any]:
        """What is written beside every checkpoint."""
        return {
            "model": strict.digest(self.model_cfg.transformer), "samples": self.loader.index.digest,
            "global_batch": self.cfg.loader.global_batch, "seed": self.seed, "torch": torch.__version__,
            "world": self.world.size, "shard": self.cfg.optim.shard, "git": _revision(),
            "config": strict.to_dict(self.cfg) | strict.to_dict(self.model_cfg),
        }  # fmt: skip

    # ---- the cycle ------------------------------------------------------------------------------------------------

    def follow(self, stages: list[Stage]) -> TrainOutcome:
        """Do what is left of the stages."""
        progress = self.state.progress
        try:
            for stage in stages[progress.stage :]:
                if stage.cfg.kind == "negatives":
                    if not negatives.gathered(self.out, stage.name):
                        return TrainOutcome("needs_negatives", stage.name, self._stage_end(stage))
                    progress.stage = stage.index + 1
                    continue
                self._run_stage(stage)
            return TrainOutcome("finished", stages[-1].name, self._stage_end(stages[-1]))
        finally:
            self.loader.close()

    def _run_stage(self, stage: Stage) -> None:
        progress = self.state.progress
        self.loader.seek(self.loader.order.position_of(progress.step))
        recorder = Recorder(self, stage)
        reason = Loop(self.state, self.cfg.optim, [recorder]).run(stage, self._method(stage))
        if reason is not None:
            self.log.write("event", progress.step, {"event": "stage ended early", "stage": stage.name, "why": reason})
            self.log.say(f"{stage.name} ended early: {reason}")
        progress.step, progress.stage, progress.method = stage.last, stage.index + 1, {}
        self.validate(stage)
        self.save(pin=stage.name)

    def _stage_end(self, stage: Stage) -> Path:
        newest = checkpoint.latest(self.out)
        if newest is not None and checkpoint.is_pinned(newest):
            return newest
        return self.save(pin=stage.name)

    def save(self, pin: str | None = None) -> Path:
        """Commit a checkpoint; with ``pin`` as the end of that stage."""
        return checkpoint.save(self.out, self.state, self.about(), keep_last=self.cfg.checkpoint.keep_last, pin=pin)

    def validate(self, stage: Stage) -> dict[str, float]:
        """Write the held-out losses of the raw and of the averaged weights."""
        if self.validation is None:
            return {}
        self.state.network.eval()
        raw = self.validation.losses()
        with self.state.ema.swapped():
            averaged = self.validation.losses()
        self.state.network.train()
        values = raw | {name.replace("loss", "ema_loss", 1): value for name, value in averaged.items()}
        step = self.state.progress.step
        self.log.write("validation", step, {"stage": stage.name, "task": self.validation.task} | values)
        self.log.say(f"{stage.name}  step {step}  held-out loss {raw['loss']:.4f}  EMA {averaged['loss']:.4f}")
        return values

    # ---- objectives -----------------------------------------------------------------------------------------------

    def _method(self, stage: Stage) -> Method:
        positives = SFT(self.context, self.loader)
        if stage.cfg.kind == "sft":
            return positives
        assert stage.source is not None
        source = next(s for s in self.stages if s.name == stage.source)
        chosen = negatives.read(self.out, source.name, stage.cfg.issues, accept_flags=self.accept_flags)
        made_by = self.out / f"step-{source.first:06d}"
        reference, cache = self._reference(source, made_by, chosen)
        loader = self._negative_loader(chosen, once=False)
        loader.seek(loader.order.position_of(self.state.progress.step - stage.first))
        return NDPO(self.context, positives, loader, chosen, first=stage.first, cache=cache, reference=reference,
                    state=self.state.progress.method)  # fmt: skip

    def _negative_loader(self, chosen: list[negatives.Negative], *, once: bool) -> Loader:
        index = negatives.condition_index(self.dataset, self.cfg.loader, chosen)
        size = self.world.size if once else self.cfg.objective.negative.batch_size
        return Loader(
            self.dataset, self.cfg.loader, seed=self.seed, global_batch=size, tasks=sorted({n.task for n in chosen}),
            index=index, once=once, rank=self.world.rank, world=self.world.size,
        )  # fmt: skip

    def _reference(
        self, source: Stage, made_by: Path, chosen: list[negatives.Negative]
    ) -> tuple[nn.Module | None, Cache | None]:
        """The frozen network that made the negatives, or its cached losses on them."""
        cfg = self.cfg.objective.negative
        if cfg.kind == "paper":
            return None, None
        identity = strict.digest([checkpoint.digest(made_by, source.cfg.weights), self.seed, cfg.draws, cfg.t_min, cfg.t_max,
                                  cfg.kind == "dpo", [[n.negative_id, n.frames] for n in chosen]])  # fmt: skip
        path = negatives.folder(self.out, source.name) / negatives.CACHE_FOLDER / f"{identity}.parquet"
        if cfg.reference == "cache" and (cached := Cache.read(path)) is not None:
            return None, cached
        network = self.build(trainable=False)
        checkpoint.load_weights(made_by, network, source.cfg.weights)
        network.eval()
        if cfg.reference == "model":
            return network, None
        with self._negative_loader(chosen, once=True) as loader:
            cache = build_cache(self.context, loader, chosen, network).merged()
        parallel.on_main(lambda: cache.write(path), "writing the reference's losses")
        return None, cache


class Recorder:
    """After every step: metrics, held-out losses, checkpoints, and the stop of an `ndpo` stage that forgets."""

    def __init__(self, run: Run, stage: Stage) -> None:
        self.run, self.stage = run, stage
        self._reports: list[StepReport] = []
        self._start: float | None = None
        if stage.cfg.kind == "ndpo" and run.validation is not None:
            self._start = run.state.progress.method.get("start_loss") or run.validation.losses()["loss"]

    def __call__(self, stage: Stage, report: StepReport) -> str | None:
        """Look at the step; returns why the stage should stop, or None."""
        run, cfg, step = self.run, self.run.cfg, report.step + 1
        self._reports.append(report)
        if self._start is not None:
            run.state.progress.method["start_loss"] = self._start
        if not report.taken:
            run.log.write("event", step, {"event": "step skipped", "grad_norm": report.grad_norm})
        if step % cfg.log.every == 0 or step == stage.last:
            self._log(stage, step)
        reason = None
        if step == stage.last:
            return None
        if cfg.log.validate_every and step % cfg.log.validate_every == 0:
            reason = self._forgets(run.validate(stage))
        if cfg.checkpoint.every and step % cfg.checkpoint.every == 0:
            run.save()
        return reason

    def _log(self, stage: Stage, step: int) -> None:
        run, reports = self.run, self._reports
        seconds = sum(r.seconds for r in reports)
        rate = len(reports) / seconds if seconds else 0.0
        means = run.tally.means()
        run.log.write("train", step, {
            "stage": stage.name, "lr": reports[-1].lr, "grad_norm": reports[-1].grad_norm, "steps_per_s": rate,
            "wait_fraction": sum(r.waited for r in reports) / seconds if seconds else 0.0,
            "skipped": run.state.progress.guard.get("skipped", 0),
        } | means)  # fmt: skip
        run.log.progress(step, stage.last, stage.name, means.get("loss", float("nan")), rate)
        self._reports = []

    def _forgets(self, values: dict[str, float]) -> str | None:
        limit = self.run.cfg.objective.negative.ratio_stop
        if self._start is None or not limit or not values:
            return None
        ratio = values["loss"] / self._start
        return f"the held-out loss rose to {ratio:.3f} of the stage's start" if ratio > limit else None


def adamw(network: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """AdamW with its moments already there (zeros), so that a checkpoint can be read into them."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2 and min(p.shape[:2]) > 1], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trained if p.ndim < 2 or min(p.shape[:2]) == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)
    for p in trained:
        step = torch.zeros((), dtype=torch.float32, device=p.device)
        optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return optimizer


def load_initial(state: State, path: str | Path, model_cfg: ModelConfig) -> None:
    """Read weights (a base model's too: then the audio expert keeps its initial values) into network and EMA."""
    from model.checkpoint import load_transformer

    loaded = load_transformer(model_cfg.transformer, Path(path)).state_dict()
    parallel.assign(state.network, loaded)
    for name, average in state.ema.state.items():
        average.copy_(dict(state.network.named_parameters())[name].detach())


def read_prompts(dataset: str) -> dict[str, Tensor]:
    """The named embeddings of a dataset.

    Raises:
        EchoForgeError: there is none for the empty caption.
    """
    if "://" in dataset:
        import fsspec
        from safetensors.torch import load

        with fsspec.open(f"{dataset}/{PROMPTS_FILE}", "rb") as file:
            prompts: dict[str, Tensor] = load(file.read())
    else:
        path = Path(dataset) / PROMPTS_FILE
        prompts = load_file(path) if path.is_file() else {}
    if NULL_PROMPT not in prompts:
        raise EchoForgeError(f"'{dataset}' has no embedding '{NULL_PROMPT}' in {PROMPTS_FILE}; run `shard` again.")
    return prompts


def _revision() -> str:
    try:
        command = ["git", "rev-parse", "HEAD"]
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
