"""The DCT codec is an orthogonal projection of Wan's shape."""

from __future__ import annotations

import pytest
import torch

from configs.errors import EchoForgeError
from model.codecs import load_codec
from model.codecs.dct import kept_basis
from model.config import CodecConfig

CODEC = load_codec(CodecConfig("dct", None))
pytestmark = pytest.mark.numeric


def test_basis_is_orthonormal() -> None:
    basis = kept_basis()[0].flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(16), atol=1e-5, rtol=0)


def test_shape_is_that_of_wan() -> None:
    latents = CODEC.encode(torch.rand(2, 3, 33, 96, 64) * 2 - 1)
    assert latents.shape == (2, 16, 9, 12, 8) and latents.dtype == torch.float32
    assert CODEC.decode(latents).shape == (2, 3, 33, 96, 64)


def test_what_is_kept_comes_back() -> None:
    latents = torch.randn(1, 16, 3, 2, 2) * 0.05
    latents[:, :, 0, :, :] = CODEC.encode(CODEC.decode(latents))[:, :, 0]  # the first shows one frame: no motion there
    torch.testing.assert_close(CODEC.encode(CODEC.decode(latents)), latents, atol=1e-5, rtol=0)


def test_causal_first_frame_alone() -> None:
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    changed = video.clone()
    changed[:, :, 1:] = 0
    # Equal shapes are added in equal order: a changed bit would mean that a later frame entered the first latent.
    assert torch.equal(CODEC.encode(video)[:, :, 0], CODEC.encode(changed)[:, :, 0])
    # Fewer frames are another shape, whose sums of 768 products a library may add in another order: by that some CPUs
    # differ by 1.2e-6 (MKL's AVX2 kernels on one thread), ten units in the last place of a latent of size 1.
    torch.testing.assert_close(CODEC.encode(video[:, :, :5]), CODEC.encode(video)[:, :, :2], atol=1e-5, rtol=1e-5)


def test_a_smooth_face_like_picture_survives() -> None:
    y, x = torch.meshgrid(torch.linspace(-2, 2, 96), torch.linspace(-2, 2, 96), indexing="ij")
    blob = torch.exp(-(x**2 + y**2))
    video = torch.stack([blob, 0.6 * blob, 0.3 * blob])[None, :, None].expand(1, 3, 9, 96, 96) * 1.6 - 0.8
    error = (CODEC.decode(CODEC.encode(video)) - video).square().mean()
    assert -10 * torch.log10(error / 4) > 35


@pytest.mark.parametrize("shape", [(1, 3, 32, 16, 16), (1, 3, 5, 20, 16), (3, 5, 16, 16)])
def test_shapes_without_latents_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(EchoForgeError, match="the codec takes"):
        CODEC.encode(torch.zeros(shape))
