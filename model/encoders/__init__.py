"""Encoders: captions, reference image and sound → rows for the transformer, each behind one interface.

`tiny` kinds are stand-ins without weights, so that everything runs offline; they say so in their names.
"""

from __future__ import annotations

from model.encoders.audio import AudioEncoder, AudioSlice, load_audio_encoder
from model.encoders.image import ImageEncoder, load_image_encoder
from model.encoders.text import TextEncoder, load_text_encoder, pad_text

__all__ = [
    "AudioEncoder",
    "AudioSlice",
    "ImageEncoder",
    "TextEncoder",
    "load_audio_encoder",
    "load_image_encoder",
    "load_text_encoder",
    "pad_text",
]
