"""The flow's endpoints, the rotation's invariants, and the attention kernel against the math kernel."""

from __future__ import annotations

import pytest
import torch

from configs.errors import EchoForgeError
from model import attention, flow, rope

pytestmark = pytest.mark.numeric


def test_flow_endpoints_and_velocity():
    x0, noise = torch.randn(2, 16, 3, 4, 4), torch.randn(2, 16, 3, 4, 4)
    # One times x plus zero times y is x in any arithmetic.
    assert torch.equal(flow.interpolate(x0, noise, torch.zeros(2)), x0)
    assert torch.equal(flow.interpolate(x0, noise, torch.ones(2)), noise)
    sigma = torch.tensor([0.3, 0.8])
    x = flow.interpolate(x0, noise, sigma)
    torch.testing.assert_close(flow.clean_from_velocity(x, flow.velocity_target(x0, noise), sigma), x0)


def test_shift():
    u = torch.linspace(0, 1, 9)[1:]
    expected = torch.tensor([0.41667, 0.625, 0.75, 0.83333, 0.89286, 0.9375, 0.97222, 1.0])
    torch.testing.assert_close(flow.shift_sigma(u, 5.0), expected, atol=1e-5, rtol=0)
    assert flow.sigma_to_t(torch.tensor(1.0)) == 1000


def test_rotation_splits_and_depends_on_distance_only():
    assert rope.axis_dims(128) == (44, 42, 42)
    turn = rope.rotation((6, 3, 5), 32, "cpu")
    q, k = (torch.randn(1, 1, 1, 32).expand(1, 90, 1, 32) for _ in range(2))
    scores = (rope.rotate(q, turn)[0, :, 0] @ rope.rotate(k, turn)[0, :, 0].T).view(6, 3, 5, 6, 3, 5)
    torch.testing.assert_close(scores[1, 0, 2, 0, 1, 4], scores[4, 1, 0, 3, 2, 2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rope.rotate(q, turn).norm(dim=-1), q.norm(dim=-1))


def test_riflex_replaces_one_frequency():
    plain, slow = (rope.rotation((8, 1, 1), 128, "cpu", r) for r in (None, rope.Riflex(length=40)))
    changed = (plain.sin != slow.sin).any(0).flatten().nonzero().flatten().tolist()
    assert changed == [5]
    angle = torch.atan2(slow.sin, slow.cos)[1, 0, 5]
    torch.testing.assert_close(angle, torch.tensor(0.9 * 2 * torch.pi / 40 / 4.886))


def test_the_kernel_is_checked_at_awkward_lengths():
    found = attention.self_check(200, 32, device="cpu", dtype=torch.float32)
    assert max(found.forward_error, found.backward_error) < 1e-4
    assert found.kernel == "flash_attention_for_cpu"


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT" and torch.cpu._is_amx_tile_supported(),
    reason="PyTorch's kernels without vector instructions fail on a CPU with AMX: only ATEN_CPU_CAPABILITY=default does that",
)
def test_short_products_in_bf16_are_written_out():
    few = attention.self_check(200, 32, device="cpu", dtype=torch.bfloat16)  # one call is 2e5 scores a head
    many = attention.self_check(600, 32, device="cpu", dtype=torch.bfloat16)
    assert (few.kernel, many.kernel) == ("math", "flash_attention_for_cpu")


def test_a_wrong_kernel_is_refused(monkeypatch):
    right = attention.attention
    monkeypatch.setattr(attention, "attention", lambda q, k, v: right(q, k, v) * 1.05)
    with pytest.raises(EchoForgeError, match="disagrees"):
        attention.self_check(64, 32, device="cpu", dtype=torch.float32)
    with pytest.raises(EchoForgeError, match="unknown"):
        attention.use_kernel("fast")


def test_kernels_can_be_chosen():
    try:
        assert attention.use_kernel("math") == "math"
        found = attention.self_check(64, 32, device="cpu", dtype=torch.float32)
        assert found.kernel == "math" and found.forward_error == 0, "the same kernel on the same shapes"
    finally:
        attention.use_kernel("auto")
