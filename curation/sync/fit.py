"""Fitting the small SyncNet on one's own clips: InfoNCE over time shifts within a clip and across clips."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from configs.errors import EchoForgeError
from configs.folders import check_out_file
from configs.runtime import stopping
from curation.config import SyncConfig, SyncFitConfig
from curation.schema import SAMPLES_PER_FRAME
from curation.sync import fitted
from curation.sync.fitted import CROP, Card, FittedSync, SmallSyncNet


@dataclass(frozen=True)
class SyncClip:
    """One clip for fitting: ``crops`` uint8 [F, 32, 32] (`fitted.CROP`), ``pcm`` float32 [F · 640].

    Clips of one ``source`` (a video, a speaker) are never both fitted on and held out.
    """

    source: str
    crops: np.ndarray
    pcm: np.ndarray


@dataclass(frozen=True)
class FitReport:
    """What came of it; ``card`` is what the file carries."""

    card: Card
    losses: list[float]


def fit_from_clips(
    clips: Iterable[SyncClip],
    out: str | Path,
    cfg: SyncConfig,
    *,
    domain: str,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> FitReport:
    """Fit on clips that are in sync and write the network with its card to ``out`` (``.safetensors``).

    Args:
        domain: what the clips are, in words; it is printed wherever the file is used.
        progress: called with (step, steps, loss).

    Raises:
        EchoForgeError: too few clips or sources, or ``out`` is not named ``.safetensors``.
    """
    out = Path(out)
    check_out_file(out, (".safetensors",))
    begun = time.monotonic()
    usable = [c for c in clips if min(len(c.crops), len(c.pcm) // SAMPLES_PER_FRAME) >= cfg.fit.frames]
    learn, held = _split(usable, cfg.fit)
    torch.manual_seed(seed)
    net = SmallSyncNet()
    losses = _train(net, learn, cfg.fit, seed, progress)
    figures = evaluate(net, held, cfg)
    card = Card(
        domain=domain,
        clips=len(learn),
        held_out_clips=len(held),
        minutes=round(sum(len(c.crops) for c in learn) / 1500, 2),
        data_digest=_digest(usable),
        seed=seed,
        steps=cfg.fit.steps,
        parameters=sum(p.numel() for p in net.parameters()),
        **figures,
        seconds=round(time.monotonic() - begun, 1),
    )
    fitted.write(out, net, card)
    return FitReport(card, losses)


def _split(clips: Sequence[SyncClip], cfg: SyncFitConfig) -> tuple[list[SyncClip], list[SyncClip]]:
    """By source, in the order of their hashes."""
    sources = sorted({c.source for c in clips}, key=lambda s: hashlib.sha256(s.encode()).hexdigest())
    if len(sources) < cfg.min_sources:
        raise EchoForgeError(
            f"fitting a SyncNet needs at least {cfg.min_sources} videos with a visible talking mouth and clips of "
            f"{cfg.frames} frames, got {len(sources)}; add videos, or lower sync.fit.min_sources."
        )
    held = set(sources[: max(round(len(sources) * cfg.holdout), 2)])
    return [c for c in clips if c.source not in held], [c for c in clips if c.source in held]


def _digest(clips: Sequence[SyncClip]) -> str:
    total = hashlib.sha256()
    for clip in sorted(clips, key=lambda c: c.source):
        total.update(clip.source.encode() + clip.crops.tobytes() + np.asarray(clip.pcm, np.float32).tobytes())
    return total.hexdigest()[:16]


def _train(
    net: SmallSyncNet,
    clips: Sequence[SyncClip],
    cfg: SyncFitConfig,
    seed: int,
    progress: Callable[[int, int, float], None] | None,
) -> list[float]:
    rng = np.random.default_rng([seed, 77])
    optim = torch.optim.AdamW(net.parameters(), lr=cfg.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optim, cfg.lr, total_steps=cfg.steps, pct_start=0.15)
    crops = [torch.from_numpy(np.ascontiguousarray(c.crops)) for c in clips]
    mels = [fitted.log_mel(torch.from_numpy(np.asarray(c.pcm, np.float32))) for c in clips]
    # Without AVX-512 there are no bf16 convolutions to speak of: 30 steps take 37 core-seconds, in fp32 6.5.
    fast_bf16 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    losses = []
    for step in range(cfg.steps):
        stopping.check()
        lips, sound = _batch(crops, mels, cfg, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16):
            seen, heard = net.embed_lips(lips), net.embed_sound(sound)
        logits = net.scale.exp().clamp(max=60.0) * (seen @ heard.T)
        target = torch.arange(len(logits))
        loss = 0.5 * (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target))
        optim.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optim.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if progress:
            progress(step + 1, cfg.steps, losses[-1])
    return losses


def _batch(
    crops: Sequence[Tensor], mels: Sequence[Tensor], cfg: SyncFitConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Pieces of ``frames`` frames of ``batch`` clips: lips [N, 5, 32, 32] and sound [N, 40, 20], row i beside row i."""
    lips, sound = [], []
    for index in rng.choice(len(crops), cfg.batch, replace=len(crops) < cfg.batch):
        last = min(len(crops[index]), mels[index].shape[1] // 4) - cfg.frames
        at = int(rng.integers(0, last + 1))
        mouths = _jitter(crops[index][at : at + cfg.frames].float(), rng)
        lips.append(fitted.lip_windows(mouths))
        mel = mels[index][:, at * 4 : (at + cfg.frames) * 4] + 0.1 * float(rng.standard_normal())
        tilt = torch.linspace(-1, 1, fitted.MELS)[:, None] * 0.15 * float(rng.standard_normal())
        sound.append(fitted.sound_windows(mel + tilt, cfg.frames))
    return torch.cat(lips), torch.cat(sound)


def _jitter(mouths: Tensor, rng: np.random.Generator) -> Tensor:
    """Another place, size and side: detectors disagree about boxes. float [F, 32, 32] → the same."""
    scale = float(np.exp(rng.uniform(-0.18, 0.18)))
    flip = -1.0 if rng.uniform() < 0.5 else 1.0
    x, y = rng.uniform(-0.14, 0.14), rng.uniform(-0.2, 0.2)
    theta = torch.tensor([[flip * scale, 0.0, x], [0.0, scale, y]]).expand(len(mouths), 2, 3)
    grid = functional.affine_grid(theta, [len(mouths), 1, CROP.size, CROP.size], align_corners=False)
    return functional.grid_sample(mouths[:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def evaluate(net: SmallSyncNet, clips: Sequence[SyncClip], cfg: SyncConfig) -> dict[str, float]:
    """Figures of a :class:`Card`: ``held_out_…`` and the threshold.

    The threshold lies between the confidences of true sound and of the next clip's sound.
    """
    backend = FittedSync(net, cfg)
    scores = backend.score_many([(c.crops, c.pcm) for c in clips])
    frames = [min(len(a.crops), len(b.pcm) // SAMPLES_PER_FRAME) for a, b in _neighbours(clips)]
    foreign = backend.score_many(
        [(a.crops[:n], b.pcm[: n * SAMPLES_PER_FRAME]) for (a, b), n in zip(_neighbours(clips), frames, strict=True)]
    )
    centre = cfg.vshift
    margins = np.stack([np.nanmedian(s.mean) - s.mean for s in scores])
    off = [c for c in range(margins.shape[1]) if abs(c - centre) >= 3]
    low = float(np.quantile([s.conf for s in scores], 0.05))
    high = float(np.quantile([s.conf for s in foreign], 0.95))
    net.train()
    return {
        "held_out_auc": round(auc(margins[:, centre], margins[:, off].ravel()), 4),
        "held_out_foreign_auc": round(auc(np.array([s.conf for s in scores]), np.array([s.conf for s in foreign])), 4),
        "held_out_within_one_frame": round(float(np.mean([abs(s.offset_frames) <= 1 for s in scores])), 4),
        "threshold": round((low + high) / 2, 4),
    }


def _neighbours(clips: Sequence[SyncClip]) -> list[tuple[SyncClip, SyncClip]]:
    """Every clip with the next one of another source."""
    pairs = []
    for index, clip in enumerate(clips):
        others = [c for c in [*clips[index + 1 :], *clips[:index]] if c.source != clip.source]
        if others:
            pairs.append((clip, others[0]))
    return pairs


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive scores above a negative (ties count half). NaNs are left out."""
    positive, negative = positive[~np.isnan(positive)], np.sort(negative[~np.isnan(negative)])
    below = np.searchsorted(negative, positive, "left")
    ties = np.searchsorted(negative, positive, "right") - below
    return float((below + 0.5 * ties).sum() / (len(positive) * len(negative)))
