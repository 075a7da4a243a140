"""Kept clips → samples → fixed groups, one tar each. A pure function of the catalog, so that a rerun is the same.

A plan is written once per generation, before anything is encoded. Later runs finish it; clips that no plan holds yet
make the next generation. What exists is never written again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from configs.dataset_schema import INDEX_FILE, SPLITS
from configs.errors import ConfigError, EchoForgeError
from curation import schema
from curation.clip import Clip
from pipeline import parquet, storage
from pipeline.catalog import identity
from pipeline.catalog.identity import CuratedSource
from pipeline.config import BucketsConfig, PipelineConfig, ShardsConfig
from pipeline.dataset import buckets, files, sample
from pipeline.dataset.sample import PLAN, Boxes, KeptClip, PlannedSample

if TYPE_CHECKING:  # planning needs no network
    from pipeline.dataset.encode import Encoders

_COLUMNS = (
    "clip_id", "video_id", "source_uri", "start_frame", "end_frame", "width", "height", "tracks", "active_track",
    "letterbox", "crop", "captions", "speaker", "tier", "verdict", "reasons", "offset_samples", "duplicate_of",
)  # fmt: skip
"""What planning looks at, beside `schema.INDEXED` and `identity.COLUMNS`."""
_PIECE = 10_000  # clips that are rows at a time


def kept_clips(kept: pa.Table) -> Iterator[KeptClip]:
    """The clips of a table that has the columns of `identity.attach`."""
    names = dict.fromkeys([*_COLUMNS, *schema.INDEXED, *identity.COLUMNS])
    for piece in kept.select(list(names)).to_batches(max_chunksize=_PIECE):
        for row in piece.to_pylist():
            source = CuratedSource(row["source_uri"], row["video_id"], row["source_bytes"], row["source_tag"])
            yield KeptClip(Clip.from_row(row), source, {name: row[name] for name in schema.INDEXED})


def samples_of(kept: KeptClip, cfg: BucketsConfig, encoders: str) -> list[PlannedSample]:
    """The samples that one clip of the catalog gives; none when it is too short or too small for every bucket."""
    clip, chosen = kept.clip, buckets.choose(kept.clip, cfg)
    if chosen is None:
        return []
    (width, height), crop = chosen
    track = buckets.active_track(clip)
    offset = (clip.decision.offset_samples if clip.decision else None) or 0
    captions = tuple(caption.text for caption in clip.captions or () if caption.text) or ("",)
    result = []
    for start, frames in buckets.windows(len(clip), cfg.lengths):
        bucket = f"{width}x{height}x{frames}"
        parts = (clip.clip_id, start, crop.x, crop.y, crop.w, crop.h, bucket, offset, encoders)
        result.append(
            PlannedSample(
                sample_id=hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:16],
                clip_id=clip.clip_id,
                source=kept.source,
                start_frame=clip.start_frame + start,
                bucket=bucket,
                frames=frames,
                height=height,
                width=width,
                crop=crop,
                offset_samples=offset,
                captions=captions,
                face_boxes=_rounded(buckets.frame_boxes(track, "boxes", start, frames, crop, (width, height)).tolist()),
                mouth_boxes=_rounded(
                    buckets.frame_boxes(track, "mouth_boxes", start, frames, crop, (width, height)).tolist()
                ),
                speaker=clip.speaker,
                tier=clip.decision.tier if clip.decision else None,
                verdict=clip.decision.verdict if clip.decision else None,
                scores=kept.scores,
            )
        )
    return result


def _rounded(boxes: list[list[float]]) -> Boxes:
    return tuple(None if box[0] != box[0] else [round(v, 2) for v in box] for box in boxes)


SMALL_FIRST = ("train", "val", "negatives", "test")
"""The order in which a small dataset fills its splits: `train` needs samples and a held-out loss, its next stage negatives."""


def split_groups(
    speakers: Iterable[tuple[str, str | None]], cfg: ShardsConfig, taken: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Group of every video and split of every group.

    Videos that share a speaker are one group. A group keeps the split it had in earlier generations (``taken``, by
    group or by video); a new one is placed by hash. A split that is asked for and would be empty then gets a new
    group: from the split that holds the most, or from one that comes later in :data:`SMALL_FIRST`.

    Args:
        speakers: of every clip, its video and its speaker where known.

    Returns:
        (video_id → group, group → split).

    Raises:
        ConfigError: shares that are no shares, or an unknown split.
    """
    shares = {name: share for name, share in cfg.splits.items() if name != "train"}
    if set(shares) - set(SPLITS) or min(shares.values(), default=0) < 0 or sum(shares.values()) > 1:
        raise ConfigError(f"shards.splits must give shares of at most 1 together to {', '.join(SPLITS)}.")
    group_of = _components(speakers)
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


