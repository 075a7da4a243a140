"""Review tables: parts that are only ever added, and what they add up to.

``NEGATIVES_DIR/samples.parquet`` holds what was gathered; ``NEGATIVES_DIR/reviews/*.parquet`` holds what people said.
The latest row per (negative, reviewer) wins, so undo is a row, and two people never overwrite each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from configs.dataset_schema import ISSUES, NEGATIVES, REVIEWS, VERDICTS
from configs.errors import EchoForgeError

EDITABLE = ["negative_id", "verdict", "issue", "frame_start", "frame_end", "reviewer", "note"]
CONTEXT = ["sample_id", "task", "prompt", "seed", "flagged", "why", "video_path"]


def samples(folder: Path) -> pa.Table:
    """The gathered samples.

    Raises:
        EchoForgeError: nothing was gathered here.
    """
    path = folder / "samples.parquet"
    if not path.is_file():
        raise EchoForgeError(f"no gathered samples at {path}; run `negatives gather` or let `train` reach its stage.")
    return pq.read_table(path, schema=NEGATIVES)


def reviews(folder: Path) -> pa.Table:
    """All review rows, in order of time; an empty table when nobody has reviewed."""
    parts = sorted((folder / "reviews").glob("*.parquet"))
    if not parts:
        return REVIEWS.empty_table()
    table = pa.concat_tables([pq.read_table(part, schema=REVIEWS) for part in parts])
    return table.sort_by("time")


def effective(table: pa.Table) -> pd.DataFrame:
    """One row per (negative, reviewer): the latest."""
    frame = table.to_pandas()
    return frame.sort_values("time", kind="stable").drop_duplicates(["negative_id", "reviewer"], keep="last")


def verdicts(gathered: pa.Table, table: pa.Table, accept_flags: bool) -> pd.DataFrame:
    """One row per gathered sample with what it counts as: columns negative_id, verdict, issue, frames, votes.

    People's majority decides (a tie counts as ``fine``: nothing is pushed away on a doubt). Without a review a
    flagged sample counts as ``negative`` only when ``accept_flags``; otherwise its verdict is null (undecided).
    """
    votes = effective(table)
    votes = votes[votes["verdict"] != "skip"]
    rows: list[tuple[Any, ...]] = []
    by_negative = dict(list(votes.groupby("negative_id"))) if len(votes) else {}
    for row in gathered.select(["negative_id", "flags"]).to_pylist():
        mine = by_negative.get(row["negative_id"])
        if mine is not None:
            against = mine[mine["verdict"] == "negative"]
            negative = 2 * len(against) > len(mine)
            issue = against["issue"].mode().iat[0] if negative and against["issue"].notna().any() else None
            start = _bound(against["frame_start"], min) if negative else None
            end = _bound(against["frame_end"], max) if negative else None
            rows.append((row["negative_id"], "negative" if negative else "fine", issue, start, end, len(mine)))
        elif row["flags"] and accept_flags:
            rows.append((row["negative_id"], "negative", row["flags"][0]["issue"], None, None, 0))
        else:
            rows.append((row["negative_id"], "fine" if accept_flags else None, None, None, None, 0))
    return pd.DataFrame(
        rows, columns=["negative_id", "verdict", "issue", "frame_start", "frame_end", "votes"], dtype=object
    )


def add(folder: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Append review rows as one new part (atomic); returns how many.

    Raises:
        EchoForgeError: an unknown verdict, issue or negative, or an empty frame interval; nothing is written then.
    """
    known = set(samples(folder).column("negative_id").to_pylist())
    now = datetime.now(UTC)
    complete = []
    for number, row in enumerate(rows, 1):
        _check(row, known, number)
        complete.append({name: row.get(name) for name in REVIEWS.names} | {"time": row.get("time") or now})
    if not complete:
        return 0
    target = folder / "reviews" / f"{now:%Y%m%dT%H%M%S}-{time.time_ns() % 10**9:09d}-{os.getpid()}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(complete, schema=REVIEWS), part)
    part.replace(target)
    return len(complete)


def to_csv(folder: Path, target: Path) -> int:
    """Write one line per gathered sample for a spreadsheet: editable columns first, then context. Returns lines."""
    gathered = samples(folder)
    table = pd.DataFrame(gathered.drop_columns(["thumbnail"]).to_pylist())
    table["flagged"] = [len(flags) > 0 for flags in table["flags"]]
    table["why"] = ["; ".join(f["reason"] for f in flags) for flags in table["flags"]]
    latest = effective(reviews(folder))
    columns = [c for c in EDITABLE if c != "negative_id"]
    merged = table.merge(latest[["negative_id", *columns]], on="negative_id", how="left")
    merged[EDITABLE + CONTEXT].to_csv(target, index=False)
    return len(merged)


