"""CSV files as spreadsheets save them: commas, semicolons (where the comma is the decimal sign) or tabs, in UTF-8."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import PurePosixPath

from configs.errors import EchoForgeError


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
