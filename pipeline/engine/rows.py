"""Rows of a unit → the Arrow tables that its worker returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from configs.errors import EchoForgeError
from curation import schema as catalog


class UnwritableRows(EchoForgeError):
    """Rows that their table cannot hold. That is the failure of one unit."""


def tables(rows: Mapping[str, Iterable[Mapping[str, Any]]], schemas: Mapping[str, pa.Schema]) -> dict[str, pa.Table]:
    """Rows by table → tables with exactly these schemas; columns that a row lacks are null.

    Raises:
        UnwritableRows: a column that its schema does not have, or a value of the wrong type or size.
    """
    try:
        return {name: catalog.table(found, schemas[name]) for name, found in rows.items()}
    except Exception as error:
        raise UnwritableRows(f"its rows cannot be written: {type(error).__name__}: {error}") from error
