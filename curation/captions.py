"""What describes a clip: the kinds of captions, the plain template, and which of several sources wins.

``kind`` is ``overall`` or a part of the field's schema (hands, posture, face …); ``source`` says who wrote a caption
(``sidecar:name``, ``manifest``, ``vlm:model``, ``template``), so nothing made up passes for something observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from curation.clip import Caption, Clip
from curation.config import CaptionsConfig

PARTS = ("hands", "posture", "face", "eyes", "head", "coverage", "clothing", "background", "overall")
"""What the field's captions say of a talking person; ``overall`` is the one that trains by default."""


def caption(text: str, source: str, kind: str = "overall") -> Caption:
    """A caption on one line."""
    return Caption(" ".join(text.split()), kind, source)


def captioned(clip: Clip, written: Sequence[Caption], cfg: CaptionsConfig) -> Clip:
    """The clip with the captions that people wrote of its video, else the model's, else the template's, else none."""
    captions = tuple(written) or clip.captions or ((template(clip),) if cfg.kind == "template" else ())
    return replace(clip, captions=captions)


def retold(clip: Clip, cfg: CaptionsConfig) -> Clip:
    """The clip with its caption written anew where the template wrote it: that one says what was measured."""
    if [said.source for said in clip.captions or ()] != ["template"]:
        return clip
    return captioned(replace(clip, captions=None), (), cfg)


def template(clip: Clip) -> Caption:
    """Says only what was measured: one person, how much of the picture the face fills, whether it speaks."""
    faces = len(clip.tracks)
    size = (clip.face_px or 0) / max(1, min(clip.width or 1, clip.height or 1))
    who = "A person" if faces == 1 else f"{faces} people" if faces else "A scene without a visible face"
    frame = "in close-up" if size > 0.45 else "from the chest up" if size > 0.2 else "at a distance"
    speaks = (clip.number("speech_frac") or 0) > 0.2
    text = f"{who} {frame}, {'talking' if speaks else 'not talking'}." if faces else f"{who}."
    return caption(text, "template")
