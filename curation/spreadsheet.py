"""CSV files as spreadsheets save them: commas, semicolons (where the comma is the decimal sign) or tabs, in UTF-8.

A spreadsheet takes a cell that begins with ``= + - @`` for a formula, which may start programs or send cells away; so what
is written has an apostrophe before such text, and :func:`plain` takes it off again
(https://owasp.org/www-community/attacks/CSV_Injection).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from configs.errors import EchoForgeError

if TYPE_CHECKING:
    import pandas as pd

LINE = 1 << 20
"""Characters of a line: the csv module takes 131,072 in a cell, and a file without line breaks is none of ours."""
# What begins a formula, in full width, too; white space that is passed over before it. Where a spreadsheet splits at
# semicolons or tabs, a cell also begins behind each of them and, quoted or not, in each line.
_FORMULA = "=+\\-@\uff1d\uff0b\uff0d\uff20"
_BARE = re.compile(f"^(?='*[{_FORMULA}\\t\\r\\n])|(?<=[;\\t\\r\\n])(?='*[{_FORMULA}])")
_QUOTED = re.compile(f"^'(?='*[{_FORMULA}\\t\\r\\n])|(?<=[;\\t\\r\\n])'(?='*[{_FORMULA}])")


def escaped(text: str) -> str:
    """``text`` with an apostrophe wherever a spreadsheet would find a formula; :func:`plain` is the inverse."""
    return _BARE.sub("'", text)


def plain(text: str) -> str:
    """What :func:`escaped` made ``text`` of."""
    return _QUOTED.sub("", text)


def write(table: pd.DataFrame, target: Path) -> None:
    """A CSV in UTF-8 with commas; text is :func:`escaped` and in quotes, numbers stay numbers."""
    safe = table.map(lambda cell: escaped(cell) if isinstance(cell, str) else cell)
    safe.to_csv(target, index=False, quoting=csv.QUOTE_NONNUMERIC)


def rows(data: bytes | IO[bytes], name: str) -> Iterator[dict[str, str]]:
    """The lines of a CSV or TSV by column. The separator is the one that the first line has most of.

    Other encodings are refused rather than guessed: in the wrong one names and file names change without a word.

    Args:
        data: the content, or an open file that can seek; it is read as rows are asked for.
        name: of the file, for messages; one that ends in ``.tsv`` is separated by tabs.

    Raises:
        EchoForgeError: not text, not UTF-8, a line with more cells than there are columns, or a line too long.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    head = stream.read(4)
    if head.startswith(b"PAR1"):
        raise EchoForgeError(f"{name} is a Parquet file, not a CSV; give a .csv (of a table that `export` wrote, say).")
    if head.startswith(b"PK"):
        raise EchoForgeError(f"{name} is a spreadsheet's own file, not a CSV; save it as 'CSV UTF-8'.")
    stream.seek(0)
    text = lines(stream, name)
    first = next(text, "")
    tabs = PurePosixPath(name).suffix.lower() == ".tsv"
    delimiter = "\t" if tabs else max(",;\t", key=first.count)
    reader = csv.DictReader(_with(first, text), delimiter=delimiter)
    try:
        if "\0" in first:  # letters with zeros between them pass for UTF-8
            raise EchoForgeError(f"{name} is not in UTF-8 (line 1); save it as 'CSV UTF-8' in the spreadsheet.")
        for row in reader:
            if None in row:
                raise EchoForgeError(f"{name} line {reader.line_num} has more cells than columns; quote cells that hold "
                                     f"a '{delimiter}'.")  # fmt: skip
            yield {key: value or "" for key, value in row.items()}
    except csv.Error as error:
        number = reader.line_num + 1  # the line at fault is not counted yet
        raise EchoForgeError(f"{name} line {number} cannot be read as CSV: {error}.") from error


def lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """The lines of a UTF-8 text, each with its end, none longer than :data:`LINE`.

    Raises:
        EchoForgeError: not UTF-8, or a line too long.
    """
    text, number = io.TextIOWrapper(stream, "utf-8-sig", newline=""), 0
    try:
        while line := text.readline(LINE):
            number += 1
            if len(line) == LINE and not line.endswith("\n"):
                raise EchoForgeError(f"{name} line {number} has more than {LINE} characters; is it a text at all?")
            yield line
    except UnicodeDecodeError as error:
        number += 1 + error.object.count(b"\n", 0, error.start)
        raise EchoForgeError(
            f"{name} is not in UTF-8 (line {number}); save it as 'CSV UTF-8' in the spreadsheet."
        ) from error


def _with(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
