"""Where the sources of a catalog are: older versions stored relative names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from configs.paths import absolute, is_remote


def found(uris: Iterable[str], catalog_dir: str) -> dict[str, str]:
    """Source → where it is. Relative names, which earlier versions stored, are tried below the working directory and
    below every folder above the catalog; one that is in none of these stays as it is, and reading it says so.
    """
    places = places_of(catalog_dir)
    return {
        uri: uri if "://" in uri or Path(uri).is_absolute() else find(uri, places) or uri for uri in dict.fromkeys(uris)
    }


def located(table: pa.Table, catalog_dir: str) -> pa.Table:
    """A table of the catalog with its ``source_uri`` as :func:`found` says."""
    at = table.schema.get_field_index("source_uri")
    uris = table["source_uri"].to_pylist()
    where = found(uris, catalog_dir)
    return table.set_column(at, table.schema.field(at), pa.array([where[uri] for uri in uris], pa.string()))


def places_of(catalog_dir: str) -> list[Path]:
    """Where a relative name may start: the working directory and every folder above the catalog."""
    return [Path.cwd(), *([] if is_remote(catalog_dir) else Path(absolute(catalog_dir)).parents)]


def find(uri: str, places: list[Path]) -> str | None:
    """A local name from the root on and without ``..``, a relative one at the first place that has it; None: nowhere."""
    if Path(uri).is_absolute():
        return absolute(uri)
    candidates = (absolute(place / uri) for place in places)
    return next((there for there in candidates if Path(there).exists()), None)
