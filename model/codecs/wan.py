"""The Wan2.1 VAE through diffusers, from the original ``Wan2.1_VAE.pth`` or a diffusers folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.errors import EchoForgeError
from configs.weights import locate
from model import layouts
from model.checkpoint import load_weights
from model.codecs.base import Codec
from model.encoders.files import digest


class WanCodec(Codec):
    """Posterior mean, normalised by the published statistics; decoding undoes both and clamps to −1..1."""

    name = "Wan2.1 VAE"

    def __init__(self, vae: Any, digest: str, device: torch.device | str) -> None:
        self.vae, self.digest, self.device = vae.to(device).eval(), digest, device
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean, device=device).view(shape)
        self._std = torch.tensor(vae.config.latents_std, device=device).view(shape)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """See :meth:`Codec.encode`."""
        self.check(video)
        mean = self.vae.encode(video.to(self.device, self.vae.dtype)).latent_dist.mode().float()
        return (mean - self._mean) / self._std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See :meth:`Codec.decode`."""
        return self.decode_unclamped(latents).clamp(-1, 1)

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """The decoder's own output, latent frame by latent frame with its causal cache."""
        vae = self.vae
        z = (latents.to(self.device).float() * self._std + self._mean).to(vae.dtype)
        vae.clear_cache()
        x = vae.post_quant_conv(z)
        frames = []
        for i in range(x.shape[2]):
            vae._conv_idx = [0]
            first = {"first_chunk": True} if i == 0 else {}
            frames.append(vae.decoder(x[:, :, i : i + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, **first))
        vae.clear_cache()
        return torch.cat(frames, dim=2).float()


def load_wan(path: str | None, device: torch.device | str, dtype: torch.dtype) -> WanCodec:
    """Load the VAE.

    Raises:
        MissingWeights: nothing at ``path``.
        EchoForgeError: the file is not a Wan2.1 VAE.
    """
    from diffusers import AutoencoderKLWan

    where = locate("codec.path", path, "wan")
    if where.is_dir():
        try:
            vae: Any = AutoencoderKLWan.from_pretrained(where, torch_dtype=dtype)
        except (OSError, ValueError) as error:
            raise EchoForgeError(f"{where} is not a diffusers folder of a Wan VAE ({error}).") from error
    else:
        vae = torch.nn.Module.to(from_original(load_weights(where), str(where)), dtype)  # diffusers' own `to` warns
    return WanCodec(vae, digest(Path(where)), device)


def from_original(state: Mapping[str, Tensor], source: str) -> Any:
    """A diffusers VAE with the weights of an original state dict; its width is read off the first convolution.

    Raises:
        EchoForgeError: names or shapes of another network.
    """
    from diffusers import AutoencoderKLWan

    named = layouts.vae(state)
    if "encoder.conv_in.weight" not in named:
        raise EchoForgeError(f"{source} is not a Wan2.1 VAE: it has no encoder.conv1.")
    vae: Any = AutoencoderKLWan(base_dim=named["encoder.conv_in.weight"].shape[0])
    layouts.require(list(vae.state_dict()), named, source)
    try:
        vae.load_state_dict(named)
    except RuntimeError as error:
        raise EchoForgeError(f"{source} is not a Wan2.1 VAE: {str(error).splitlines()[-1].strip()}") from error
    return vae
