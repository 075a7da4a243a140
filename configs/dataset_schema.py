"""Table schemas that more than one package reads or writes: the shard index, the negatives, the reviews.

Kept below every package because `pipeline/` writes the index that `train/` reads, and neither imports the other.
The same for the names of the files in a dataset and in a run.
"""

from __future__ import annotations

import pyarrow as pa

from configs.errors import EchoForgeError

SCHEMA_VERSION = 1

INDEX_FILE = "index.parquet"
PROMPTS_FILE = "prompts.safetensors"
DATASET_FILE = "dataset.json"
CARD_FILE = "README.md"
DIGESTS_FILE = "checksums.json"
SPLITS = ("train", "negatives", "val", "test")

_TENSOR = pa.struct(
    [
        ("name", pa.string()),
        ("tar", pa.string()),  # relative to the dataset's root
        ("offset", pa.int64()),  # of the tensor's first byte in the tar
        ("length", pa.int64()),  # bytes
        ("dtype", pa.string()),  # safetensors' name: BF16, F32, U8, I64 …
        ("shape", pa.list_(pa.int32())),
        ("sha256", pa.string()),  # of the tensor's bytes, first 16 hex digits
        ("xxh3", pa.string()),  # XXH3-64 of the same bytes, 16 hex digits: checked in training, ten times as fast
    ]
)
_MEMBER = pa.struct(
    [
        ("ext", pa.string()),
        ("tar", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("sha256", pa.string()),  # first 16 hex digits; null in datasets of earlier versions
    ]
)
_AUDIO = pa.struct(
    [
        ("variant", pa.string()),
        ("tokens_per_frame", pa.float32()),
        ("frame0", pa.int32()),  # row of the first token of video frame 0
        ("valid_from", pa.int32()),  # rows outside [valid_from, valid_to) are padding
        ("valid_to", pa.int32()),
    ]
)

INDEX = pa.schema(
    [
        ("sample_id", pa.string()),
        ("clip_id", pa.string()),
        ("video_id", pa.string()),
        ("speaker", pa.string()),
        ("bucket", pa.string()),  # "WxHxF"
        ("split", pa.string()),
        ("generation", pa.string()),
        ("F", pa.int32()),  # video frames, 4k+1
        ("H", pa.int32()),  # pixels
        ("W", pa.int32()),
        ("n_captions", pa.int32()),
        ("text_lens", pa.list_(pa.int32())),
        ("tier", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),  # SUPERSEDED, or null: the reasons of other verdicts are in the catalog
        ("sync_c", pa.float32()),
        ("sync_d", pa.float32()),
        ("sync_fit_conf", pa.float32()),
        ("face_frac", pa.float32()),
        ("sharpness", pa.float32()),
        ("motion", pa.float32()),
        ("speech_frac", pa.float32()),
        ("text_area", pa.float32()),
        ("audio", pa.list_(_AUDIO)),
        ("tensors", pa.list_(_TENSOR)),
        ("members", pa.list_(_MEMBER)),
    ]
)
"""One row per sample. Scores ride along so that a keep-list is a query, not a re-encoding; an index may have more of
them (`curation.schema.INDEXED`)."""

SUPERSEDED = "superseded"
"""Reason of a sample whose clip has another correction of the sound, another crop or another span today."""
_LATER = ("reason",)
"""Columns that indexes of earlier versions lack; null there."""


def scores(index: pa.Schema) -> list[str]:
    """The columns of an index that samples can be selected by: every column of floats."""
    return [field.name for field in index if pa.types.is_floating(field.type)]


def as_index(table: pa.Table, dataset: str) -> pa.Table:
    """``table`` with the columns of :data:`INDEX`, then the scores that it has beside them.

    Raises:
        EchoForgeError: a column is missing that every version has.
    """
    missing = [name for name in INDEX.names if name not in table.column_names]
    if unknown := [name for name in missing if name not in _LATER]:
        raise EchoForgeError(
            f"the index of '{dataset}' lacks the columns {', '.join(unknown)}: it is of another version."
        )
    for name in missing:
        table = table.append_column(INDEX.field(name), pa.nulls(table.num_rows, INDEX.field(name).type))
    more = [name for name in scores(table.schema) if name not in INDEX.names]
    return table.select([*INDEX.names, *more]).cast(pa.schema([*INDEX, *map(table.schema.field, more)]))


_FLAG = pa.struct([("issue", pa.string()), ("severity", pa.float32()), ("reason", pa.string())])
_PAIR = pa.struct([("name", pa.string()), ("value", pa.float32())])

NEGATIVES = pa.schema(
    [
        ("negative_id", pa.string()),
        ("stage", pa.string()),
        ("step", pa.int64()),
        ("checkpoint_digest", pa.string()),
        ("weights", pa.string()),  # raw | ema
        ("sample_id", pa.string()),
        ("dataset_digest", pa.string()),
        ("task", pa.string()),
        ("prompt", pa.string()),
        ("prompt_hash", pa.string()),
        ("audio_source", pa.string()),
        ("seed", pa.int64()),  # of z_T
        ("sampler", pa.string()),  # JSON
        ("guidance", pa.string()),  # JSON
        ("phda", pa.string()),  # schedule name
        ("scores", pa.list_(_PAIR)),
        ("real_quantiles", pa.list_(_PAIR)),  # where each score falls among the real samples' scores, 0..1
        ("flags", pa.list_(_FLAG)),
        ("thumbnail", pa.binary()),  # JPEG contact strip
        ("video_path", pa.string()),  # relative to the negatives folder
        ("latents_path", pa.string()),
    ]
)

ISSUES = ("identity", "colour_shift", "flicker", "lip_sync", "hands", "anatomy", "background", "blur", "other")
VERDICTS = ("negative", "fine", "skip")

REVIEWS = pa.schema(
    [
        ("negative_id", pa.string()),
        ("verdict", pa.string()),  # VERDICTS
        ("issue", pa.string()),  # ISSUES, or null for fine and skip
        ("frame_start", pa.int32()),  # half-open, video frames; null = from the clip's first, up to its last
        ("frame_end", pa.int32()),
        ("reviewer", pa.string()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("note", pa.string()),
    ]
)
"""Parts are only ever added; what they add up to is written in `configs/reviews.py`."""
