"""Review tables: adding rows, the exchange with spreadsheets, statistics.

``NEGATIVES_DIR/samples.parquet`` holds what was gathered; ``NEGATIVES_DIR/reviews/*.parquet`` holds what people said,
in parts that are only ever added. What the rows add up to is the rule of `configs.reviews`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from configs import reviews
from configs.dataset_schema import NEGATIVES, REVIEWS
from configs.errors import EchoForgeError
from configs.folders import check_out_file
from configs.runtime import disk
from curation import spreadsheet

EDITABLE = ["negative_id", "verdict", "issue", "frame_start", "frame_end", "reviewer", "note"]
COUNTED = ["counts_as", "counted_issue", "counted_frames"]
"""What all reviews of the sample add up to (`configs.reviews`); null as long as nobody has reviewed it."""
LONGEST = {"reviewer": 100, "note": 4000}
"""Characters of a new review: a name, and a page of text. Whatever is longer came here by mistake."""
CONTEXT = [*COUNTED, "sample_id", "task", "prompt", "seed", "flagged", "why", "video_path"]


def samples(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """The gathered samples; ``columns`` of them, where not all are needed.

    Raises:
        EchoForgeError: nothing was gathered here, or the table cannot be read.
    """
    path = folder / "samples.parquet"
    if not path.is_file():
        raise EchoForgeError(f"no gathered samples at {path}; run `negatives gather` or let `train` reach its stage.")
    try:
        table = pq.read_table(path, schema=NEGATIVES, columns=columns)
        table.validate(full=True)  # text that is no UTF-8
    except (pa.ArrowException, OSError) as error:
        raise EchoForgeError(f"{path} cannot be read ({error}); run `negatives gather` again.") from error
    return table


def videos(folder: Path) -> set[str]:
    """The places of the samples' videos, as their table names them."""
    return set(samples(folder, ["video_path"]).column("video_path").to_pylist()) - {None}


def add(folder: Path, rows: Any) -> int:
    """Append review rows as one new part (atomic); returns how many. They are stamped with this machine's time.

    Args:
        rows: of mappings with the columns of `dataset_schema.REVIEWS` but ``time``; other keys are not looked at. May be
            anything that JSON holds. Space around text means nothing.

    Raises:
        EchoForgeError: no list of rows, an unknown verdict, issue or negative, text that is too long, an empty frame
            interval; nothing is written then.
    """
    if not isinstance(rows, list):
        raise EchoForgeError("reviews come as a list of rows.")
    known = set(samples(folder, ["negative_id"]).column("negative_id").to_pylist())
    now = datetime.now(UTC)
    # A microsecond between rows: of two rows of one reviewer for one sample the later in the file counts.
    complete = [_review(row, number, known, now + timedelta(microseconds=number)) for number, row in enumerate(rows, 1)]
    if not complete:
        return 0
    target = folder / reviews.FOLDER / f"{now:%Y%m%dT%H%M%S}-{time.time_ns() % 10**9:09d}-{os.getpid()}.parquet"
    with disk.replacing(target) as part:
        pq.write_table(pa.Table.from_pylist([vars(review) for review in complete], schema=REVIEWS), part)
    return len(complete)


def _review(row: Any, number: int, known: set[str], time: datetime) -> reviews.Review:
    """One row of :func:`add`, checked; empty text is none."""
    if not isinstance(row, Mapping):
        raise EchoForgeError(f"review row {number} is no row of named columns.")
    where = f"review row {number} ({reviews.short(row.get('negative_id'))})"
    review = reviews.checked(where, time=time, **{name: _text(row.get(name)) for name in EDITABLE})
    _check_lengths(review.reviewer, review.note, where)
    if review.negative_id not in known:
        raise EchoForgeError(f"{where}: no such sample was gathered here.")
    return review


def _check_lengths(reviewer: str | None, note: str | None, where: str) -> None:
    for name, text in (("reviewer", reviewer), ("note", note)):
        if len(text or "") > (most := LONGEST[name]):
            raise EchoForgeError(f"{where}: the {name} has more than {most} characters.")


def _text(value: Any) -> Any:
    return (value.strip() or None) if isinstance(value, str) else value


def to_csv(folder: Path, target: Path) -> int:
    """Write a table for a spreadsheet: the editable columns, what the sample counts as, then context. Returns lines.

    One line per gathered sample and person who reviewed it, one for a sample that nobody reviewed.
    """
    gathered = samples(folder)
    check_out_file(target, (".csv",))
    table = pd.DataFrame(gathered.drop_columns(["thumbnail"]).to_pylist())
    table["flagged"] = [bool(flags) for flags in table["flags"]]
    table["why"] = ["; ".join(f["reason"] or f["issue"] for f in flags or []) for flags in table["flags"]]
    said = reviews.read(folder)
    judged = reviews.judgements(gathered, said, accept_flags=False)
    table["counts_as"] = [judged[name].verdict for name in table["negative_id"]]
    table["counted_issue"] = [judged[name].issue for name in table["negative_id"]]
    table["counted_frames"] = [judged[name].span for name in table["negative_id"]]
    votes = pd.DataFrame([vars(vote) for vote in reviews.latest(said)], columns=EDITABLE)
    merged = table.merge(votes, on="negative_id", how="left")
    with disk.replacing(target) as part:
        spreadsheet.write(merged[EDITABLE + CONTEXT], part)
    return len(merged)


