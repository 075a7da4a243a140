"""Encoders: captions, reference image and sound → rows for the transformer, each behind one interface.

`tiny` kinds are stand-ins without weights, so that everything runs offline; they say so in their names.
"""

from __future__ import annotations

from model.encoders.audio import load_audio_encoder
from model.encoders.base import AudioEncoder, AudioSlice, ImageEncoder, TextEncoder
from model.encoders.image import load_image_encoder
from model.encoders.text import load_text_encoder, pad_text

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
