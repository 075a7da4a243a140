"""Noise levels of the released schedulers, guidance, windows that blend to the identity, seeds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model import guidance as guide
from model.config import GuidanceConfig, LongVideoConfig, NegativePhase, SamplerConfig, TeaCacheConfig
from model.sampler import SamplerInputs, _window, blend, sample, windows
from model.schedulers import Solver, noise_levels
from model.transformer import EchoMimicTransformer

pytestmark = pytest.mark.numeric
CFG = SamplerConfig("euler", 5, 5.0, True, TeaCacheConfig(0.0, 1, (1.0, 0.0)), LongVideoConfig(9, 3, "reference"))
GUIDE = GuidanceConfig(
    4.0, 2.9, "three", False, "embed_scale", False,
    (NegativePhase("motion", 3, 1.5), NegativePhase("detail", None, 1.0)), {"motion": "", "detail": ""},
)  # fmt: skip


@pytest.mark.parametrize(
    ("scheduler", "steps", "expected"),
    [
        ("euler", 5, [1, 0.93789, 0.83471, 0.62963, 0.02441, 0]),
        ("unipc", 8, [0.99980, 0.97201, 0.93727, 0.89260, 0.83306, 0.74970, 0.62469, 0.41639, 0]),
        ("dpmpp", 8, [1, 0.97222, 0.93750, 0.89286, 0.83333, 0.75, 0.625, 0.41667, 0]),
    ],
)
def test_noise_levels_are_the_released_ones(scheduler: str, steps: int, expected: list[float]) -> None:
    levels = noise_levels(replace(CFG, scheduler=scheduler, steps=steps))
    assert torch.allclose(levels, torch.tensor(expected, dtype=torch.float64), atol=1e-5)


def test_euler_is_diffusers_euler() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=5.0)
    theirs.set_timesteps(25)
    assert torch.allclose(noise_levels(replace(CFG, steps=25)).float(), theirs.sigmas, atol=1e-6)


@pytest.mark.parametrize("scheduler", ["euler", "unipc", "dpmpp"])
def test_a_straight_flow_is_followed_exactly(scheduler: str) -> None:
    """With the true velocity of one data point every solver lands on it."""
    data, noise = torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 3, 4, 4)
    solver = Solver(replace(CFG, scheduler=scheduler, steps=8))
    x = (1 - solver.sigmas[0].float()) * data + solver.sigmas[0].float() * noise
    for step in range(8):
        x = solver.step(step, noise - data, x)
    assert torch.allclose(x, data, atol=1e-3)


def test_guidance_formulas() -> None:
    u, a, c = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(4.0)
    assert guide.combine([u, a, c], guide.Scales(4.0, 2.9)) == pytest.approx(1 + 4 * 1 + 2.9 * 2)
    assert guide.combine([a, c], guide.Scales(6.0, 3.0)) == pytest.approx(2 + 3 * 2)
    assert [round(guide.dynamic_factor(i, 25), 2) for i in (0, 3, 7)] == [1.0, 0.77, 0.54]
    prompts = {"motion": torch.ones(1, 1), "detail": torch.ones(1, 1)}
    # Compared exactly: powers of 1.5 are exact in float32.
    clean = [float(guide.negative_text(i, GUIDE, prompts)) for i in range(5)]
    assert clean == [1.5, 1.5, 1.5, 1, 1]
    released = [float(guide.negative_text(i, replace(GUIDE, compound=True), prompts)) for i in range(5)]
    assert released == [1.5, 2.25, 3.375, 3.375, 3.375]


@pytest.mark.parametrize("frames", [5, 9, 10, 15, 16, 31])
def test_windows_cover_and_blend_to_the_identity(frames: int) -> None:
    parts = windows(frames, CFG.long_video)
    assert sorted({i for a, b in parts for i in range(a, b)}) == list(range(frames))
    whole = torch.randn(1, 2, frames, 3, 3)
    assert torch.allclose(blend([whole[:, :, a:b] for a, b in parts], parts, frames, 3), whole, atol=1e-5)


def test_a_later_windows_first_latent_has_no_weight() -> None:
    """The network takes it for the reference image."""
    parts = windows(16, CFG.long_video)
    velocities = [torch.zeros(1, 1, b - a, 1, 1) for a, b in parts]
    for velocity in velocities[1:]:
        velocity[:, :, 0] = 1.0
    assert not blend(velocities, parts, 16, 3).any()


def test_windows_are_led_by_the_reference_only_where_nothing_is_given() -> None:
    """Windows are copies, so they are compared exactly."""
    cond = torch.zeros(1, 20, 15, 2, 2)
    cond[:, :4, 0] = 1
    text = torch.zeros(1, 1, 8)
    i2v = SamplerInputs(cond=cond, text=text, negatives={}, image=text)
    assert torch.equal(_window(i2v, 6, 15, CFG.long_video, "whisper").cond, cond[:, :, :9])
    lip_sync = replace(i2v, cond=torch.randn(1, 20, 15, 2, 2))
    assert torch.equal(_window(lip_sync, 6, 15, CFG.long_video, "whisper").cond, lip_sync.cond[:, :, 6:])


def test_every_window_hears_its_own_part_of_the_sound() -> None:
    rows = torch.arange(2 * 57 + 32.0)[None, :, None]
    text = torch.zeros(1, 1, 8)
    given = SamplerInputs(torch.zeros(1, 20, 15, 2, 2), text, {}, text, audio=rows, audio_frame0=16)
    part = _window(given, 6, 15, CFG.long_video, "whisper")
    assert part.audio is not None and part.audio[0, part.audio_frame0] == 16 + 2 * 24
    released = _window(replace(given, audio=rows[:, 16:130], audio_frame0=0), 6, 15, CFG.long_video, "preview")
    assert released.audio is not None and released.audio.shape[1] == 66 and released.audio[0, 0] == 16 + 2 * 24


@pytest.mark.parametrize("scheduler", ["unipc", "dpmpp"])
def test_second_order_beats_euler_on_a_curved_flow(scheduler: str) -> None:
    """Gaussian data of deviation s: the velocity is known, and so is the end, s·x1."""
    s, errors = 0.5, []
    for name in ("euler", scheduler):
        solver, x = Solver(replace(CFG, scheduler=name, steps=16, shift=1.0)), torch.ones(1, 1, 1)
        for step in range(16):
            sigma = float(solver.sigmas[step])
            x = solver.step(step, x * (sigma - (1 - sigma) * s**2) / ((1 - sigma) ** 2 * s**2 + sigma**2), x)
        errors.append(abs(float(x) - s))
    assert errors[1] < errors[0]


def test_samples_depend_on_their_seed_and_not_on_their_batch() -> None:
    from configs import schema

    config = schema.load("tiny").model
    net = replace(config.transformer, dim=48, ffn_dim=64, num_heads=2, num_layers=2, patch_size=(1, 2, 2))
    network = EchoMimicTransformer(net)
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    inputs = SamplerInputs(
        cond=torch.randn(2, 20, 12, 4, 4), text=torch.randn(2, 5, net.text_dim),
        negatives={"negative": torch.zeros(3, net.text_dim)}, image=torch.randn(2, net.image_tokens, net.image_dim),
        audio=torch.randn(2, 140, net.audio.dim), audio_valid=torch.ones(2, 140, dtype=torch.bool), audio_frame0=16,
    )  # fmt: skip
    cfg = replace(config.sampler, steps=3)

    def run(rows: slice, seeds: list[int], settings: SamplerConfig) -> torch.Tensor:
        part = replace(
            inputs, **{n: getattr(inputs, n)[rows] for n in ("cond", "text", "image", "audio", "audio_valid")}
        )
        return sample(network, part, settings, config.guidance, config.phda, seeds=seeds)

    both = run(slice(0, 2), [1, 2], cfg)
    assert both.shape == (2, 16, 12, 4, 4) and torch.isfinite(both).all()
    assert torch.allclose(both[1:], run(slice(1, 2), [2], cfg), atol=1e-4)
    assert torch.allclose(both, run(slice(0, 2), [1, 2], replace(cfg, batched=False)), atol=1e-4)
    assert not torch.allclose(both[:1], run(slice(0, 1), [3], cfg))
    cached = replace(cfg, steps=4, batched=False, teacache=TeaCacheConfig(1e9, 1, (1.0, 0.0)))
    assert not torch.equal(run(slice(0, 1), [1], cached), run(slice(0, 1), [1], replace(cfg, steps=4)))
