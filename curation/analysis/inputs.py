"""Which configuration keys are measured with and which decide. Light: loads no operator."""

from __future__ import annotations

from typing import Any

from configs import strict
from curation.config import CurationConfig

DECIDING = ("decide", "dedup", "sync.required")
"""What the decision reads. Keys of these that no operator reads (:func:`operators_of`) change nothing but verdicts."""


def inputs(cfg: CurationConfig) -> dict[str, tuple[str, dict[str, Any]]]:
    """Operator → the section that it reads, and the keys of it that its result depends on, with their values."""
    sections = ("video", "shots", "clips", "faces", "sync", "text", "quality", "sound", "captions", "aesthetic")
    whole = {name: strict.to_dict(getattr(cfg, name)) for name in (*sections, "dedup")}
    if not cfg.aesthetic.enabled:
        whole["aesthetic"] = {"enabled": False}  # switched off, nothing else of it matters
    found = {name: (name, whole[name]) for name in sections}
    detail = ("detail_rate", "face_side")
    found["detail"] = "quality", {k: whole["quality"][k] for k in detail}
    found["quality"] = "quality", {k: v for k, v in whole["quality"].items() if k not in detail}
    found["sync"] = "sync", {k: v for k, v in whole["sync"].items() if k not in ("required", "fit")}
    found["dedup"] = "dedup", {k: whole["dedup"][k] for k in ("rate", "side")}  # the rest decides, from the hashes
    return found


def operators_of(key: str, cfg: CurationConfig) -> list[str]:
    """The operators that must run again when the configuration key ``key`` (dotted) or a part of it changes."""
    section, _, inside = key.partition(".")
    name = inside.partition(".")[0]
    return [
        operator
        for operator, (reads, values) in inputs(cfg).items()
        if reads == section and (not name or name in values)
    ]


def decides(key: str, cfg: CurationConfig) -> bool:
    """Does ``key`` (dotted) change verdicts and nothing that is measured?"""
    return any(f"{key}.".startswith(f"{part}.") for part in DECIDING) and not operators_of(key, cfg)
