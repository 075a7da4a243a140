"""What the code of a reason means in a few words, and what a person can do about it.

A reason in the tables is ``code: sentence`` with the clip's own numbers (`curation.decision.rules`). A summary counts codes, and
needs words without numbers. This is the one place for those words and for the remedies; nothing is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass

CATALOG = "{catalog}"
"""Stands for the catalog's folder in :attr:`Remedy.command`."""


@dataclass(frozen=True)
class Remedy:
    """A way to go on: what it does, the command without the program's name, and what to do after that command."""

    what: str
    command: tuple[str, ...] = ()  # none where it is the command that the person knows, such as `curate` again
    then: tuple[str, ...] = ()  # lines


@dataclass(frozen=True)
class Reason:
    """``words`` stand after a count; ``holds``: the clip waits, it is not rejected.

    ``setting`` is what `catalog redecide --set` takes to change the threshold; None where no threshold does.
    """

    words: str
    setting: str | None = None
    holds: bool = False
    remedies: tuple[Remedy, ...] = ()


def _threshold(words: str, key: str) -> Reason:
    return Reason(words, f"decide.{key}=NUMBER")


def _text(kind: str, words: str) -> Reason:
    return Reason(words, f"decide.text.{kind}=keep")


FIT_VIDEOS = 10
"""`sync.fit.min_sources` of the presets."""

SYNC_REMEDY = (
    "get SyncNet's weights (`weights fetch syncnet-v2`) and curate again, fit a backend on your own clips "
    "(`sync fit`), or set sync.required=false"
)
"""The same three ways in the sentence of a single clip."""

_SYNC_REMEDIES = (
    Remedy(
        "keep clips that have no sync score (decides again, decodes nothing)",
        ("catalog", "redecide", CATALOG, "--set", "sync.required=false"),
    ),
    Remedy(
        "score them with the weights of SyncNet",
        ("weights", "fetch", "syncnet-v2"),
        ("then the same `curate` with --set sync.backend=syncnet_v2",),
    ),
    Remedy(
        f"score them with a small SyncNet fitted on clips in sync ({FIT_VIDEOS} videos or more)",
        ("sync", "fit", CATALOG, "--out", "sync.safetensors"),
        ("then the same `curate` with --set sync.backend=fitted", "--set sync.fitted=sync.safetensors"),
    ),
)

_CURATE_AGAIN = Remedy("run the same `curate` again: it measures sync and repeats no other score")

REASONS: dict[str, Reason] = {
    # clips: the rules of `curation.decision.rules`
    "face_frac": _threshold("no face, or not in enough of the clip", "min_face_frac"),
    "face_count": _threshold("too many faces", "max_faces"),
    "face_size": _threshold("face of too few pixels", "min_face_px"),
    "face_share": _threshold("face too small a part of the picture", "min_face_share"),
    "speech": _threshold("no sound, or too little speech", "min_speech"),
    "silence": _threshold("too quiet", "min_lufs"),
    "clipping": _threshold("clipped sound", "max_clipped"),
    "voices": _threshold("a second voice, or music", "max_second_voice"),
    "text_area": _threshold("too much text in the picture", "max_text_area"),
    "sharpness": _threshold("blurred face", "min_sharpness"),
    "dark": _threshold("too dark", "min_exposure"),
    "bright": _threshold("too bright", "max_exposure"),
    "still": _threshold("too little motion", "min_motion"),
    "motion": _threshold("too much motion", "max_motion"),
    "shake": _threshold("shaking camera", "max_shake"),
    "frozen": _threshold("frozen or black for too long", "max_freeze"),
    "blocks": _threshold("blocks of strong compression", "max_blockiness"),
    "aesthetic": _threshold("low aesthetic score", "min_aesthetic"),
    "fps": _threshold("too few frames a second", "min_fps"),
    "resolution": _threshold("picture too small", "min_height"),
    "sync_conf": _threshold("low sync confidence", "sync_min_conf"),
    "sync_fit": _threshold("low sync confidence of the fitted SyncNet", "sync_min_fit_conf"),
    "sync_offset": _threshold("sound and lips too far apart to correct", "sync_max_offset"),
    "sync_residual": _threshold("out of sync after correction", "sync_max_residual"),
    "sync_unstable": Reason("too few frames left after correcting the sound"),
    "sync_unmeasured": Reason("sync after correction not measured", holds=True, remedies=(_CURATE_AGAIN,)),
    "sync_missing": Reason("no sync score", holds=True, remedies=_SYNC_REMEDIES),
    # clips: text by kind, and copies
    "subtitle": _text("subtitle", "a subtitle"),
    "ticker": _text("ticker", "a ticker"),
    "watermark": _text("watermark", "a watermark"),
    "logo": _text("logo", "a logo"),
    "scene": _text("scene", "text in the scene"),
    "duplicate": Reason("a copy of another clip"),
    # files that gave no clip
    "too_short": Reason("no stretch without a cut that is long enough"),
    "open": Reason("cannot be opened"),
    "probe": Reason("no usable picture in it"),
    "decode": Reason("damaged, or not decodable"),
    "crop": Reason("the crop does not lie in the picture"),
    "budget": Reason("took too long"),
    "captions": Reason("its captions cannot be read"),
    "manifest": Reason("its row in the manifest cannot be used"),
    "analyse": Reason("could not be analysed"),
    "quarantine": Reason("given up after a second try"),
}


def reason(code: str) -> Reason:
    """The entry of a code; one that a newer version wrote is its own words."""
    return REASONS.get(code) or Reason(code.replace("_", " "))
