"""Review tables: the latest word of each person counts, a spreadsheet round trip loses nothing."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import reviews
from configs.dataset_schema import NEGATIVES
from configs.errors import EchoForgeError
from curation.review import tables


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {
            "negative_id": f"n{i}",
            "sample_id": f"s{i}",
            "task": "i2v",
            "prompt": "a person, talking",
            "seed": i,
            "flags": [{"issue": "blur", "severity": 0.99, "reason": "blur 0.9 > 0.5"}] if i % 2 else [],
        }
        for i in range(4)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=NEGATIVES), tmp_path / "samples.parquet")
    return tmp_path


def _review(negative: str, verdict: str, reviewer: str = "ann", issue: str | None = None) -> dict[str, object]:
    return {"negative_id": negative, "verdict": verdict, "reviewer": reviewer, "issue": issue}


def test_the_latest_row_of_a_person_counts_also_of_one_import(folder: Path) -> None:
    tables.add(folder, [_review("n0", "negative", issue="hands"), _review("n1", "negative"), _review("n2", "fine")])
    tables.add(folder, [_review("n0", "fine"), _review("n2", "fine"), _review("n2", "negative")])
    counted = reviews.judgements(tables.samples(folder), reviews.read(folder), accept_flags=False)
    assert [counted[f"n{i}"].verdict for i in range(4)] == ["fine", "negative", "negative", None]


def test_spreadsheet_round_trip(folder: Path, tmp_path: Path) -> None:
    csv = tmp_path / "out.csv"
    assert tables.to_csv(folder, csv) == 4
    sheet = pd.read_csv(csv, dtype=str)
    sheet.loc[1, ["verdict", "issue", "frame_start", "frame_end"]] = ["negative", "lip_sync", "3", "20"]
    sheet.to_csv(csv, index=False)
    assert tables.from_csv(folder, csv, reviewer="ann") == 1
    assert tables.from_csv(folder, csv, reviewer="ann") == 0, "importing twice changes nothing"
    [row] = reviews.read(folder).to_pylist()
    assert (row["negative_id"], row["issue"], row["frame_start"], row["frame_end"]) == ("n1", "lip_sync", 3, 20)


@pytest.mark.parametrize(
    "row",
    [_review("n9", "fine"), _review("n1", "bad"), _review("n1", "negative", issue="colour"), {"negative_id": "n1"}],
)
def test_bad_rows_are_refused_whole(folder: Path, row: dict[str, object]) -> None:
    with pytest.raises(EchoForgeError):
        tables.add(folder, [_review("n0", "fine"), row])
    assert reviews.read(folder).num_rows == 0
