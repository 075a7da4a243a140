"""The ledger: a part file is the proof that its units are done, and a unit counts once."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.engine.ledger import Ledger
from pipeline.engine.rows import tables
from pipeline.engine.unit import Failure, Finished, Result, Unit, unit_id

TABLES = {"a": pa.schema([("n", pa.int64()), ("tags", pa.list_(pa.string()))]), "b": pa.schema([("x", pa.float32())])}


def ledger(folder: Path, version: str = "1") -> Ledger:
    made = Ledger(str(folder), TABLES, {"op": version})
    made.prepare()
    return made


def finished(n: int) -> Finished:
    rows = {"a": [{"n": n, "tags": ["t"] * (n % 3)}], "b": [{"x": 0.5}] * (n % 2)}
    return Finished(Unit(unit_id(n), None, key=f"k{n}", fingerprint="f"), Result(tables(rows, TABLES), amount=2.0), 0.1)


def rows(where: Ledger, table: str = "a", **more: object) -> list[int]:
    return sorted(n for t in where.read(table, **more) for n in t["n"].to_pylist())  # type: ignore[arg-type]


def test_parts_are_the_record_and_other_parameters_are_another_record(tmp_path: Path) -> None:
    where = ledger(tmp_path)
    where.commit([finished(0)], "v")
    where.commit([finished(1), finished(2)], "v")
    assert where.done() == {unit_id(n) for n in range(3)}
    assert where.committed([unit_id(2), unit_id(1)]) and not where.committed([unit_id(1)])
    assert rows(where) == [0, 1, 2] and rows(where, wanted={unit_id(1)}) == [1]
    assert rows(where, columns=["n"]) == [0, 1, 2]
    record = next(r for r in where.records().to_pylist() if r["unit"] == unit_id(1))
    assert (record["rows"], record["amount"], record["code"], record["fingerprint"]) == (2, 2.0, "v", "f")
    changed = ledger(tmp_path, "2")
    assert changed.done() == set() and changed.changed_parameters(where.parameters) == ["op"]
    assert ledger(tmp_path).done() == where.done(), "switching back finds what was done"


def test_a_unit_in_two_parts_counts_once(tmp_path: Path) -> None:
    where = ledger(tmp_path)
    where.commit([finished(0), finished(1)], "v")
    where.commit([finished(1)], "v")
    assert rows(where) == [0, 1]
    assert len(where.records()) == 2


def test_merging_keeps_every_unit_even_when_it_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ledger(tmp_path)
    for n in range(30):
        where.commit([finished(n)], "v")
    monkeypatch.setattr("pipeline.engine.ledger.storage.remove", lambda url: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        where.merge(fewer_than=10)
    monkeypatch.undo()
    assert rows(where) == list(range(30)) and len(where.done()) == 30
    where.merge(fewer_than=10)
    assert len(list(Path(where.parts).iterdir())) == 1
    assert rows(where) == list(range(30)) and len(where.done()) == 30


def test_rows_that_the_schema_does_not_know_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    where = ledger(tmp_path)
    for wrong in ({"a": pa.table({"m": [1]})}, {"c": pa.table({})}):
        with pytest.raises(KeyError):
            where.commit([Finished(Unit("u", None), Result(wrong), 0.0)], "v")
    assert where.done() == set()


def test_quarantine_is_a_readable_file(tmp_path: Path) -> None:
    where = ledger(tmp_path)
    where.quarantine(Failure("u1", 'a "name"\n', "f", "it hung.", "detail", 2, 0.0))
    (file,) = (Path(where.home) / "quarantine").iterdir()
    assert json.loads(file.read_text())["cause"] == "it hung."
    assert where.quarantined()["u1"].key == 'a "name"\n'
    where.release("u1")
    assert where.quarantined() == {}


def test_parts_of_an_older_version_lack_columns_and_are_read_and_merged(tmp_path: Path) -> None:
    now = ledger(tmp_path)
    old = Ledger(str(tmp_path), {"a": pa.schema([("n", pa.int64())]), "b": TABLES["b"]}, {"op": "1"})
    for n in range(4):
        item = finished(n)
        old.commit([Finished(item.unit, Result({"a": pa.table({"n": [n]})}), 0.1)], "v")
    now.commit([finished(4)], "v")
    for _ in range(2):
        assert rows(now) == [0, 1, 2, 3, 4]
        tags = [tags for part in now.read("a", columns=["tags"]) for tags in part["tags"].to_pylist()]
        assert [tag for tag in tags if tag is not None] == [["t"]] and len(tags) == 5
        now.merge(fewer_than=1)
