"""What the code of a reason means in a few words, and what a person can do about it.

A reason in the tables is ``code: sentence`` with the clip's own numbers. A summary counts codes, and needs words without
numbers: those of a rule stand in its row (`curation.decision.rules`), all others and the remedies here.
"""

from __future__ import annotations

from dataclasses import dataclass

from curation.decision import rules

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


def _text(kind: str, words: str) -> Reason:
    return Reason(words, f"decide.text.{kind}=keep")


FIT_VIDEOS = 10
"""`sync.fit.min_sources` of the presets."""

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

REMEDIES = {"sync_unmeasured": (_CURATE_AGAIN,), "sync_missing": _SYNC_REMEDIES}
"""Of rules that hold a clip, by code."""

OTHERS: dict[str, Reason] = {
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


def all_reasons() -> dict[str, Reason]:
    """Every known code and its entry: those of the rules first, in their order."""
    return {rule.code: _of_rule(rule) for rule in rules.RULES} | OTHERS


def _of_rule(rule: rules.Rule) -> Reason:
    setting = f"decide.{rule.setting}=NUMBER" if rule.setting else None
    return Reason(rule.words, setting, rule.outcome == "hold", REMEDIES.get(rule.code, ()))


def reason(code: str) -> Reason:
    """The entry of a code; one that a newer version wrote is its own words."""
    return all_reasons().get(code) or Reason(code.replace("_", " "))
