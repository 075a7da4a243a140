"""`dataset.json`: who made a dataset, with what, from which catalogs. Readers take it in this form only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.dataset_files import Damaged
from configs.dataset_schema import DATASET_FILE


@dataclass(frozen=True)
class EncoderName:
    """A network that made tensors; the name of a stand-in says so."""

    name: str
    digest: str


@dataclass(frozen=True)
class MadeWith:
    """What decides the bytes of a dataset: with other values nothing can be added to it."""

    preset: str
    values: Mapping[str, Mapping[str, Any]]  # plain, by section


@dataclass(frozen=True)
class Curation:
    """What the card says of the catalogs that a dataset comes from."""

    verdicts: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # label → clips, hours
    origins: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # video id → source, licence


@dataclass(frozen=True)
class Description:
    """What `dataset.json` says and a later command reads again; None where an earlier version did not say it.

    ``others``: everything else in the file, which is kept when the file is written again.
    """

    encoders: Mapping[str, EncoderName] | None = None
    made_with: MadeWith | None = None
    parameters: Mapping[str, str] | None = None
    settings: Mapping[str, Mapping[str, Any]] | None = None  # plain, by section
    curation: Curation | None = None
    plans: tuple[str, ...] | None = None
    parts: tuple[str, ...] | None = None
    left_out: tuple[str, ...] | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes, dataset: str) -> Description:
        """The content of `dataset.json`.

        Raises:
            Damaged: not JSON, or an entry has another form.
        """
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Damaged(dataset, DATASET_FILE, f"it is not JSON ({error})") from error
        if not isinstance(found, dict):
            raise Damaged(dataset, DATASET_FILE, "it is not a mapping")
        known: dict[str, Any] = {}
        for key, form in _FORM.items():
            if (value := found.get(key)) is not None:
                if not _fits(value, form):
                    raise Damaged(dataset, DATASET_FILE, f"its entry '{key}' has another form than `shard` writes")
                known[key] = _TYPES.get(key, tuple)(value)
        return cls(**known, others={key: value for key, value in found.items() if key not in _FORM})

    def to_json(self, **others: object) -> str:
        """The file's text, with ``others`` in it too (dataclasses as mappings without what is None)."""
        known = {key: value for key, value in _known(self).items() if key != "others"}
        whole = {**self.others, **known, **others}
        return json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False, default=_known)


def _known(item: object) -> dict[str, Any]:
    return {key: value for key, value in vars(item).items() if value is not None}


def _encoders(found: Mapping[str, Mapping[str, str]]) -> dict[str, EncoderName]:
    return {kind: EncoderName(item["name"], item["digest"]) for kind, item in found.items()}


_TYPES: dict[str, Any] = {
    "encoders": _encoders,
    "made_with": lambda found: MadeWith(found["preset"], found["values"]),
    "parameters": dict,
    "settings": dict,
    "curation": lambda found: Curation(
        {label: tuple(counts) for label, counts in found["verdicts"].items()},
        {video: tuple(names) for video, names in found["origins"].items()},
    ),
}
"""How an entry becomes its field; lists become tuples."""


_FORM: dict[str, Any] = {
    "encoders": {str: {"name": str, "digest": str}},
    "made_with": {"preset": str, "values": {str: dict}},
    "parameters": {str: str},
    "settings": {str: dict},
    "curation": {"verdicts": {str: (float, float)}, "origins": {str: (str, str)}},
    "plans": [str],
    "parts": [str],
    "left_out": [str],
}
"""The entries of `dataset.json` that are read again, and their form; any may be missing or null."""


def _fits(value: Any, form: Any) -> bool:
    """Whether JSON has a form: a type; ``[form of each]``; ``(a form for each,)``; ``{str: form of each}``;
    ``{key: its form, …}``."""
    if isinstance(form, tuple):
        return isinstance(value, list) and len(value) == len(form) and all(map(_fits, value, form))
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(item, form[0]) for item in value)
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return False
        if each := form.get(str):
            return all(_fits(item, each) for item in value.values())
        return all(key in value and _fits(value[key], part) for key, part in form.items())
    return isinstance(value, (int, float)) and not isinstance(value, bool) if form is float else isinstance(value, form)
