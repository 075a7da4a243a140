"""Catalogs whose media moved: other names for the same files, so that nothing is analysed again.

Names are rewritten in the tables and in the ledger (:mod:`pipeline.catalog.moved`); the ids of units stay, and the next
`curate` finds them again (:mod:`pipeline.catalog.adopt`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from configs.errors import EchoForgeError
from configs.paths import absolute
from pipeline import storage
from pipeline.catalog import tables, writer
from pipeline.catalog.moved import names_of, records_of, rename_ledger, renamed, size_of
from pipeline.engine import lease
from pipeline.engine.damage import mend

_SHOWN = 3  # examples in a message


@dataclass(frozen=True)
class Relocation:
    """What `relocate` did: sources renamed, and those left as they were, each with the reason."""

    catalog: str
    old: str
    new: str
    sources: int
    clips: int
    left: list[str] = field(default_factory=list)
    note: str = ""  # what else is to be said

    def __str__(self) -> str:
        lines = [f"{self.catalog}: {self.sources} sources ({self.clips} clips) moved from {self.old} to {self.new}"]
        if self.left:
            lines.append(f"{len(self.left)} sources keep their old name:")
            lines += [f"  {reason}" for reason in self.left[:20]]
            if len(self.left) > 20:
                lines.append(f"  … and {len(self.left) - 20} more")
        if self.note:
            lines.append(self.note)
        return "\n".join(lines)


def relocate(catalog_dir: str, old: str, new: str) -> Relocation:
    """Name the sources below ``old`` as they are called below ``new``; an interrupted run is continued by the same one.

    A source whose new file is missing or has another size keeps its old name and is listed.

    Raises:
        EchoForgeError: no catalog, none of its sources lies below ``old``, or no new file fits.
    """
    with lease.locked(catalog_dir, "catalog", "catalog relocate", make=False):
        return _relocate(catalog_dir, old, new)


def _relocate(catalog_dir: str, old: str, new: str) -> Relocation:
    """:func:`relocate` with the catalog locked."""
    command = f"relocate {catalog_dir} {old} {new}"
    tables.check(catalog_dir, restart=command)
    notes: list[str] = []
    mend(storage.join(catalog_dir, "ledger", "curate"), {}, notes.append)
    tables.saved(catalog_dir)  # the new tables keep these facts: damage is said before anything is renamed
    sizes = _sources(catalog_dir)
    if not sizes:
        raise EchoForgeError(f"'{catalog_dir}' holds no catalog (videos/*.parquet); make one with `curate`.")
    target = absolute(new).rstrip("/") or "/"
    moves = {uri: _below(target, rest) for uri in sizes if (rest := _rest(uri, old)) is not None}
    moves = {uri: there for uri, there in moves.items() if there != uri}
    if not moves:
        examples = ", ".join(f"'{uri}'" for uri in sorted(sizes)[:_SHOWN])
        raise EchoForgeError(
            f"no source of '{catalog_dir}' lies below '{old}'; its {len(sizes)} sources are, for example, {examples}."
        )
    seen: dict[str, str] = {}
    left: list[str] = []
    for uri, there in sorted(moves.items()):
        try:
            entry = storage.entry(there)
        except OSError:
            left.append(f"{uri}: there is no {there}")
            continue
        if sizes[uri] and entry.size != sizes[uri]:
            left.append(f"{uri}: {there} has {entry.size} bytes, not {sizes[uri]}")
            continue
        seen[there] = f"{entry.size}:{entry.tag}"
    if not seen:
        raise EchoForgeError(
            f"none of the {len(moves)} sources of '{catalog_dir}' below '{old}' is below '{new}'; the first: {left[0]}."
        )
    moves = {uri: there for uri, there in sorted(moves.items()) if there in seen}
    rename_ledger(catalog_dir, moves, seen)
    clips = _rename_tables(catalog_dir, moves, command)
    return Relocation(catalog_dir, old, target, len(moves), clips, sorted(left), "\n".join(notes))


def _rest(uri: str, old: str) -> str | None:
    """What follows ``old``, as typed or from the root on, in ``uri``; None: it does not lie there."""
    if old in (".", "./") and "://" not in uri and not Path(uri).is_absolute():
        return uri
    names = (uri,) if "://" in uri else dict.fromkeys((uri, os.path.normpath(uri)))  # `lists/../videos/a.mp4`
    for prefix in dict.fromkeys((old.rstrip("/"), os.path.normpath(old), absolute(old).rstrip("/"))):
        for name in names:
            if name == prefix:
                return ""
            if name.startswith(prefix + "/"):
                return name[len(prefix) + 1 :]
    return None


def _below(target: str, rest: str) -> str:
    return absolute(f"{target.rstrip('/')}/{rest}") if rest else target


def _sources(catalog_dir: str) -> dict[str, int]:
    """Every source that the tables or the ledger name → its size in bytes; 0: not known.

    Tables that cannot be read are left out: the ledger names every source that `curate` looked at.
    """
    sizes: dict[str, int] = {}
    for record in records_of(catalog_dir):  # oldest first: the last version stays
        sizes[record.key] = size_of(record.fingerprint) or sizes.get(record.key, 0)
    try:
        named = names_of(catalog_dir)
    except EchoForgeError:
        if not sizes:
            raise
        return sizes
    return sizes | {uri: size or sizes.get(uri, 0) for uri, size in named.items()}


def _rename_tables(catalog_dir: str, moves: Mapping[str, str], command: str) -> int:
    """Rewrite ``source_uri`` in the tables; returns how many clips have another name.

    A source that was curated under its new name as well, or under several old ones, keeps one of these sets of rows:
    they are the same.

    Args:
        command: how this one is named where an older version was interrupted in it.

    Raises:
        EchoForgeError: a file of the tables cannot be read.
    """
    names = names_of(catalog_dir)
    taken, double = names.keys() - moves.keys(), set()
    for uri, there in moves.items():
        if uri in names:
            if there in taken:
                double.add(uri)
            taken.add(there)
    count = 0

    def rename(name: str, table: pa.Table) -> pa.Table | None:
        nonlocal count
        uris = table["source_uri"].to_pylist()
        if not any(uri in moves for uri in uris):
            return None
        table = table.filter(pa.array([uri not in double for uri in uris]))
        at = table.schema.get_field_index("source_uri")
        count += sum(uri in moves for uri in table["source_uri"].to_pylist()) if name == "clips" else 0
        return table.set_column(at, table.schema.field(at), renamed(table["source_uri"], moves))

    writer.renamed(catalog_dir, rename, command)
    return count
