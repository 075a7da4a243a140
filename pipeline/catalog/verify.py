"""Is a catalog as it was written? Every digest of its tables and of its ledger, read from the first byte to the last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from configs import folders
from configs.errors import EchoForgeError
from configs.runtime import stopping
from pipeline import storage
from pipeline.catalog import generation, tables
from pipeline.catalog.generation import AGAIN, FILE, NAMES, REPORT_FILE, RUN_FILE
from pipeline.engine import damage, seal


@dataclass(frozen=True)
class Verification:
    """What was found wrong: one sentence each, with the remedy. ``notes`` are no faults."""

    catalog: str
    files: int
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.wrong

    def __str__(self) -> str:
        state = "as they were written" if self.ok else f"{len(self.wrong)} of them damaged"
        return "\n".join([f"{self.catalog}: {self.files} files looked at, {state}", *self.wrong, *self.notes])


def verify(catalog_dir: str) -> Verification:
    """Compare every file of the tables, ``run.json``, the report and the ledger with its digest.

    Raises:
        EchoForgeError: there is no catalog.
    """
    looked = [0]
    wrong: list[str] = []
    notes: list[str] = []
    if not storage.exists(storage.join(catalog_dir, FILE)) and not any(
        storage.exists(storage.join(catalog_dir, name)) for name in (*NAMES, folders.LEDGER)
    ):
        raise EchoForgeError(f"'{catalog_dir}' holds no catalog: {folders.found(catalog_dir, 'catalog')}.")
    wrong += _tables(catalog_dir, looked, notes)
    for problem in damage.damages(storage.join(catalog_dir, folders.LEDGER, "curate"), looked):
        wrong.append(f"{problem}; the next `curate` sets it aside and computes again what is lost.")
    return Verification(catalog_dir, looked[0], wrong, notes)


def _tables(out: str, looked: list[int], notes: list[str]) -> Iterator[str]:
    """One sentence for every damaged file of the tables; ``looked`` counts files, ``notes`` gets what is no fault."""
    try:
        now = generation.current(out)
        files = generation.files(out, now)
        looked[0] += now is not None
        tables.check(out)
    except EchoForgeError as error:
        yield str(error)
        return
    for name in NAMES:
        if not files[name] and (now is not None or any(files.values())):
            yield f"'{storage.join(out, name)}' holds no table; {AGAIN}."
        for file in files[name]:
            stopping.check()
            looked[0] += 1
            try:
                generation.check_whole(file)
            except EchoForgeError as error:
                yield str(error)
    if now is None:
        if any(files.values()):
            notes.append(
                "the tables are of an older version, without digests: `catalog redecide` writes them with some."
            )
        try:
            tables.saved(out)
        except EchoForgeError as error:
            yield str(error)
        return
    again = f"`catalog report {out}` writes it again"
    copies = ((RUN_FILE, seal.digest(now.run.text())), (REPORT_FILE, now.report))
    for name, wanted in copies:
        url = storage.join(out, name)
        looked[0] += 1
        if wanted is not None and seal.digest_of(url) != wanted:
            yield f"'{url}' is not that of the tables; {again}."
