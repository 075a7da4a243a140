"""Attention without masks on the hot path, the choice of its kernel, and a check of that kernel.

Self-attention over 45,240 tokens is three quarters of the forward's work, so the kernel decides the speed:
cuDNN before FlashAttention-2 on Hopper, FlashAttention-3 before both where it is installed. Everything else
(efficient, math) is for CPUs and float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from configs.errors import EchoForgeError
from model.rope import Rotation, rotate

_DEFAULT_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_order = list(_DEFAULT_ORDER)

_WRITTEN_OUT = 1 << 18  # scores a head: below, a CPU's fused bf16 backward takes 3 to 8 times as long as plain products

KERNELS = ("auto", "fa3", "cudnn", "flash", "math")


def use_kernel(name: str = "auto") -> str:
    """Choose the attention kernel of this process; call it before anything is compiled.

    `auto` is FlashAttention-3 where torch can activate it, else cuDNN, flash, efficient, math in this order.

    Returns:
        The name of the first choice: `fa3`, `cudnn`, `flash` or `math`. What really runs is in :func:`self_check`.

    Raises:
        EchoForgeError: unknown name, or `fa3` asked for and not there.
    """
    if name not in KERNELS:
        raise EchoForgeError(f"attention kernel '{name}' is unknown; known here: {', '.join(KERNELS)}.")
    if name in ("auto", "fa3"):
        if _activate_fa3():
            _set_first(SDPBackend.FLASH_ATTENTION)
            return "fa3"
        if name == "fa3":
            raise EchoForgeError("attention kernel 'fa3' is not available here; install flash-attn-3 or use 'auto'.")
    if name == "math":
        _order[:] = [SDPBackend.MATH]
        return name
    first = SDPBackend.FLASH_ATTENTION if name == "flash" else SDPBackend.CUDNN_ATTENTION
    _set_first(first)
    return "cudnn" if name == "auto" else name


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d)·v without a mask: [B, N, heads, d], [B, M, heads, d] twice → [B, N, heads, d]."""
    if q.device.type == "cpu" and q.dtype is torch.bfloat16 and q.shape[1] * k.shape[1] <= _WRITTEN_OUT:
        share = torch.matmul(q.transpose(1, 2) * q.shape[-1] ** -0.5, k.permute(0, 2, 3, 1)).softmax(-1)
        return torch.matmul(share, v.transpose(1, 2)).transpose(1, 2)
    with sdpa_kernel(_order, set_priority=True):
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def few_keys_attention(q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
    """Attention over a handful of keys of which some are absent; rows with no key at all give 0.

    Written out because fused kernels leave the fast path, or are wrong in the backward (cuDNN at N mod 128 = 64), when
    a mask is given, while the whole score matrix is small here: 17 keys.

    Args:
        q: [B, N, heads, d]. k, v: [B, K, heads, d]. valid: bool [B, K].
    """
    scale = q.shape[-1] ** -0.5
    scores = torch.matmul(q.transpose(1, 2) * scale, k.permute(0, 2, 3, 1)).float()
    present = valid[:, None, None, :]
    share = scores.masked_fill(~present, torch.finfo(torch.float32).min).softmax(-1) * present
    return torch.matmul(share.to(v.dtype), v.transpose(1, 2)).transpose(1, 2)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32, returned in the input's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class SelfAttention(nn.Module):
    """Full attention over all tokens of the clip. q and k are normalised over the whole width, before the heads."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def forward(self, x: Tensor, turn: Rotation) -> Tensor:
        """[B, N, dim] → [B, N, dim]; ``turn`` holds the rotary angles of the N tokens."""
        heads = (self.num_heads, -1)
        q = rotate(self.norm_q(self.q(x)).unflatten(-1, heads), turn)
        k = rotate(self.norm_k(self.k(x)).unflatten(-1, heads), turn)
        v = self.v(x).unflatten(-1, heads)
        return self.o(attention(q, k, v).flatten(-2))


_FUSED = (
    "_scaled_dot_product_cudnn_attention",  # the default on Hopper since torch 2.11
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_flash_attention_forward",
)


def fused_operators() -> set[Any]:
    """The fused attention forwards that this torch knows. Selective checkpointing keeps their outputs: 3/4 of the FLOPs,
    a small part of the memory.
    """
    return {getattr(torch.ops.aten, name).default for name in _FUSED if hasattr(torch.ops.aten, name)}


@dataclass(frozen=True)
class SelfCheck:
    """What :func:`self_check` found: the operator that ran, and the largest relative errors against the math kernel."""

    kernel: str
    forward_error: float
    backward_error: float


def self_check(
    tokens: int = 45_240, head_dim: int = 128, *, device: torch.device | str, dtype: torch.dtype, heads: int = 2
) -> SelfCheck:
    """Compare the chosen kernel with the math kernel, forward and backward, on a slice of the real shape.

    The slice keeps ``tokens`` keys and ``1024 + tokens % 128`` queries: kernels have been wrong for particular
    remainders of the length.

    Raises:
        EchoForgeError: a value is not finite, or an error is above 2 % (16-bit types) or 1e-4 (float32).
    """
    generator = torch.Generator().manual_seed(0)
    queries = min(tokens, 1024 + tokens % 128)

    def tensor(length: int) -> Tensor:
        value = torch.randn(1, length, heads, head_dim, generator=generator)
        return value.to(device, dtype).requires_grad_()

    inputs = (tensor(queries), tensor(tokens), tensor(tokens))
    spy = _KernelSpy()
    with spy:
        out = attention(*inputs)
    seed = torch.randn(out.shape, generator=generator).to(out)
    grads = torch.autograd.grad(out, inputs, seed)
    q, k, v = exact = [x.detach().float().requires_grad_() for x in inputs]
    with sdpa_kernel(SDPBackend.MATH):
        reference = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(
            1, 2
        )
    reference_grads = torch.autograd.grad(reference, exact, seed.float())
    forward = _relative(out, reference)
    backward = max(_relative(a, b) for a, b in zip(grads, reference_grads, strict=True))
    limit = 1e-4 if dtype == torch.float32 else 2e-2
    if not max(forward, backward) <= limit:  # also true for NaN
        raise EchoForgeError(
            f"attention kernel {spy.kernel} disagrees with the math kernel by {max(forward, backward):.2g} "
            f"(limit {limit:g}) at {tokens} tokens in {dtype}; choose another attention kernel."
        )
    return SelfCheck(spy.kernel, forward, backward)


class _KernelSpy(TorchDispatchMode):
    """Remembers the fused attention operator that ran; plain matrix products mean the math kernel."""

    kernel = "math"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if "attention" in name:
            self.kernel = name.removeprefix("_scaled_dot_product_")
        return func(*args, **(kwargs or {}))


def _relative(value: Tensor, reference: Tensor) -> float:
    """Largest error over the largest value; NaN when something is not finite."""
    if not torch.isfinite(value).all():
        return float("nan")
    value, reference = value.detach().float(), reference.detach()
    return float((value - reference).abs().max() / reference.abs().max())


def _activate_fa3() -> bool:
    module = torch.nn.attention
    if not torch.cuda.is_available() or not hasattr(module, "activate_flash_attention_impl"):
        return False
    try:
        module.activate_flash_attention_impl("FA3")
    except Exception:  # torch has no public way to ask; not installed and not supported look the same
        return False
    return True


def _set_first(first: SDPBackend) -> None:
    _order[:] = [first, *(backend for backend in _DEFAULT_ORDER if backend != first)]
