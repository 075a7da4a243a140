"""The version of the measures that gave a table's numbers, so that numbers of two versions are never compared.

It is in the metadata of the Parquet schema, under :data:`KEY`: columns stay as they are. A table without it was made
before there were versions, and is of version 1.
"""

from __future__ import annotations

import pyarrow as pa

KEY = "measures"


def stamped(table: pa.Table, version: int) -> pa.Table:
    """``table`` with the version in its metadata."""
    metadata: dict[bytes, bytes] = table.schema.metadata or {}
    return table.replace_schema_metadata(metadata | {KEY.encode(): str(version).encode()})


def parameter(version: int) -> dict[str, str]:
    """What a ledger's parameters say of the version, so that work of another one is done again. Nothing for the first."""
    return {} if version == 1 else {KEY: str(version)}
