"""What people said of gathered samples, and what their votes add up to. The page, the CSV, the demo and training ask here.

A review is one row of `dataset_schema.REVIEWS` in ``NEGATIVES_DIR/reviews/*.parquet``. Parts are only ever added.

The rule:

1. The latest row of each (negative, reviewer) is that person's vote; earlier ones are history, so undo is a row. Rows of
   the same time: `fine` wins over `skip`, `skip` over `negative`; rows that still differ are put in the order of their
   remaining columns. Which part a row is in, and whether it is there twice, changes nothing.
2. `skip` means "I cannot tell" and counts for neither side. When every vote is a skip, the sample is left out of
   training, flagged or not: somebody looked and did not confirm the flag.
3. More `negative` than `fine`: the sample is negative. A tie is `fine`: nothing is learnt from on a doubt.
4. The issue of a negative is the one that most of its negative votes name. A tie goes to the first of them in the order
   of `ISSUES` (so `other` loses); votes that name none are not counted, and when none is named it is `other`.
5. Its frames are those that at least one negative vote names: the union, which may be several ranges. A vote without a
   range means the whole clip, and then all frames count. A range with a start alone reaches to the clip's end, one with
   an end alone begins at frame 0. Ranges are half-open, in video frames.
6. Issue and frames of `fine` and `skip` votes mean nothing.
7. A sample without any vote is open. Where flags are accepted (`train` without ``--review``) an open sample with a flag
   is negative, whole, with the issue of its most severe flag (a tie: the first in the order of `ISSUES`), and one
   without is fine.
8. Reviews are stamped by the machine that records them. A part with a time more than :data:`AHEAD` ahead of this
   machine's clock is refused, because its votes would win over all that people say until then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from configs import members
from configs.dataset_schema import ISSUES, REVIEWS, VERDICTS
from configs.errors import EchoForgeError
from configs.runtime.shown import one_line

FOLDER = "reviews"
NEEDED = ("negative_id", "verdict", "reviewer", "time")
"""Columns that a part must have; the others are null where they are missing."""
AHEAD = timedelta(days=1)
"""Clocks of people's machines differ by less, also where one of them takes local time for UTC."""
# A part is one import or one click. The largest import is a table of all samples: thousands of rows of 100 bytes.
_MOST_BYTES, _MOST_ROWS = 64 << 20, 1_000_000


@dataclass(frozen=True)
class Review:
    """One row of `dataset_schema.REVIEWS`: what a person says of a sample. Frames are half-open; None: an open end."""

    negative_id: str
    verdict: str
    issue: str | None
    frame_start: int | None
    frame_end: int | None
    reviewer: str
    time: datetime | None  # None: not recorded yet
    note: str | None


Frames = tuple[tuple[int, int | None], ...]
"""Half-open ranges of video frames, in order and apart from each other; an end of None is the clip's end."""
_TIE = ("negative", "skip", "fine")  # of one person at the same time, the later one wins


@dataclass(frozen=True)
class Judgement:
    """What a gathered sample counts as."""

    verdict: str | None  # negative | fine | skip (everybody who looked skipped); None: open
    issue: str | None = None  # of a negative
    frames: Frames | None = None  # of a negative; None: all
    negative: int = 0  # votes
    fine: int = 0

    @property
    def span(self) -> str:
        """The frames of a negative for people: ``all``, or ``3-20 40-`` (half-open, an open end is the clip's)."""
        if self.verdict != "negative":
            return ""
        if self.frames is None:
            return "all"
        return " ".join(f"{start}-{'' if end is None else end}" for start, end in self.frames)

    def __str__(self) -> str:
        if self.verdict is None:
            return "open"
        if self.verdict == "skip":
            return "left out (skipped)"
        people = f" ({self.negative} negative, {self.fine} fine)" if self.negative + self.fine else ""
        if self.verdict == "fine":
            return f"fine{people}"
        frames = "" if self.frames is None else f", frames {self.span}"
        return f"negative: {self.issue}{frames}{people or ' (by its flag)'}"


def read(folder: Path) -> pa.Table:
    """All review rows of a negatives folder (schema `REVIEWS`); none when nobody has reviewed.

    Raises:
        EchoForgeError: a part that cannot be read, or a row that breaks the rules of :func:`checked`.
    """
    tables = [read_part(path) for path in sorted((folder / FOLDER).glob("*.parquet"))]
    return pa.concat_tables(tables) if tables else REVIEWS.empty_table()


