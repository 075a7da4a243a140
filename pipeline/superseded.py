"""Which samples of a dataset a catalog now plans differently: training must not see two versions of one clip.

A new correction of the sound, a new crop or a new span of a clip makes a sample with a new id beside the old one. The
old one then gets the verdict `reject` and the reason `superseded` in the index; its tar stays as it is. When the old
thresholds come back, so does the old sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from configs.dataset_schema import INDEX, SUPERSEDED
from pipeline import buckets
from pipeline.config import BucketsConfig


def compare(
    plans: Iterable[pa.Table], planned: pa.Table, clips: pa.Table, videos: Iterable[str], cfg: BucketsConfig
) -> dict[str, bool]:
    """Id of every sample that this run answers for → would it be made differently today?

    Args:
        plans: of all generations (`shard_plan.PLAN`).
        planned: the kept clips that this run plans (within ``--limit``).
        clips: all clips of the catalog (`catalog.CLIPS`).
        videos: ids of the videos that this run answers for. Samples of other videos are left out, as are those of
            clips that the catalog holds but this run does not plan: their verdict is the catalog's.
    """
    mine, known = set(videos), set(clips["clip_id"].to_pylist())
    columns = ["clip_id", "offset_samples", "width", "height", "letterbox", "crop", "tracks", "active_track"]
    rows = {row["clip_id"]: row for row in planned.select(columns).to_pylist()}
    sizes = set(buckets.sizes(cfg))
    chosen: dict[str, tuple[tuple[int, int], buckets.Rect] | None] = {}
    found: dict[str, bool] = {}
    for plan in plans:
        for text in plan["sample"].to_pylist():
            sample = json.loads(text)
            clip = sample["clip_id"]
            if sample["video_id"] not in mine:
                continue
            if clip not in known:  # its span is no clip any more
                found[sample["sample_id"]] = True
            elif clip in rows:
                if clip not in chosen:
                    chosen[clip] = buckets.choose(rows[clip], cfg)
                found[sample["sample_id"]] = _differs(sample, rows[clip], chosen[clip], sizes)
    return found


def _differs(
    sample: Mapping[str, Any],
    row: Mapping[str, Any],
    chosen: tuple[tuple[int, int], buckets.Rect] | None,
    sizes: set[tuple[int, int]],
) -> bool:
    """Would the sound be corrected otherwise, or the picture cropped otherwise?

    Other lengths of the same clip, and sizes that the configuration does not ask for any more, are other buckets of
    the same clip and no other version of it. Of such a size only a crop that leaves the usable region counts.
    """
    if sample["offset_samples"] != (row["offset_samples"] or 0):
        return True
    size, crop = (sample["W"], sample["H"]), buckets.Rect(**sample["crop"])
    if size in sizes:
        return chosen != (size, crop)
    return crop.intersect(buckets.usable_region(row)) != crop


def mark(index: pa.Table, compared: Mapping[str, bool]) -> pa.Table:
    """The index with the reason :data:`SUPERSEDED` set or cleared as :func:`compare` says, and `reject` where it is set.

    A sample that was not compared keeps the mark that an earlier run gave it.
    """
    reasons = index["reason"].to_pylist()
    marked = [
        (SUPERSEDED if compared[sample] else None) if sample in compared else reason
        for sample, reason in zip(index["sample_id"].to_pylist(), reasons, strict=True)
    ]
    verdicts = [
        "reject" if reason == SUPERSEDED else verdict
        for reason, verdict in zip(marked, index["verdict"].to_pylist(), strict=True)
    ]
    for name, values in (("reason", marked), ("verdict", verdicts)):
        field = INDEX.field(name)
        index = index.set_column(index.schema.get_field_index(name), field, pa.array(values, field.type))
    return index
