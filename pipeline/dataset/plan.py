"""Kept clips → samples → fixed groups, one tar each. A pure function of the catalog, so that a rerun is the same.

A plan is written once per generation, before anything is encoded. Later runs finish it; clips that no plan holds yet
make the next generation. What exists is never written again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from configs.dataset_schema import SPLITS
from configs.errors import ConfigError
from pipeline.catalog import identity
from pipeline.config import BucketsConfig, ShardsConfig
from pipeline.dataset import buckets

PLAN = pa.schema(
    [
        ("sample_id", pa.string()),
        ("tar", pa.string()),  # relative to the dataset
        ("split", pa.string()),
        ("group", pa.string()),  # source video, or speaker where known: what a split never divides
        ("sample", pa.string()),  # JSON: all that the encoder needs
    ]
)
SCORES = ("sync_c", "sync_d", "sync_fit_conf", "face_frac", "sharpness", "motion", "speech_frac", "text_area")
CARRIED = ("speaker", "tier", "verdict", *SCORES)
"""Columns of the catalog that the index carries, so that a keep-list is a query."""


def samples_of(row: Mapping[str, Any], cfg: BucketsConfig, encoders: str) -> list[dict[str, Any]]:
    """The samples that one clip of the catalog gives; none when it is too short or too small for every bucket."""
    chosen = buckets.choose(row, cfg)
    if chosen is None:
        return []
    (width, height), crop = chosen
    track = buckets.active_track(row)
    result = []
    for start, frames in buckets.windows(row["end_frame"] - row["start_frame"], cfg.lengths):
        bucket = f"{width}x{height}x{frames}"
        offset = row["offset_samples"] or 0
        parts = (row["clip_id"], start, crop.x, crop.y, crop.w, crop.h, bucket, offset, encoders)
        boxes = {
            name: buckets.frame_boxes(track, name, start, frames, crop, (width, height)).tolist()
            for name in ("boxes", "mouth_boxes")
        }
        result.append(
            {
                "sample_id": hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:16],
                "clip_id": row["clip_id"],
                "video_id": row["video_id"],
                "source_uri": row["source_uri"],
                **{name: row.get(name) for name in identity.COLUMNS},
                "start_frame": row["start_frame"] + start,
                "bucket": bucket,
                "F": frames,
                "H": height,
                "W": width,
                "crop": {"x": crop.x, "y": crop.y, "w": crop.w, "h": crop.h},
                "offset_samples": offset,
                "captions": [c["text"] for c in row["captions"] or [] if c["text"]] or [""],
                "face_boxes": _json_boxes(boxes["boxes"]),
                "mouth_boxes": _json_boxes(boxes["mouth_boxes"]),
                **{name: row.get(name) for name in CARRIED},
            }
        )
    return result


def _json_boxes(boxes: list[list[float]]) -> list[list[float] | None]:
    return [None if box[0] != box[0] else [round(v, 2) for v in box] for box in boxes]


SMALL_FIRST = ("train", "val", "negatives", "test")
"""The order in which a small dataset fills its splits: `train` needs samples and a held-out loss, its next stage negatives."""


def split_groups(
    clips: Iterable[Mapping[str, Any]], cfg: ShardsConfig, taken: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Group of every video and split of every group.

    Videos that share a speaker are one group. A group keeps the split it had in earlier generations (``taken``, by
    group or by video); a new one is placed by hash. A split that is asked for and would be empty then gets a new
    group: from the split that holds the most, or from one that comes later in :data:`SMALL_FIRST`.

    Returns:
        (video_id → group, group → split).

    Raises:
        ConfigError: shares that are no shares, or an unknown split.
    """
    shares = {name: share for name, share in cfg.splits.items() if name != "train"}
    if set(shares) - set(SPLITS) or min(shares.values(), default=0) < 0 or sum(shares.values()) > 1:
        raise ConfigError(f"shards.splits must give shares of at most 1 together to {', '.join(SPLITS)}.")
    group_of = _components(clips)
    split: dict[str, str] = {}
    for video, group in sorted(group_of.items()):
        known = taken.get(group) or taken.get(video)
        if known:
            split[group] = known
    old = set(split)
    for group in sorted(set(group_of.values()) - set(split)):
        split[group] = _place(_unit_hash(cfg.seed, group), shares)
    wanted = [name for name in SMALL_FIRST if name == "train" or shares.get(name, 0) > 0]
    for at, name in enumerate(wanted):
        if name in split.values() or name in taken.values():
            continue
        held = Counter(split.values())
        spare = [g for g, s in split.items() if g not in old and (held[s] > 1 or s in wanted[at + 1 :])]
        if spare:
            split[min(spare, key=lambda g: (-held[split[g]], _unit_hash(cfg.seed, f"{name}:{g}")))] = name
    return group_of, split


def _components(clips: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """video_id → name of its connected component of videos and speakers."""
    parent: dict[str, str] = {}

    def find(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    videos = set()
    for clip in clips:
        videos.add(clip["video_id"])
        a = find(f"video:{clip['video_id']}")
        if clip.get("speaker"):
            b = find(f"speaker:{clip['speaker']}")
            parent[max(a, b)] = min(a, b)  # 'speaker:' sorts first, so a group is named by a speaker where known
    return {video: find(f"video:{video}") for video in sorted(videos)}


def _unit_hash(seed: int, text: str) -> float:
    return int(hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()[:13], 16) / 16**13


def _place(value: float, shares: Mapping[str, float]) -> str:
    for name, share in shares.items():
        value -= share
        if value < 0:
            return name
    return "train"


def make_plan(
    samples: list[dict[str, Any]],
    group_of: Mapping[str, str],
    split_of: Mapping[str, str],
    cfg: ShardsConfig,
    *,
    generation: str,
    bytes_per_sample: Mapping[str, int],
) -> pa.Table:
    """Deal samples to tars: one split and one bucket per tar, in an order drawn from the seed (pre-shuffled)."""
    piles: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for sample in samples:
        piles[sample["bucket"], split_of[group_of[sample["video_id"]]]].append(sample)
    rows, numbers = [], defaultdict[str, int](int)
    for (bucket, split), pile in sorted(piles.items()):
        pile.sort(key=lambda s: hashlib.sha256(f"{cfg.seed}:{s['sample_id']}".encode()).digest())
        size = max(cfg.target_mb * 2**20 // bytes_per_sample[bucket], 1)
        for first in range(0, len(pile), size):
            tar = f"{generation}/{bucket}/shard-{numbers[bucket]:06d}.tar"
            numbers[bucket] += 1
            for sample in pile[first : first + size]:
                text = json.dumps(sample | {"split": split}, sort_keys=True, ensure_ascii=False)
                rows.append([sample["sample_id"], tar, split, group_of[sample["video_id"]], text])
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(PLAN)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, PLAN, strict=True)], schema=PLAN)
