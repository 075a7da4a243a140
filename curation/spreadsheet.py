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
from typing import TYPE_CHECKING

from configs.errors import EchoForgeError

if TYPE_CHECKING:
    import pandas as pd

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


def rows(data: bytes, name: str) -> Iterator[dict[str, str]]:
    """The lines of a CSV or TSV by column. The separator is the one that the first line has most of.

    Other encodings are refused rather than guessed: in the wrong one names and file names change without a word.

    Args:
        name: of the file, for messages; one that ends in ``.tsv`` is separated by tabs.

    Raises:
        EchoForgeError: not text, not UTF-8, or a line with more cells than there are columns.
    """
    if data.startswith(b"PAR1"):
        raise EchoForgeError(f"{name} is a Parquet file, not a CSV; give a .csv (of a table that `export` wrote, say).")
    if data.startswith(b"PK"):
        raise EchoForgeError(f"{name} is a spreadsheet's own file, not a CSV; save it as 'CSV UTF-8'.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise EchoForgeError(
            f"{name} is not in UTF-8 (line {line}); save it as 'CSV UTF-8' in the spreadsheet."
        ) from error
    first = text.partition("\n")[0]
    tabs = PurePosixPath(name).suffix.lower() == ".tsv"
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if tabs else max(",;\t", key=first.count))
    try:
        for row in reader:
            if None in row:
                raise EchoForgeError(f"{name} line {reader.line_num} has more cells than columns; quote cells that hold "
                                     f"a '{reader.reader.dialect.delimiter}'.")  # fmt: skip
            yield {key: value or "" for key, value in row.items()}
    except csv.Error as error:
        raise EchoForgeError(f"{name} line {reader.line_num} cannot be read as CSV: {error}.") from error
