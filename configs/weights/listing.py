"""`weights list` and `weights check` as text that fits a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from configs.weights import registry
from configs.weights.places import Need, folder

_BAD = ("missing", "size differs", "digest differs", "not named")
_NAME, _SIZE = 29, 11  # columns of a line
_LICENCE = 19


def size(count: int | None, derived: bool = False) -> str:
    """``507.6 MB``; with ``~`` where it is derived, ``unknown`` where it is not known."""
    if count is None:
        return "unknown"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{'~' if derived else ''}{count / scale:,.{2 if unit == 'GB' else 1}f} {unit}"
    return f"{count} B"


def is_bad(state: str) -> bool:
    """Must something be done about a file in this state?"""
    return state in _BAD


def render(preset: str, needs: Sequence[Need], width: int) -> str:
    """The files that a configuration uses: name, size, licence, state; purpose and key; place below the folder."""
    lines = [
        f"Pretrained files of '{preset}', in {folder().absolute()}",
        "(another folder: export ECHOFORGE_WEIGHTS=FOLDER)",
        "",
        f"{'file':<{_NAME}}{'size':>{_SIZE}}  {'licence':<{_LICENCE}}here",
    ]
    for need in needs:
        known = need.known
        name = known.name if known else "(yours)"
        bytes_ = (known.bytes or known.derived_bytes) if known else None
        derived = known is not None and known.bytes is None
        licence = known.licence if known else ""
        lines.append(f"{name:<{_NAME}}{size(bytes_, derived):>{_SIZE}}  {licence:<{_LICENCE}}{need.state}")
        lines += _folded(f"{need.purpose} ({need.key})", " ", width)
        lines += _folded(known.path if known else str(need.configured or ""), "/", width)
    lines += ["", *_totals(needs)]
    used = {need.known.name for need in needs if need.known}
    others = [file.name for file in registry.REGISTRY if file.name not in used]
    if others:
        lines += ["", "Not used by this configuration, but known to `weights fetch`:"]
        lines += _folded(", ".join(others), " ", width)
    return "\n".join(lines)


def urls(needs: Sequence[Need]) -> str:
    """One line per file, for another machine's downloader: address, tab, path below the weights folder."""
    return "\n".join(f"{need.known.address}\t{need.known.path}" for need in needs if need.known)


def checked(need: Need, state: str) -> str:
    """One line of `weights check`, with the command that mends what is wrong."""
    name = need.known.name if need.known else need.key
    remedy = f"weights fetch {name}" if need.known else f"set {need.key} to the path of yours"
    return f"{name:<{_NAME}}{state:<16}{remedy}" if is_bad(state) else f"{name:<{_NAME}}{state}"


def _totals(needs: Sequence[Need]) -> list[str]:
    """What all of it weighs, and what is to come."""
    known = [need.known for need in needs if need.known]
    lacking = [need.known for need in needs if need.known and need.state == "missing"]
    words = []
    for files in (known, lacking):
        sizes = [file.bytes or file.derived_bytes or 0 for file in files]
        text = size(sum(sizes), any(file.bytes is None for file in files))
        words.append(text + (" and those of unknown size" if 0 in sizes else ""))
    head = f"{'total':<{_NAME}}{words[0]:>{_SIZE}}  in {len(known)} files"
    return [f"{head}; missing: {words[1]} in {len(lacking)}" if lacking else f"{head}; all are here"]


def _folded(text: str, at: str, width: int) -> list[str]:
    """``text`` indented by two, broken after ``at`` where it is wider than the terminal."""
    lines, rest, indent = [], text, "  "
    while len(indent + rest) > width and at in rest[: width - len(indent)]:
        cut = rest.rindex(at, 0, width - len(indent)) + 1
        lines.append((indent + rest[:cut]).rstrip())
        rest, indent = rest[cut:], "    " if at == "/" else "  "
    return [*lines, indent + rest]