def read_part(path: Path) -> pa.Table:
    """The rows of one part.

    Raises:
        EchoForgeError: as :func:`read`.
    """
    try:
        table = _part(path)
        rows = table.to_pylist()
    # ValueError, OverflowError: times that Python has no date for
    except (members.BadMember, pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise EchoForgeError(f"the reviews in {path} cannot be read ({error}); correct or remove the file.") from error
    latest = datetime.now(UTC) + AHEAD
    for number, row in enumerate(rows, 1):
        where = f"{path} row {number} ({short(row['negative_id'])})"
        review = checked(where, **row)
        if review.time is None:
            raise EchoForgeError(f"{where}: no time; correct or remove the file.")
        if review.time > latest:
            raise EchoForgeError(f"{where}: its time {review.time:%Y-%m-%d %H:%M} is yet to come; set this machine's "
                                 "clock, or correct or remove the file.")  # fmt: skip
    return table


def _part(path: Path) -> pa.Table:
    """The table of a part, with the columns of `REVIEWS`; links, pipes and devices are not followed."""
    data = pa.BufferReader(members.read(path.parent, path.name, most=_MOST_BYTES))
    metadata = pq.read_metadata(data)
    names = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    if missing := [name for name in NEEDED if name not in names]:
        raise EchoForgeError(f"the reviews in {path} have no column '{missing[0]}'; correct or remove the file.")
    sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
    table = None
    if metadata.num_rows <= _MOST_ROWS and sum(sizes) <= _MOST_BYTES:
        # As dictionaries: a long text in a million rows is a few bytes in the file, and its length in each row later.
        texts = [field.name for field in REVIEWS if field.name in names and pa.types.is_string(field.type)]
        table = pq.read_table(data, columns=[name for name in REVIEWS.names if name in names], read_dictionary=texts)
    if table is None or sum(map(_length, table.columns)) > _MOST_BYTES:
        raise EchoForgeError(f"the reviews in {path} are too many for one file; correct or remove it.")
    columns = [table[field.name] if field.name in names else pa.nulls(table.num_rows, field.type) for field in REVIEWS]
    table = pa.table(columns, names=REVIEWS.names).cast(REVIEWS)
    table.validate(full=True)  # text that is no UTF-8
    return table


def _length(column: pa.ChunkedArray) -> int:
    """Bytes of the text of a column of dictionaries; 0 for other columns."""
    if not pa.types.is_dictionary(column.type):
        return 0
    return sum(pc.sum(pc.binary_length(part.dictionary).take(part.indices)).as_py() or 0 for part in column.chunks)


def checked(
    where: str,
    *,
    negative_id: object,
    verdict: object,
    reviewer: object,
    issue: object = None,
    frame_start: object = None,
    frame_end: object = None,
    note: object = None,
    time: datetime | None = None,
) -> Review:
    """A review of values that may be anything.

    Args:
        where: how the error names the row.

    Raises:
        EchoForgeError: no sample or reviewer named, an unknown verdict or issue, a value of another type than its column,
            or an empty range of frames.
    """
    id_, verdict_ = _text(negative_id, "negative_id", where), _text(verdict, "verdict", where)
    issue_ = _text(issue, "issue", where)
    reviewer_, note_ = _text(reviewer, "reviewer", where), _text(note, "note", where)
    if not id_:
        raise EchoForgeError(f"{where}: no sample is named.")
    if verdict_ not in VERDICTS:
        raise EchoForgeError(f"{where}: verdict '{short(verdict)}' is not one of {', '.join(VERDICTS)}.")
    if issue_ is not None and issue_ not in ISSUES:
        raise EchoForgeError(f"{where}: issue '{short(issue)}' is not one of {', '.join(ISSUES)}.")
    start, end = _frame(frame_start, "frame_start", where), _frame(frame_end, "frame_end", where)
    low = 0 if start is None else start
    if low < 0 or (end is not None and end <= low):
        raise EchoForgeError(f"{where}: frames [{low}, {'end' if end is None else end}) are empty or negative.")
    if not reviewer_:
        raise EchoForgeError(f"{where}: no reviewer.")
    return Review(id_, verdict_, issue_, start, end, reviewer_, time, note_)


def _text(value: object, name: str, where: str) -> str | None:
    """Text that a table can hold (no lone surrogates), or none."""
    try:
        if value is None or (isinstance(value, str) and value.encode("utf-8") is not None):
            return value
    except UnicodeEncodeError:
        pass
    raise EchoForgeError(f"{where}: {name} is no text.")


def _frame(value: object, name: str, where: str) -> int | None:
    """The number of a frame (int32; no bool), or none."""
    if value is None or (isinstance(value, int) and type(value) is int and -(2**31) <= value < 2**31):
        return value
    raise EchoForgeError(f"{where}: {name} is no whole number that a frame can have.")


def short(value: object) -> str:
    """A value from outside for a sentence."""
    text = one_line(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def latest(reviews: pa.Table) -> list[Review]:
    """The vote of each (negative, reviewer), sorted by them: rule 1."""
    votes: dict[tuple[str, str], Review] = {}
    for review in sorted((Review(**row) for row in reviews.to_pylist()), key=_order):
        votes[review.negative_id, review.reviewer] = review
    return [votes[key] for key in sorted(votes)]


def _order(review: Review) -> tuple[datetime, int, str, int, int, str]:
    start, end = (-1 if frame is None else frame for frame in (review.frame_start, review.frame_end))
    assert review.time is not None
    return review.time, _TIE.index(review.verdict), review.issue or "", start, end, review.note or ""


def judgements(gathered: pa.Table, reviews: pa.Table, *, accept_flags: bool) -> dict[str, Judgement]:
    """What each gathered sample counts as, by its id, in the order of ``gathered``.

    Args:
        gathered: with the columns ``negative_id`` and ``flags`` of `dataset_schema.NEGATIVES`.
        reviews: as :func:`read` gives them; rows of samples that were not gathered are not looked at.
        accept_flags: an open sample with a flag counts as negative (rule 7).
    """
    votes: dict[str, list[Review]] = {}
    for vote in latest(reviews):
        votes.setdefault(vote.negative_id, []).append(vote)
    found: dict[str, Judgement] = {}
    for row in gathered.select(["negative_id", "flags"]).to_pylist():
        severity: dict[str, float] = {}
        for flag in row["flags"] or []:
            severity[flag["issue"]] = max(flag["severity"] or 0.0, severity.get(flag["issue"], 0.0))
        found[row["negative_id"]] = judge(votes.get(row["negative_id"], []), severity, accept_flags=accept_flags)
    return found


def judge(
    votes: Sequence[Review], flagged: Mapping[str, float] | None = None, *, accept_flags: bool = False
) -> Judgement:
    """What one sample counts as: rules 2 to 7.

    Args:
        votes: one of each reviewer, in any order.
        flagged: issue → severity of what the measures suspect.
    """
    against = [vote for vote in votes if vote.verdict == "negative"]
    fine = sum(vote.verdict == "fine" for vote in votes)
    if len(against) > fine:
        issue = _most(Counter(vote.issue for vote in against if vote.issue))
        return Judgement("negative", issue or "other", _union(against), len(against), fine)
    if fine:
        return Judgement("fine", None, None, len(against), fine)
    if votes:
        return Judgement("skip")
    if not accept_flags:
        return Judgement(None)
    return Judgement("negative", _most(flagged)) if flagged else Judgement("fine")


def _most(weights: Mapping[str, float]) -> str | None:
    """The issue with the largest number; of equal ones the first in the order of `ISSUES`."""
    known = {name: number for number, name in enumerate(ISSUES)}
    return min(weights, key=lambda name: (-weights[name], known.get(name, len(known)), name), default=None)


def _union(votes: Iterable[Review]) -> Frames | None:
    """Rule 5; None: all frames."""
    ranges = sorted(
        ((vote.frame_start or 0, vote.frame_end) for vote in votes),
        key=lambda pair: (pair[0], pair[1] is None, pair[1] or 0),
    )
    joined: list[tuple[int, int | None]] = []
    for start, end in ranges:
        last = joined[-1] if joined else None
        if last is not None and (last[1] is None or start <= last[1]):
            joined[-1] = last[0], None if last[1] is None or end is None else max(last[1], end)
        else:
            joined.append((start, end))
    return None if joined[0] == (0, None) else tuple(joined)
