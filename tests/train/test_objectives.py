"""NDPO's forms against what they are derived from, the guard, the average of weights, and retention."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from configs.errors import EchoForgeError
from configs.folders import PROGRESS_FILE
from configs.schema import load
from train import rng
from train.checkpoints import retention
from train.ema import EMA
from train.guard import Guard
from train.objectives.ndpo import beta, paper_loss, preference_loss, reflected, relative_increase

pytestmark = pytest.mark.numeric


def _push(kind: str, delta: float, margin: float = 0.1) -> float:
    """−∂loss/∂Δ: how hard a step would raise the loss of a negative that stands ``delta`` above the reference."""
    increase = torch.tensor([delta], requires_grad=True)
    preference_loss(kind, beta(margin) * increase, beta(margin)).sum().backward()
    assert increase.grad is not None
    return -float(increase.grad)


@pytest.mark.parametrize("kind", ["npo", "kto"])
def test_the_push_raises_the_loss_of_negatives_and_fades(kind: str) -> None:
    assert _push(kind, 0.0) == pytest.approx(1.0)
    assert _push(kind, 0.1) < _push(kind, 0.05) < _push(kind, 0.0)
    assert _push(kind, 1.0) < 1e-6


def test_at_the_margin_npo_pushes_with_a_twentieth_of_its_limit() -> None:
    z = torch.tensor(beta(0.1) * 0.1)
    assert float(torch.sigmoid(-z)) == pytest.approx(0.05)
    assert _push("npo", 0.1) == pytest.approx(2 * 0.05)


def test_kto_also_lets_go_of_what_is_hopeless() -> None:
    """A negative that the model already does much better than the reference is likely mislabelled."""
    assert _push("kto", -1.0) < 1e-6
    assert _push("npo", -1.0) == pytest.approx(2.0, rel=1e-3)


def test_the_paper_s_form_pulls_instead_of_pushing() -> None:
    """Eq. 3 as printed is −log(1 + π⁻): descending on it raises π⁻, so it lowers the negative's loss."""
    loss = torch.tensor([0.3], requires_grad=True)
    value = paper_loss(loss, 2.0)
    assert float(value.detach()) == pytest.approx(-math.log1p(math.exp(-2.0 * 0.3)) / 2.0)
    value.sum().backward()
    assert loss.grad is not None and float(loss.grad) > 0


def test_the_increase_is_relative_and_blind_to_the_reference_s_gradient() -> None:
    loss, reference = torch.tensor([0.2, 0.4], requires_grad=True), torch.tensor([0.1, 0.4], requires_grad=True)
    delta = relative_increase(loss, reference)
    assert delta.tolist() == pytest.approx([1.0, 0.0], abs=2e-3)
    delta.sum().backward()
    assert reference.grad is None and loss.grad is not None


def test_reflection_moves_away_from_the_negative() -> None:
    u, v = torch.randn(4, 3), torch.randn(4, 3)
    aim = reflected(u, v, 0.25)
    assert torch.all((aim - v).norm(dim=1) > (u - v).norm(dim=1))
    assert torch.equal(reflected(u, u, 0.25), u)  # a difference of zero, whatever it is multiplied by


def test_the_guard_refuses_spikes_and_gives_up_in_time() -> None:
    guard = Guard(load("tiny", ["optim.skip_factor=5", "optim.max_skips=3"]).train.optim)
    assert all(guard.admit(1.0 + 0.01 * k, k) for k in range(30))
    assert not guard.admit(50.0, 30) and not guard.admit(float("nan"), 31)
    copy = Guard(guard.cfg)
    copy.load(guard.state())
    assert copy == guard
    assert guard.admit(2.0, 32) and guard.skipped_in_row == 0
    with pytest.raises(EchoForgeError, match="not finite"):
        for step in range(3):
            guard.admit(float("inf"), step)


def test_the_average_follows_and_swapping_loses_no_bit() -> None:
    torch.manual_seed(0)
    module = nn.Linear(5, 3)
    ema = EMA(module, load("tiny", []).train.ema)
    first = {n: t.clone() for n, t in ema.state.items()}
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1.0)
    ema.update(0)
    rest = 1 - ema.decay(0)
    for name, average in ema.state.items():
        torch.testing.assert_close(average, first[name] + rest)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    averages = {n: t.clone() for n, t in ema.state.items()}
    with ema.swapped():
        assert all(torch.equal(p, averages[n]) for n, p in module.named_parameters())
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())
    assert all(torch.equal(t, averages[n]) for n, t in ema.state.items())


def _committed(run: Path, step: int, *, pinned: bool = False) -> Path:
    path = run / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / PROGRESS_FILE).write_text("{}")
    if pinned:
        (path / retention.PIN_FILE).write_text("stage\n")
    return path


def test_retention_keeps_the_newest_and_what_is_pinned(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        _committed(tmp_path, step, pinned=step in (10, 30))
    retention.retain(tmp_path, keep_last=1)
    assert [p.name for p in retention.committed(tmp_path)] == ["step-000010", "step-000030", "step-000050"]
    retention.retain(tmp_path, keep_last=0)
    assert retention.latest(tmp_path) == tmp_path / "step-000050"


def test_what_a_killed_commit_left_is_cleared(tmp_path: Path) -> None:
    """Killed while writing, and killed between the two renames of a pinned checkpoint that replaces another."""
    _committed(tmp_path, 10)
    (tmp_path / "step-000020.tmp" / "state").mkdir(parents=True)
    _committed(tmp_path, 30, pinned=True).rename(tmp_path / "step-000030.old")
    _committed(tmp_path, 5).rename(tmp_path / "step-000005.old")
    assert retention.latest(tmp_path) == tmp_path / "step-000010"
    retention.clean(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000010", "step-000030"]


def test_draws_are_functions_of_the_place_alone() -> None:
    one = rng.noise((3,), 7, 5, 2, "noise")
    assert torch.equal(one, rng.noise((3,), 7, 5, 2, "noise"))
    others = [
        rng.noise((3,), *key) for key in ((8, 5, 2, "noise"), (7, 6, 2, "noise"), (7, 5, 3, "noise"), (7, 5, 2, "t"))
    ]
    assert not any(torch.equal(one, other) for other in others)
    levels = sorted(rng.stratified(k, 8, 0, 3) for k in range(8))
    assert [int(8 * u) for u in levels] == list(range(8))