def from_csv(folder: Path, source: Path, reviewer: str | None = None) -> int:
    """Add the reviews of a CSV made by :func:`to_csv` and edited; lines without a verdict are left out.

    Lines that say what is already on record add nothing, so importing twice changes nothing.

    Raises:
        EchoForgeError: a line that cannot be understood (nothing is written then), or no reviewer named.
    """
    table = pd.read_csv(source, dtype=str, keep_default_na=False)
    if missing := [c for c in ("negative_id", "verdict") if c not in table.columns]:
        raise EchoForgeError(f"{source} has no column '{missing[0]}'; start from `negatives export`.")
    on_record = {
        (r["negative_id"], r["reviewer"]): _key({str(k): v for k, v in r.items()})
        for r in effective(reviews(folder)).to_dict("records")
    }
    rows = []
    for line, record in enumerate(table.to_dict("records"), 2):
        if not record["verdict"].strip():
            continue
        row = {name: (record.get(name) or "").strip() or None for name in EDITABLE}
        row["reviewer"] = row["reviewer"] or reviewer
        if not row["reviewer"]:
            raise EchoForgeError(f"{source} line {line} names no reviewer; fill the column or give --reviewer NAME.")
        for name in ("frame_start", "frame_end"):
            row[name] = _frame(row[name], source, line)
        if on_record.get((row["negative_id"], row["reviewer"])) != _key(row):
            rows.append(row)
    return add(folder, rows)


def merge(folder: Path, others: Iterable[Path]) -> int:
    """Copy the review parts of other copies of the same negatives folder; parts already here are left alone."""
    copied = 0
    known = set(samples(folder).column("negative_id").to_pylist())
    for other in others:
        for part in sorted((other / "reviews").glob("*.parquet")):
            target = folder / "reviews" / part.name
            table = pq.read_table(part, schema=REVIEWS)
            if target.exists():
                continue
            if foreign := set(table.column("negative_id").to_pylist()) - known:
                raise EchoForgeError(f"{part} reviews '{min(foreign)}', which was not gathered in {folder}.")
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_suffix(".tmp")
            pq.write_table(table, temporary)
            temporary.replace(target)
            copied += table.num_rows
    return copied


def statistics(folder: Path) -> pd.DataFrame:
    """Per issue: flagged by measure, called negative, called fine, reviewers' agreement."""
    gathered, table = samples(folder), effective(reviews(folder))
    flagged = pd.Series([f["issue"] for flags in gathered.column("flags").to_pylist() for f in flags], dtype=str)
    by_issue = pd.DataFrame({"flagged": flagged.value_counts()})
    by_issue = by_issue.join(
        table[table["verdict"] == "negative"].groupby("issue").size().rename("reviewed_negative"), how="outer"
    )
    total = pd.DataFrame(
        {
            "flagged": [sum(len(f) > 0 for f in gathered.column("flags").to_pylist())],
            "reviewed_negative": [table[table["verdict"] == "negative"]["negative_id"].nunique()],
        },
        index=["any"],
    )
    result = pd.concat([by_issue, total]).fillna(0).astype(int)
    result["share_of_samples"] = result["flagged"] / max(gathered.num_rows, 1)
    return result


def _check(row: Mapping[str, Any], known: set[str], number: int) -> None:
    where = f"review row {number} ({row.get('negative_id')})"
    if row.get("negative_id") not in known:
        raise EchoForgeError(f"{where}: no such sample was gathered here.")
    if row.get("verdict") not in VERDICTS:
        raise EchoForgeError(f"{where}: verdict '{row.get('verdict')}' is not one of {', '.join(VERDICTS)}.")
    if row.get("issue") is not None and row["issue"] not in ISSUES:
        raise EchoForgeError(f"{where}: issue '{row['issue']}' is not one of {', '.join(ISSUES)}.")
    start, end = row.get("frame_start"), row.get("frame_end")
    if start is not None and end is not None and not 0 <= start < end:
        raise EchoForgeError(f"{where}: frames [{start}, {end}) are empty.")
    if not row.get("reviewer"):
        raise EchoForgeError(f"{where}: no reviewer.")


def _bound(values: pd.Series, choose: Any) -> int | None:
    known = [int(v) for v in values if not pd.isna(v)]
    return choose(known) if len(known) == len(values) and known else None  # one vote without an interval = all frames


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    def plain(value: Any) -> Any:
        return None if value is None or (not isinstance(value, str) and pd.isna(value)) else value

    return tuple(plain(row.get(name)) for name in ("verdict", "issue", "frame_start", "frame_end", "note"))


def _frame(text: str | None, source: Path, line: int) -> int | None:
    if text is None:
        return None
    try:
        return int(float(text))
    except ValueError:
        raise EchoForgeError(f"{source} line {line}: '{text}' is not a frame number.") from None
