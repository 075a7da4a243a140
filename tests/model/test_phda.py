"""Eq. 2 at its endpoints, and the named alternatives."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.phda import weights

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize(
    ("tau", "text", "image", "audio"),
    [(1000, 1, 1, 1), (800, 1, 1, 1), (650, 1, 1, 0.75), (450, 1, 0.75, 0.5), (400, 1, 2 / 3, 0.5), (0, 1, 0.5, 0.5)],
)
def test_newest(phda_cfg, tau, text, image, audio):
    w = weights(torch.tensor([float(tau)]), phda_cfg)
    torch.testing.assert_close(torch.cat(w), torch.tensor([text, image, audio], dtype=torch.float32))


@pytest.mark.parametrize(
    ("schedule", "early", "middle", "late"),
    [
        ("ones", (1, 1, 1), (1, 1, 1), (1, 1, 1)),
        ("v1_drop", (1, 0, 0), (1, 1, 1), (1, 1, 1)),
        ("allocation_a", (1, 1, 0), (1, 5 / 6, 0.5), (1, 0.5, 0.5)),
        ("allocation_b", (0, 1, 1), (0, 5 / 6, 0.5), (1, 0.5, 0.5)),
        ("allocation_c", (1, 0, 1), (1, 5 / 6, 0.5), (1, 0.5, 0.5)),
    ],
)
def test_named_schedules(phda_cfg, schedule, early, middle, late):
    cfg = dataclasses.replace(phda_cfg, schedule=schedule)
    w = torch.stack(weights(torch.tensor([900.0, 500.0, 100.0]), cfg), dim=-1)
    torch.testing.assert_close(w, torch.tensor([early, middle, late], dtype=torch.float32))


def test_v1_drops_one_or_two_late(phda_cfg):
    cfg = dataclasses.replace(phda_cfg, schedule="v1_drop")
    draws = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    w = torch.stack(weights(torch.full((4000,), 100.0), cfg, draws), dim=-1)
    dropped = 3 - w.sum(-1)
    assert set(dropped.tolist()) == {1.0, 2.0}
    assert abs(dropped.mean().item() - 1.5) < 0.05
    assert (w.mean(0) - 0.5).abs().max() < 0.05  # no modality is preferred


def test_sampled_keeps_with_probability_w(phda_cfg):
    cfg = dataclasses.replace(phda_cfg, sampled=True)
    t = torch.full((4000,), 650.0)
    draws = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    w = torch.stack(weights(t, cfg, draws), dim=-1)
    assert set(w.unique().tolist()) == {0.0, 1.0}
    assert (w.mean(0) - torch.tensor([1, 1, 0.75])).abs().max() < 0.03
    torch.testing.assert_close(weights(t, cfg).audio, torch.full((4000,), 0.75))  # generation does not gamble
