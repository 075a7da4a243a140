"""The parts of a run, built from its configuration: network, state, loader, held-out loss, and what they must fit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from configs import strict
from configs.errors import EchoForgeError
from configs.weights import locate
from model import attention
from model.checkpoint import load_into, load_weights
from model.config import ModelConfig
from model.transformer import EchoMimicTransformer
from train import parallel, rng, stages
from train.checkpoints.info import CheckpointInfo
from train.config import TrainConfig
from train.data import inputs
from train.data.index import SampleIndex, made_with
from train.data.loader import Loader
from train.ema import EMA
from train.log import Tally
from train.objectives.base import Context
from train.parallel import World
from train.stages import Stage
from train.state import Progress, State
from train.validation import Validation


def check_dataset(index: SampleIndex, cfg: TrainConfig, model_cfg: ModelConfig) -> None:
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


def build_loader(
    dataset: str | Path, cfg: TrainConfig, planned: list[Stage], index: SampleIndex, seed: int, world: World
) -> Loader:
    """The loader of all stages; the task of a place follows from its step."""

    def task_of(step: int, place: int) -> str:
        stage = next((s for s in planned if s.first <= step < s.last), planned[-1])
        return rng.choice(stages.mix_of(stage.cfg, cfg.tasks), seed, step, place, "task")

    mixes = [stages.mix_of(s.cfg, cfg.tasks) for s in planned if s.cfg.kind != "negatives"]
    tasks = sorted({task for mix in mixes for task, weight in mix.items() if weight > 0})
    return Loader(
        dataset, cfg.loader, seed=seed, tasks=tasks, task_of=task_of, rank=world.rank, world=world.size, index=index
    )


def build_state(model_cfg: ModelConfig, cfg: TrainConfig, seed: int, world: World, *, new: bool) -> State:
    """The state before the first step, sharded over the ranks; ``new``: from ``checkpoint.init`` where it names weights."""
    network = build_network(model_cfg, cfg, seed, new)
    parallel.apply(network, cfg.optim, world)
    network.to(world.device)
    state = State(network, build_optimizer(network, cfg), EMA(network, cfg.ema), Progress())
    _zero_moments(state)
    return state


def build_network(model_cfg: ModelConfig, cfg: TrainConfig, seed: int, new: bool) -> EchoMimicTransformer:
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


def build_optimizer(network: torch.nn.Module, cfg: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only: no biases, norms and modulation."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.dim() >= 2 and not name.endswith("modulation")]
    kept = [p for name, p in named if p.dim() < 2 or name.endswith("modulation")]
    groups = [
        {"params": decayed, "weight_decay": cfg.optim.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.optim.lr, betas=cfg.optim.betas, eps=cfg.optim.eps, fused=True)


def _zero_moments(state: State) -> None:
    """Zero moments before the first step, so that a checkpoint always has the same names."""
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            state.optimizer.state[parameter] = {
                "step": torch.tensor(0.0, device=parameter.device),  # the fused update wants it there
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def build_context(
    dataset: str | Path, model_cfg: ModelConfig, cfg: TrainConfig, state: State, seed: int, world: World
) -> Context:
    """What the objectives of a run share."""
    return Context(
        state.network, model_cfg.phda, cfg, seed, world.device, inputs.read_prompts(dataset),
        model_cfg.transformer.text_len, model_cfg.transformer.variant, cfg.loader.global_batch, Tally(),
    )  # fmt: skip


def build_validation(dataset: str | Path, context: Context, world: World) -> Validation | None:
    """The held-out loss of the task that is trained most; None where it is switched off."""
    cfg = context.cfg
    if not cfg.log.validation_samples:
        return None
    mix = cfg.tasks.mix
    task = max(sorted(mix), key=lambda name: mix[name])
    return Validation(dataset, cfg.loader, context, task=task, rank=world.rank, world=world.size)


def run_info(
    dataset: str | Path,
    digest: str,
    model_cfg: ModelConfig,
    cfg: TrainConfig,
    seed: int,
    world: World,
    preset: str | None,
) -> CheckpointInfo:
    """What every checkpoint says of the run that made it.

    Args:
        digest: of the samples that the run trains on.
    """
    return CheckpointInfo(
        model=strict.to_dict(model_cfg),
        train=strict.to_dict(cfg),
        preset=preset,
        seed=seed,
        dataset=str(dataset),
        dataset_digest=digest,
        revision=_revision(),
        torch=torch.__version__,
        world_size=world.size,
        device=str(world.device),
    )


def _revision() -> str:
    """The git revision of this code, or 'unknown' outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()
