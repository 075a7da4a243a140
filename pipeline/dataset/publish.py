"""The small files of a dataset are replaced together: index, `dataset.json`, card, prompts."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from configs.dataset_description import Description
from configs.dataset_files import FileDigest
from configs.dataset_schema import CARD_FILE, DATASET_FILE, INDEX_FILE, PROMPTS_FILE, SCHEMA_VERSION
from pipeline import listing, storage
from pipeline.dataset import card, files
from pipeline.dataset.stats import Totals, stats_of
from pipeline.engine.version import code_version


def write_index(
    out: str,
    table: pa.Table,
    description: Description,
    others: Mapping[str, bytes],
    tars: Mapping[str, FileDigest],
    command: str,
) -> Totals:
    """Replace the small files of a dataset: `dataset.json`, the card, ``others`` and the index (`files.replace`).

    Args:
        description: content of `dataset.json` but for totals and versions.
        others: more files, by name.
        tars: digests of tars that were made or copied now.
        command: what continues this when it is interrupted.
    """
    totals, version = stats_of(table), code_version()
    text = description.to_json(schema_version=SCHEMA_VERSION, made_by=version, totals=totals)
    contents = {
        **others,
        DATASET_FILE: text.encode("utf-8", "backslashreplace"),  # a lone surrogate becomes its JSON escape
        card.SHEET_FILE: card.contact_sheet(out, table),
        CARD_FILE: card.dataset_card(table, description, totals, version).encode("utf-8", "backslashreplace"),
        INDEX_FILE: files.table_bytes(table),
    }
    named = files.tars_of(table)
    keep = [*named, *(f"{generation}/plan.parquet" for generation in description.plans or ())]
    keep += [f"fields/{part.name}" for part in listing.files(storage.join(out, "fields"), ".parquet")]
    keep += [PROMPTS_FILE]
    known = {tar: digest for tar, digest in tars.items() if tar in named}
    files.replace(out, contents, known, [name for name in keep if name not in contents], command)
    return totals
