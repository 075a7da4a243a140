"""The ids under which planned units were done before their files were renamed (`pipeline.catalog.moved`).

A planned unit gets its old id when name, size and time are those that `relocate` saw, and everything else that the id
depends on (sidecars, the manifest's columns) is the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from configs.errors import EchoForgeError
from pipeline.catalog.located import find, places_of
from pipeline.catalog.moved import MOVED, ledgers_of, moved_of, names_of, records_of, rename_ledger
from pipeline.engine.unit import Unit


def adopt(out: str, units: list[Unit], ids: Callable[[Unit, str, str], Iterable[str]]) -> list[Unit]:
    """``units`` with the ids under which their work was done before their files were renamed.

    Relative names and names with ``..``, which earlier versions stored, are first replaced in the ledger by those of
    the planned files (`_adopt_relative`).

    Args:
        out: the catalog.
        ids: (planned unit, earlier name, earlier ``size:time``) → the ids that it could have had there.
    """
    _adopt_relative(out, units)
    moved = moved_of(out)
    if not moved.num_rows:
        return units
    known: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for unit, uri, fingerprint, key, seen in zip(*(moved[name].to_pylist() for name in MOVED.names), strict=True):
        known.setdefault((key, seen), []).append((unit, uri, fingerprint))
    done = {unit for ledger in ledgers_of(out) for unit in ledger.done()}

    def adopted(unit: Unit) -> Unit:
        if unit.id in done:
            return unit
        for before, uri, fingerprint in known.get((unit.key, unit.fingerprint), ()):
            if before in ids(unit, uri, fingerprint):
                return replace(unit, id=before)
        return unit

    return [adopted(unit) for unit in units]


def _adopt_relative(out: str, units: list[Unit]) -> None:
    """Replace relative names and names with ``..`` in the ledger by the names of planned files.

    The planned file is the one with the same end of its name, size and time; else the one that `found` would take.
    That one may have changed since. Then it is analysed again, and its earlier rows are no longer shown.
    """
    unclear = {uri for uri in _sources_named(out) if "://" not in uri and not _plain(uri)}
    if not unclear:
        return
    planned = {unit.key: unit.fingerprint for unit in units}
    alike: dict[str, list[str]] = {}
    for uri, mark in planned.items():
        alike.setdefault(mark, []).append(uri)
    marks: dict[str, list[str]] = {}
    for record in records_of(out):
        if record.key in unclear:
            marks.setdefault(record.key, []).append(record.fingerprint)
    places = places_of(out)
    moves: dict[str, str] = {}
    seen: dict[str, str] = {}
    for key, known in marks.items():
        end = "/" + re.sub(r"^(\.\./)+", "", os.path.normpath(key))
        fits = {uri for mark in known for uri in alike.get(mark, ()) if uri.endswith(end)} if key[:1] != "/" else set()
        there = fits.pop() if len(fits) == 1 else find(key, places)
        if there in planned:
            moves[key] = there
            if planned[there] in known:
                seen[there] = planned[there]
            else:  # changed since: no planned file has this mark, so that nothing of it is adopted
                seen.setdefault(there, known[-1])
    if moves:
        rename_ledger(out, moves, seen)


def _plain(uri: str) -> bool:
    return uri[:1] == "/" and uri == os.path.normpath(uri)


def _sources_named(out: str) -> set[str]:
    """The names in the videos table; of a catalog without tables, or with damaged ones, those in the ledger."""
    try:
        named = set(names_of(out))
    except EchoForgeError:
        named = set()
    return named or {record.key for record in records_of(out)}
