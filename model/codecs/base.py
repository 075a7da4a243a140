"""What every codec offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from configs.errors import EchoForgeError


class Codec(ABC):
    """Pixels ↔ latents, causal in time: F = 4k+1 video frames ↔ T = 1+k latent frames; the first stands alone.

    Attributes:
        name: for people; a stand-in says so.
        digest: 16 hex of what decides the numbers (weights or constants); recorded with every dataset.
        latent_channels: 16.
        temporal, spatial: strides, 4 and 8.
    """

    name: str
    digest: str
    latent_channels: int = 16
    temporal: int = 4
    spatial: int = 8

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, F, H, W] in −1..1, F = 4k+1, H and W multiples of 8 → [B, 16, 1+k, H/8, W/8] float32, normalised.

        The posterior mean: the same pixels always give the same latents.

        Raises:
            EchoForgeError: another shape.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """[B, 16, T, h, w] → [B, 3, 4(T−1)+1, 8h, 8w] float32, clamped to −1..1."""

    def check(self, video: Tensor) -> None:
        """Refuse a video whose shape has no latents."""
        if video.dim() != 5 or video.shape[1] != 3:
            raise EchoForgeError(f"the codec takes video [B, 3, F, H, W], got {list(video.shape)}.")
        frames, height, width = video.shape[2:]
        if frames % self.temporal != 1 or height % self.spatial or width % self.spatial:
            raise EchoForgeError(
                f"the codec takes {self.temporal}k+1 frames and sides that are multiples of {self.spatial}, "
                f"got {frames} frames of {width}x{height}; cut or resize first."
            )
