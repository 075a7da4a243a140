"""The keys of the configuration that name a pretrained file, and what null means there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Switch = str | bool
"""Value of a key that decides whether a file is used."""


@dataclass(frozen=True)
class Key:
    """A configuration key that names a pretrained file.

    Attributes:
        what: it, in words, for messages.
        switch: the keys that decide whether the file is used; none: it is used when the key is not null.
        default: values of ``switch`` with which it is used → name of the file that null stands for ("": of none).
    """

    key: str
    what: str
    switch: tuple[str, ...] = ()
    default: Mapping[tuple[Switch, ...], str] | None = None

    def stands_for(self, switch: tuple[Switch, ...]) -> str | None:
        """The name of the file that null stands for with these values of the switch; None: no file is used."""
        return (self.default or {}).get(switch)


KEYS: dict[str, Key] = {
    key.key: key
    for key in (
        Key("faces.weights", "the face detector", ("faces.detector",), {("yunet",): "yunet", ("s3fd",): "s3fd"}),
        Key("sync.weights", "SyncNet v2", ("sync.backend",), {("syncnet_v2",): "syncnet-v2"}),
        Key("sync.fitted", "the fitted SyncNet", ("sync.backend",), {("fitted",): ""}),
        Key("aesthetic.clip", "CLIP of the aesthetic score", ("aesthetic.enabled",), {(True,): "clip-vit-l14"}),
        Key("aesthetic.head", "the head of the aesthetic score", ("aesthetic.enabled",), {(True,): "aesthetic-head"}),
        Key("captions.model", "the captioning model", ("captions.kind",), {("vlm",): ""}),
        Key("codec.path", "the Wan VAE", ("codec.kind",), {("wan",): "wan-vae"}),
        Key("text_encoder.path", "the umT5 encoder", ("text_encoder.kind",), {("umt5",): "umt5-xxl"}),
        Key("text_encoder.tokenizer", "the umT5 tokenizer", ("text_encoder.kind",), {("umt5",): "umt5-tokenizer"}),
        Key("image_encoder.path", "the CLIP image encoder", ("image_encoder.kind",), {("clip",): "clip-vit-h14"}),
        Key(
            "audio_encoder.path",
            "the audio encoder",
            ("audio_encoder.kind", "audio_encoder.variant"),
            {
                ("whisper", "whisper"): "whisper-tiny",
                ("wav2vec2", "preview"): "wav2vec2-base-960h",
                ("wav2vec2", "flash"): "chinese-wav2vec2-base",
                # listed where somebody combines them all the same
                ("wav2vec2", "whisper"): "",
                ("whisper", "preview"): "",
                ("whisper", "flash"): "",
            },
        ),
        Key("checkpoint.init", "the weights to start from"),
    )
}
"""By key: every one that names a pretrained file."""
