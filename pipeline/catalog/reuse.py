"""Rows of an earlier run that a changed configuration can still use: which, and where they are.

Every set of parameters has its own ledger (`pipeline/engine/ledger.py`). When a unit is missing in the present one, the
ledger beside it that has the unit and needs the fewest operators run again lends its rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import parquet, storage
from pipeline.engine.ledger import Ledger, ledgers, read_parameters
from pipeline.engine.unit import Unit

Outdated = Callable[[Mapping[str, str], Mapping[str, str]], frozenset[str] | None]


@dataclass(frozen=True)
class Earlier:
    """Where the rows of a unit are, and the operators that must run again to bring them up to date."""

    part: str
    run: frozenset[str]


def find(ledger: Ledger, units: Iterable[Unit], outdated: Outdated) -> dict[str, Earlier]:
    """What other ledgers of the same stage hold of ``units``, by unit.

    Args:
        outdated: (parameters before, now) → operators to run again, or None: nothing of the earlier rows is of use.
    """
    missing = {unit.id for unit in units}
    lenders: list[tuple[frozenset[str], Ledger]] = []
    for other in ledgers(ledger.root, ledger.tables):
        run = outdated(other.parameters, ledger.parameters) if other.home != ledger.home else None
        if run is not None:
            lenders.append((run, other))
    found: dict[str, Earlier] = {}
    for run, lender in sorted(lenders, key=lambda item: len(item[0])):
        if not missing:
            break
        for unit, part in lender.where().items():
            if unit in missing:
                found[unit] = Earlier(part, run)
                missing.discard(unit)
    return found


def tables(unit: str, part: str, names: Iterable[str]) -> dict[str, pa.Table] | None:
    """The rows of one unit in a part file, by table; None when the file or the unit is gone, or cannot be read now."""
    try:
        group, at = _place(part).get(unit, (-1, -1))
        if group < 0:
            return None
        with parquet.opened(part) as file:
            one = file.read_row_group(group, columns=list(names)).slice(at, 1)
    except (OSError, pa.ArrowException):
        return None
    return {name: pa.Table.from_struct_array(pc.list_flatten(one[name].combine_chunks())) for name in names}


@lru_cache(maxsize=64)
def _place(part: str) -> dict[str, tuple[int, int]]:
    """Unit → row group and row in it."""
    with parquet.opened(part) as file:
        groups = [file.read_row_group(g, columns=["unit"])["unit"] for g in range(file.num_row_groups)]
    return {unit: (g, i) for g, units in enumerate(groups) for i, unit in enumerate(units.to_pylist())}


def latest(root: str) -> dict[str, str] | None:
    """The parameters of the last run of a stage.

    Raises:
        Damaged: the file that says it is.
    """
    return read_parameters(storage.join(root, "latest.json"), "the next `curate` sets it aside and writes it again")


def changes(ledger: Ledger) -> list[str]:
    """Operators whose parameters differ from those of the last run; the present ones are noted for the next."""
    before = latest(ledger.root)
    changed = ledger.changed_parameters(before) if before is not None else []
    if before is None or changed:
        storage.write_bytes(storage.join(ledger.root, "latest.json"), json.dumps(dict(ledger.parameters)).encode())
    return changed


def sentences(units: Iterable[Unit], earlier: Mapping[str, Earlier], operators: Iterable[str], noun: str) -> list[str]:
    """What a run is about to compute again, for people, and why the rest is not."""
    names, lines = sorted(operators), []
    for run, count in Counter(item.run for item in earlier.values()).most_common():
        kept = ", ".join(name for name in names if name not in run)
        if run:
            lines.append(f"{count} {noun}: computed again: {', '.join(sorted(run))}; kept as it is: {kept}.")
        else:
            lines.append(f"{count} {noun}: nothing is computed again.")
    if whole := sum(unit.id not in earlier for unit in units):
        lines.append(f"{whole} {noun}: analysed whole.")
    return lines