def _components(speakers: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """video_id → name of its connected component of videos and speakers."""
    parent: dict[str, str] = {}

    def find(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    videos = set()
    for video, speaker in speakers:
        videos.add(video)
        a = find(f"video:{video}")
        if speaker:
            b = find(f"speaker:{speaker}")
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
    samples: list[PlannedSample],
    group_of: Mapping[str, str],
    split_of: Mapping[str, str],
    cfg: ShardsConfig,
    *,
    generation: str,
    bytes_per_sample: Mapping[str, int],
) -> pa.Table:
    """Deal samples to tars: one split and one bucket per tar, in an order drawn from the seed (pre-shuffled)."""
    piles: dict[tuple[str, str], list[PlannedSample]] = defaultdict(list)
    for planned in samples:
        piles[planned.bucket, split_of[group_of[planned.source.video_id]]].append(planned)
    rows, numbers = [], defaultdict[str, int](int)
    for (bucket, split), pile in sorted(piles.items()):
        pile.sort(key=lambda s: hashlib.sha256(f"{cfg.seed}:{s.sample_id}".encode()).digest())
        size = max(cfg.target_mb * 2**20 // bytes_per_sample[bucket], 1)
        for first in range(0, len(pile), size):
            tar = f"{generation}/{bucket}/shard-{numbers[bucket]:06d}.tar"
            numbers[bucket] += 1
            for planned in pile[first : first + size]:
                text = replace(planned, split=split).to_json()
                rows.append([planned.sample_id, tar, split, group_of[planned.source.video_id], text])
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(PLAN)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, PLAN, strict=True)], schema=PLAN)


def extend_plans(
    out: str,
    kept: pa.Table,
    cfg: PipelineConfig,
    parameters: dict[str, str],
    encoders: Encoders,
    left_out: Mapping[str, int],
) -> tuple[dict[str, pa.Table], set[str]]:
    """The plans of all generations, and the ids of what ``kept`` gives today.

    A new generation is written when ``kept`` has samples that none holds.

    Args:
        kept: with the columns of `identity.attach`.
        left_out: how often each sample was left out because its source was not the one that was curated. Samples that
            every plan so far left out are planned again once their source is there.

    Raises:
        EchoForgeError: the dataset was made with other encoders or settings, or no clip fits any bucket.
    """
    plans = files.read_plans(out)
    if not plans and files.exists(out, INDEX_FILE):
        raise EchoForgeError(f"dataset '{out}' was merged or split from others: give another --out, then merge again.")
    for generation, plan in plans.items():
        made = json.loads((plan.schema.metadata or {}).get(b"parameters", b"{}"))
        if made != parameters:
            differ = ", ".join(sorted(k for k in parameters if made.get(k) != parameters[k]))
            raise EchoForgeError(
                f"dataset '{out}' ({generation}) was made with other settings ({differ}): "
                "use the same configuration, or give another --out."
            )
    samples = [s for clip in kept_clips(kept) for s in samples_of(clip, cfg.buckets, encoders.digest)]
    if not samples and not plans:
        raise EchoForgeError(
            f"none of the {kept.num_rows} kept clips fits a bucket: shortest length {min(cfg.buckets.lengths)} frames, "
            f"areas {list(cfg.buckets.areas)}; change buckets.lengths or buckets.areas."
        )
    if new := _new(samples, plans, left_out):
        speakers = zip(kept["video_id"].to_pylist(), kept["speaker"].to_pylist(), strict=True)
        group_of, split_of = split_groups(speakers, cfg.shards, _taken(plans))
        generation = f"gen-{len(plans):03d}"
        sizes = {planned.bucket: encoded_bytes(planned, encoders) for planned in new}
        plan = make_plan(new, group_of, split_of, cfg.shards, generation=generation, bytes_per_sample=sizes)
        plan = plan.replace_schema_metadata({"parameters": json.dumps(parameters)})
        files.check_target(out, f"{generation}/plan.parquet")
        parquet.write(storage.join(out, generation, "plan.parquet"), plan)
        plans[generation] = plan
    return plans, {planned.sample_id for planned in samples}


def _new(
    samples: list[PlannedSample], plans: Mapping[str, pa.Table], left_out: Mapping[str, int]
) -> list[PlannedSample]:
    """Samples that no plan holds, and those that every plan left out and whose source is back."""
    known = Counter(name for plan in plans.values() for name in plan["sample_id"].to_pylist())
    lost = {name for name, times in left_out.items() if times == known[name]}
    there: dict[CuratedSource, bool] = {}  # one look per source, not per sample

    def is_back(source: CuratedSource) -> bool:
        if source not in there:
            there[source] = identity.intact(source)
        return there[source]

    return [s for s in samples if s.sample_id not in known or (s.sample_id in lost and is_back(s.source))]


def _taken(plans: Mapping[str, pa.Table]) -> dict[str, str]:
    """Split of every group and of every video in earlier generations."""
    taken: dict[str, str] = {}
    for plan in plans.values():
        for group, split, text in zip(*(plan[n].to_pylist() for n in ("group", "split", "sample")), strict=True):
            taken.setdefault(group, split)
            taken.setdefault(sample.video_id(text), split)
    return taken


def encoded_bytes(planned: PlannedSample, encoders: Encoders) -> int:
    """About how large a sample becomes: two bf16 latents of the video, and the small rest (texts lie elsewhere)."""
    latent = 2 * 16 * (1 + (planned.frames - 1) // 4) * (planned.height // 8) * (planned.width // 8)
    return 2 * latent + 2 * encoders.image.tokens * encoders.image.dim + 60_000