def from_csv(folder: Path, source: Path, reviewer: str | None = None) -> int:
    """Add the reviews of a CSV made by :func:`to_csv` and edited; lines without a verdict are left out.

    Lines that say what is already on record add nothing, so importing twice changes nothing.

    Raises:
        EchoForgeError: a line that cannot be understood (nothing is written then), or no reviewer named.
    """
    if not source.is_file():
        raise EchoForgeError(
            f"{source} {'is not a file' if source.exists() else 'does not exist'}; give an edited CSV."
        )
    records = list(spreadsheet.rows(source.read_bytes(), str(source)))
    if missing := [c for c in ("negative_id", "verdict") if c not in (records[0] if records else {})]:
        raise EchoForgeError(f"{source} has no column '{missing[0]}' or no line; start from `negatives export`.")
    on_record = {
        (r.negative_id, _text(r.reviewer)): _said([getattr(r, name) for name in _SAYS])
        for r in reviews.latest(reviews.read(folder))
    }
    rows = []
    for line, record in enumerate(records, 2):
        if not (record["verdict"] or "").strip():
            continue
        row: dict[str, Any] = {name: _text(spreadsheet.plain(record.get(name) or "")) for name in EDITABLE}
        row["reviewer"] = row["reviewer"] or reviewer
        if not row["reviewer"]:
            raise EchoForgeError(f"{source} line {line} names no reviewer; fill the column or give --reviewer NAME.")
        for name in ("frame_start", "frame_end"):
            row[name] = _frame(row[name], source, line)
        if on_record.get((row["negative_id"], row["reviewer"])) != _said([row.get(name) for name in _SAYS]):
            rows.append(row)
    try:
        return add(folder, rows)
    except EchoForgeError as error:
        raise EchoForgeError(f"nothing of {source} was imported: {error}") from error


def merge(folder: Path, others: Iterable[Path]) -> int:
    """Copy the review parts of other copies of the same negatives folder; parts already here are left alone.

    Raises:
        EchoForgeError: one of them is no such folder, has a part that is not taken (`reviews.read_part`; text that is too
            long), or reviews samples that were not gathered here. Parts before that one are here then.
    """
    others = list(others)
    for other in others:
        if not (other / "samples.parquet").is_file() and not (other / "reviews").is_dir():
            raise EchoForgeError(f"{other} is not a folder of negatives; give RUN/negatives/STAGE of another copy.")
    copied = 0
    known = set(samples(folder).column("negative_id").to_pylist())
    for other in others:
        for part in sorted((other / reviews.FOLDER).glob("*.parquet")):
            target = folder / reviews.FOLDER / part.name
            if target.exists():
                continue
            table = reviews.read_part(part)
            if foreign := set(table.column("negative_id").to_pylist()) - known:
                raise EchoForgeError(
                    f"{part} reviews '{reviews.short(min(foreign))}', which was not gathered in {folder}."
                )
            for number, row in enumerate(table.to_pylist(), 1):
                _check_lengths(row["reviewer"], row["note"], f"{part} row {number}")
            with disk.replacing(target) as part_file:
                pq.write_table(table, part_file)
            copied += table.num_rows
    return copied


def statistics(folder: Path) -> pd.DataFrame:
    """Per issue, and for any: samples flagged by a measure, samples that count as negative by review, share flagged."""
    gathered = samples(folder)
    flags = gathered.column("flags").to_pylist()
    judged = reviews.judgements(gathered, reviews.read(folder), accept_flags=False).values()
    flagged = pd.Series([f["issue"] for found in flags for f in found or []], dtype=str)
    negative = pd.Series([j.issue for j in judged if j.verdict == "negative"], dtype=str)
    by_issue = pd.DataFrame({"flagged": flagged.value_counts()}).join(
        negative.value_counts().rename("reviewed_negative"), how="outer"
    )
    total = pd.DataFrame(
        {"flagged": [sum(bool(found) for found in flags)], "reviewed_negative": [len(negative)]}, index=["any"]
    )
    result = pd.concat([by_issue, total]).fillna(0).astype(int)
    result["share_of_samples"] = result["flagged"] / max(gathered.num_rows, 1)
    return result


_SAYS = ("verdict", "issue", "frame_start", "frame_end", "note")


def _said(values: Iterable[object]) -> tuple[str | None, ...]:
    """What a review says (:data:`_SAYS`), whoever and whenever, as text that can be compared."""
    return tuple(_text(value) for value in values)


def _frame(text: str | None, source: Path, line: int) -> int | None:
    if text is None:
        return None
    try:
        if (number := float(text)).is_integer():
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise EchoForgeError(f"{source} line {line}: '{reviews.short(text)}' is not a frame number.")
