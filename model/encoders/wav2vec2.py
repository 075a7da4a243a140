"""wav2vec2 through transformers: the features of the released checkpoints.

`preview`: the last hidden state, 50 a second (one token fewer than two a frame for exact cuts; padded here).
`flash`: all hidden states of a 25 Hz sequence: the convolutional features are interpolated to one per video frame
before the transformer. The released script cuts the sound to the video first; here the whole sound is heard, the same in
sharding and in generation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from configs.errors import EchoForgeError, MissingWeights
from configs.weights import locate
from model.audio_variants import AUDIO_VARIANTS
from model.config import AudioEncoderConfig
from model.encoders.base import FRAME_SAMPLES, SAMPLE_RATE, AudioEncoder, as_sound
from model.encoders.files import check_complete, digest, joined

_EPS = 1e-7  # of transformers' Wav2Vec2FeatureExtractor
_OFF_SCALE = 100.0  # LUFS in magnitude beyond which a reading means silence (released)


class Wav2Vec2Encoder(AudioEncoder):
    """Whole sounds → [2·frames, dim] (`preview`) or [frames, layers, dim] (`flash`)."""

    name = "wav2vec2"

    def __init__(
        self, network: Any, variant: str, loudness: float | None, digest: str, device: torch.device | str
    ) -> None:
        self.network, self.variant = network.to(device).eval(), variant
        self.digest = joined(digest, variant, loudness)
        self.tokens_per_frame = AUDIO_VARIANTS[variant].rows_per_frame
        self._loudness, self._device = loudness, device

    @torch.no_grad()
    def encode(self, pcm: NDArray[np.float32] | Tensor) -> Tensor:
        """See :meth:`AudioEncoder.encode`."""
        sound = as_sound(pcm, "cpu")
        frames = len(sound) // FRAME_SAMPLES
        if self._loudness is not None:
            sound = _to_loudness(sound, self._loudness)
        sound = (sound - sound.mean()) / (sound.var(unbiased=False) + _EPS).sqrt()
        x = sound[None].to(self._device, next(self.network.parameters()).dtype)
        if self.variant == "preview":
            tokens = self.network(x).last_hidden_state[0].float()
            return F.pad(tokens, (0, 0, 0, max(0, 2 * frames - len(tokens))))[: 2 * frames]
        heard = self.network.feature_extractor(x)
        even = F.interpolate(heard, size=frames, mode="linear", align_corners=True).transpose(1, 2)
        hidden, _ = self.network.feature_projection(even)
        return torch.stack([s[0] for s in self._layers(hidden)], dim=1).float()

    def _layers(self, hidden: Tensor) -> list[Tensor]:
        """Outputs [B, frames, dim] of every transformer layer: what `hidden_states[1:]` of the whole model would be."""
        states: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        hooks = [layer.register_forward_hook(keep) for layer in self.network.encoder.layers]
        try:
            self.network.encoder(hidden)
        finally:
            for hook in hooks:
                hook.remove()
        return states


def load_wav2vec2(cfg: AudioEncoderConfig, device: torch.device | str, dtype: torch.dtype) -> Wav2Vec2Encoder:
    """Load from a transformers folder (or the file in it).

    Raises:
        MissingWeights: nothing there.
        EchoForgeError: not a wav2vec2 folder, or features of another width than configured.
    """
    from transformers import Wav2Vec2Model

    where = locate("audio_encoder.path", cfg.path, "wav2vec2", cfg.variant)
    folder = where.parent if where.is_file() else where
    if not (folder / "config.json").is_file():
        raise MissingWeights(
            f"{folder.absolute()} lacks wav2vec2's config.json; put the one of the same release beside the weights "
            "(`weights fetch wav2vec2-base-960h`, or chinese-wav2vec2-base, gets both)."
        )
    library: Any = Wav2Vec2Model
    try:
        network, found = library.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise EchoForgeError(
            f"{folder} is not a transformers folder of a wav2vec2 ({str(error).splitlines()[0]})."
        ) from error
    missing = set(found["missing_keys"]) - {"masked_spec_embed"}  # only training masks; wav2vec2-base-960h lacks it
    check_complete(folder, missing, found["mismatched_keys"])
    if network.config.hidden_size != cfg.dim:
        raise EchoForgeError(
            f"{folder} gives features of {network.config.hidden_size}, audio_encoder.dim is {cfg.dim}."
        )
    return Wav2Vec2Encoder(network, cfg.variant, cfg.loudness, digest(Path(folder)), device)


def _to_loudness(sound: Tensor, target: float) -> Tensor:
    """The sound at ``target`` LUFS (ITU-R BS.1770, pyloudnorm); silence and sounds too short to measure stay."""
    import pyloudnorm

    data = sound.double().numpy()
    try:
        measured = pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(data)
    except ValueError:
        return sound  # shorter than one measuring block
    if not np.isfinite(measured) or abs(measured) > _OFF_SCALE:
        return sound
    return torch.from_numpy(data * 10 ** ((target - measured) / 20)).float()
