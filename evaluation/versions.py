"""The version of the measures that gave a table's numbers, so that numbers of two versions are never compared.

It is in the metadata of the Parquet schema: columns stay as they are. A table without it was made before there were
versions, and is of version 1. A CSV file has no place for it. Measures that share code (`evaluation/temporal.py`) change
together: raise both versions then.
"""

from __future__ import annotations

import pyarrow as pa

SAMPLES = "measures"
"""Key of the measures of generated samples (`evaluation/defects.py`)."""
METRICS = "metrics"
"""Key of the metrics of `eval` (`evaluation/metrics.py`)."""


def stamped(table: pa.Table, key: str, version: int) -> pa.Table:
    """``table`` with the version in its metadata under ``key``."""
    metadata: dict[bytes, bytes] = table.schema.metadata or {}
    return table.replace_schema_metadata(metadata | {key.encode(): str(version).encode()})


def parameter(key: str, version: int) -> dict[str, str]:
    """What a ledger's parameters say of the version, so that work of another one is done again. Nothing for the first."""
    return {} if version == 1 else {key: str(version)}
