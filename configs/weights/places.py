"""Which pretrained files a configuration needs, and where they lie; nothing is downloaded here but by name from the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import EchoForgeError, MissingWeights
from configs.strict import Section
from configs.weights import registry
from configs.weights.keys import KEYS, Switch
from configs.weights.registry import WeightFile


@dataclass(frozen=True)
class Need:
    """A file that a configuration uses: ``key`` names it with ``configured``; ``known`` is our entry for it, if any."""

    key: str
    configured: str | None
    switch: tuple[Switch, ...]  # values of the key's switch
    known: WeightFile | None
    path: Path | None  # None: in the hub's own cache, or nowhere yet

    @property
    def purpose(self) -> str:
        """What it is for."""
        return self.known.what if self.known else KEYS[self.key].what

    @property
    def state(self) -> str:
        """Where it stands, without reading it: 'present' | 'missing' | 'size differs' | 'hub' | 'not named'."""
        if self.path is None:
            return "hub" if self.configured else "not named"
        if not self.path.exists():
            return "missing"
        known = self.known
        differs = known and known.bytes and self.path.is_file() and self.path.stat().st_size != known.bytes
        return "size differs" if differs else "present"


def folder() -> Path:
    """The weights folder: ``$ECHOFORGE_WEIGHTS``, else ``weights`` in the current directory."""
    return Path(os.environ.get("ECHOFORGE_WEIGHTS", "weights"))


def resolve(configured: str) -> Path:
    """``weights:NAME/…`` → a path below :func:`folder`; anything else is a path as it stands."""
    prefix, sep, rest = configured.partition("weights:")
    return folder() / rest if sep and not prefix else Path(configured)


def needs(sections: Mapping[str, Section]) -> list[Need]:
    """The files that sections of a configuration use (by their names), in the order of `keys.KEYS`."""

    def value(dotted: str) -> Any:
        section, _, name = dotted.partition(".")
        return getattr(sections[section], name)

    found: list[Need] = []
    for key in KEYS.values():
        if key.key.partition(".")[0] not in sections:
            continue
        configured, switch = value(key.key), tuple(value(part) for part in key.switch)
        name = key.stands_for(switch) if key.default is not None else None if configured is None else ""
        if name is not None:
            found += _needed(key.key, configured or (_default(name) if name else None), switch)
    return found


def _default(name: str) -> str:
    """The value of a key that names a file of the registry."""
    return f"weights:{registry.by_name()[name].path}"


def _needed(key: str, configured: str | None, switch: tuple[Switch, ...]) -> list[Need]:
    """One need, or one for each known file of a folder and for each file that its loader reads beside it."""
    if configured is None or configured.startswith("hub:"):
        return [Need(key, configured, switch, None, None)]
    path, rest = resolve(configured), configured.removeprefix("weights:")
    if rest == configured:  # the user's own
        return [Need(key, configured, switch, None, path)]
    files = registry.with_beside(file for file in registry.REGISTRY if file.path == rest)
    if not files:
        files = [file for file in registry.REGISTRY if file.path.startswith(rest.rstrip("/") + "/")]
    known = [Need(key, configured, switch, file, folder() / file.path) for file in files]
    return known or [Need(key, configured, switch, None, path)]


def locate(key: str, configured: str | None, *switch: Switch) -> Path:
    """The local file or folder that a configuration value names.

    Args:
        key: of :data:`KEYS`.
        configured: its value: a local path, ``weights:PATH`` for one below the weights folder, ``hub:ORG/NAME`` for a
            whole repository of the hub, ``hub:ORG/NAME/FILE`` for one file of it (downloaded into the hub's own
            cache), or null.
        switch: the values of the key's switch, which say what null stands for.

    Raises:
        MissingWeights: nothing configured, or nothing there; the sentence says which command gets it.
    """
    entry = KEYS[key]
    name = entry.stands_for(switch) or ""
    if not configured and not name:
        raise MissingWeights(f"{entry.what} is wanted, but {key} names no file; set it with --set {key}=PATH.")
    configured = configured or _default(name)
    if configured.startswith("hub:"):
        return _from_hub(f"{entry.what} ({key})", configured.removeprefix("hub:"))
    path = resolve(configured)
    if path.exists():
        return path
    known = next((need.known for need in _needed(key, configured, switch) if need.known), None)
    if known:
        remedy = f"get it with `weights fetch {known.name}`, or set {key} to the path of yours"
    elif name:
        place = f"set {key}={_default(name)} and get it with `weights fetch {name}`"
        remedy = f"correct the path, or {place}"
    else:
        remedy = f"correct the path in {key}"
    raise MissingWeights(f"{entry.what} ({key}) is not at {path.absolute()}; {remedy}.")


def require(sections: Mapping[str, Section]) -> None:
    """Look for all files of some sections at once, before the first one is loaded, which may take minutes.

    Raises:
        MissingWeights: some are not here; the sentence names all of them and the command that gets them.
    """
    lacking = [need for need in needs(sections) if need.path is not None and not need.path.exists()]
    known = list(dict.fromkeys(need.known.name for need in lacking if need.known))
    if len(lacking) > 1 and len(known) == len(lacking):
        places = ", ".join(need.known.path for need in lacking if need.known)
        raise MissingWeights(
            f"{len(lacking)} files are not in {folder().absolute()}: {places}; get them with "
            f"`weights fetch {' '.join(known)}`, or point their keys at yours (`weights list` names them)."
        )
    for need in lacking:
        locate(need.key, need.configured, *need.switch)


def _from_hub(what: str, name: str) -> Path:
    """A repository or a file of it, through huggingface_hub's cache."""
    from huggingface_hub import hf_hub_download, snapshot_download

    parts = name.split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise EchoForgeError(f"{what}: 'hub:{name}' is not of the form hub:ORG/NAME or hub:ORG/NAME/FILE.")
    repo = "/".join(parts[:2])
    try:
        return Path(hf_hub_download(repo, parts[2]) if len(parts) == 3 else snapshot_download(repo))
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise MissingWeights(
            f"{what} could not be had from the hub ({repo}: {reason}); download it by hand and configure its local path."
        ) from error
