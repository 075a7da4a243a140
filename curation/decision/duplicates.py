"""Copies across the corpus: exact, re-encoded, scaled, trimmed, mirrored.

They are found from the pairs of hashes of `curation.operators.perceptual_hash`. A mirrored picture flips exactly the
coefficients of odd horizontal frequency, so mirrored copies are found from the same numbers.

The join never holds the corpus's pairs at once: keys are handled in ``partitions`` passes.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute

from curation.clip import Clip
from curation.config import DedupConfig
from curation.operators.perceptual_hash import LOW

_ODD = np.uint64(sum(1 << (63 - (r * LOW + c)) for r in range(LOW) for c in range(1, LOW, 2)))
_CHUNK = 1 << 20


def find_duplicates(clips: pa.Table, cfg: DedupConfig) -> dict[str, str]:
    """clip_id → the clip_id it is a copy of. The best copy stays: kept before rejected, larger face, larger picture.

    Args:
        clips: columns clip_id, video_id, phash; width, height, face_px, sharpness, verdict weigh where present. Clips
            of one video are never copies of each other. Rows with one clip_id (the same file under several names) are
            :func:`mark_duplicates`'s business.
    """
    if not cfg.enabled or clips.num_rows < 2:
        return {}
    looks, moves, first = _pairs(clips["phash"])
    video = clips["video_id"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    links: list[tuple[int, int]] = []
    for a, b in _candidates(looks, moves, first, video, cfg):
        one, other = slice(first[a], first[a + 1]), slice(first[b], first[b + 1])
        if same(looks[one], moves[one], looks[other], moves[other], cfg):
            links.append((a, b))
    return _best(links, clips)


def mark_duplicates(clips: pa.Table, cfg: DedupConfig) -> pa.Table:
    """``clips`` with ``duplicate_of`` filled: copies by content, and second rows of one clip_id (exact file copies).

    Of rows with one clip_id the one with the smallest source_uri stays; the others are copies of their own clip_id.
    """
    found = find_duplicates(clips, cfg)
    ids = clips["clip_id"]
    copies, originals = pa.array(found.keys(), pa.string()), pa.array(found.values(), pa.string())
    column = originals.take(pyarrow.compute.index_in(ids, value_set=copies).combine_chunks())
    if cfg.enabled and pyarrow.compute.count_distinct(ids).as_py() < len(ids):
        values, names, uris = column.to_pylist(), ids.to_pylist(), clips["source_uri"].to_pylist()
        owner: dict[str, int] = {}
        for row in sorted(range(len(names)), key=lambda r: (uris[r] or "", r)):
            if owner.setdefault(names[row], row) != row:
                values[row] = values[row] or names[row]
        column = pa.array(values, pa.string())
    at = clips.schema.get_field_index("duplicate_of")
    return clips.set_column(at, "duplicate_of", column) if at >= 0 else clips.append_column("duplicate_of", column)


def same(la: np.ndarray, ma: np.ndarray, lb: np.ndarray, mb: np.ndarray, cfg: DedupConfig) -> bool:
    """Do two sequences of hashes hold a stretch of the same film, at any shift, mirrored or not?"""
    least = max(2, round(cfg.min_overlap_s * cfg.rate), round(cfg.min_overlap * min(len(la), len(lb))))
    moving_least = max(2, round(cfg.min_overlap_s * cfg.rate))
    for look, move in ((lb, mb), (lb ^ _ODD, np.where(mb == 0, mb, mb ^ _ODD))):
        for shift in range(-(len(look) - least), len(la) - least + 1):
            a0, b0 = max(0, shift), max(0, -shift)
            n = min(len(la) - a0, len(look) - b0)
            x, y = ma[a0 : a0 + n], move[b0 : b0 + n]
            moving = (x != 0) & (y != 0)
            if moving.sum() < moving_least:
                continue
            motion = np.bitwise_count(x ^ y)[moving].mean()
            picture = np.bitwise_count(la[a0 : a0 + n] ^ look[b0 : b0 + n]).mean()
            if motion <= cfg.motion_bits and picture <= cfg.picture_bits and motion + picture <= cfg.total_bits:
                return True
    return False


def _pairs(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures uint64 [n], motion uint64 [n], and the first pair of each row int64 [rows + 1]."""
    whole = column.combine_chunks()
    lengths = pa.compute.fill_null(pa.compute.list_value_length(whole), 0).to_numpy(zero_copy_only=False) // 2
    values = whole.flatten().to_numpy(zero_copy_only=False).astype(np.uint64, copy=False)
    return values[0::2], values[1::2], np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _key(looks: np.ndarray, moves: np.ndarray, rows: tuple[int, ...]) -> np.ndarray:
    """One key a pair, uint32 [n], of low-frequency bits: equal for a picture and its mirror; 0: no key."""
    mask = np.uint64(sum(1 << (63 - (r * LOW + c)) for r in rows for c in range(4)))
    straight = (looks & mask) * np.uint64(0x9E3779B97F4A7C15) ^ (moves & mask)
    turned = ((looks ^ _ODD) & mask) * np.uint64(0x9E3779B97F4A7C15) ^ ((moves ^ _ODD) & mask)
    key = (np.minimum(straight, turned) * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(32)
    return np.where(moves == 0, 0, np.clip(key, 1, 2**32 - 2)).astype(np.uint32)


def _candidates(
    looks: np.ndarray, moves: np.ndarray, first: np.ndarray, video: np.ndarray, cfg: DedupConfig
) -> list[tuple[int, int]]:
    """Pairs of rows of different videos that share a key where all their bits are near, too."""
    owner = np.repeat(np.arange(len(first) - 1, dtype=np.int32), np.diff(first))
    rows, edges = np.int64(len(first)), np.linspace(1, 2**32 - 1, cfg.partitions + 1).astype(np.uint32)
    key = np.empty(len(looks), np.uint32)
    found = [np.zeros(0, np.int64)]
    for band in ((0, 1, 2), (1, 2, 3)):
        for start in range(0, len(looks), _CHUNK):
            part = slice(start, start + _CHUNK)
            key[part] = _key(looks[part], moves[part], band)
        for low, high in pairwise(edges):
            at = np.flatnonzero((key >= low) & (key < high))
            # Pairs come in the order of their rows, so sorting (key, pair) sorts by key, then by row.
            order = np.sort((key[at].astype(np.uint64) << np.uint64(32)) | at.astype(np.uint64))
            shared, at = (order >> np.uint64(32)).astype(np.uint32), (order & np.uint64(2**32 - 1)).astype(np.int64)
            kept, longest = _common(shared, owner[at], cfg.max_bucket)
            shared, at = shared[kept], at[kept]
            for apart in range(1, longest):
                together = np.flatnonzero(shared[:-apart] == shared[apart:])
                a, b = at[together], at[together + apart]
                near = _near(looks, a, b, cfg.picture_bits)
                a, b = a[near], b[near]
                near = _near(moves, a, b, cfg.motion_bits)
                a, b = owner[a[near]].astype(np.int64), owner[b[near]].astype(np.int64)
                found.append((a * rows + b)[video[a] != video[b]])
    pairs = np.unique(np.concatenate(found))
    return list(zip((pairs // rows).tolist(), (pairs % rows).tolist(), strict=True))


def _common(key: np.ndarray, owner: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """Of sorted keys: one entry per row, of keys that several rows share, but no more than ``most`` (else it is
    black, a title, an empty wall). With it, in how many rows the commonest of them is."""
    fresh = np.ones(len(key), bool)
    fresh[1:] = (key[1:] != key[:-1]) | (owner[1:] != owner[:-1])
    kept = np.flatnonzero(fresh)
    begins = np.flatnonzero(np.concatenate([[True], np.diff(key[kept]) != 0])) if len(kept) else kept
    sizes = np.diff(np.append(begins, len(kept)))
    wanted = (sizes > 1) & (sizes <= most)
    return kept[np.repeat(wanted, sizes)], int(sizes[wanted].max(initial=0))


def _near(hashes: np.ndarray, a: np.ndarray, b: np.ndarray, bits: float) -> np.ndarray:
    """Whether hashes could be those of copies, mirrored or not: their key's bits are equal, so the others are near.

    The limit is that of the mean over a copy: at least one of its pairs is no farther than the mean.
    """
    apart = hashes[a] ^ hashes[b]
    return np.asarray((np.bitwise_count(apart) <= bits) | (np.bitwise_count(apart ^ _ODD) <= bits))


def _best(links: list[tuple[int, int]], clips: pa.Table) -> dict[str, str]:
    """Groups of linked rows → all but the best of each → the best."""
    parent = list(range(clips.num_rows))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in links:
        parent[root(a)] = root(b)
    clips = clips.select([name for name in _WORTH if name in clips.column_names])
    groups: dict[int, list[int]] = {}
    for row in {r for link in links for r in link}:
        groups.setdefault(root(row), []).append(row)
    result: dict[str, str] = {}
    for rows in groups.values():
        order = sorted((Clip.from_row(row) for row in clips.take(rows).to_pylist()), key=_worth)
        best = order[0].clip_id
        result |= {clip.clip_id: best for clip in order[1:] if clip.clip_id != best}
    return result


_WORTH = (
    "clip_id", "source_uri", "verdict", "width", "height", "start_frame", "end_frame", "face_px", "sharpness",
    "av_offset_frames", "letterbox",
)  # fmt: skip


def _worth(clip: Clip) -> tuple[float | str, ...]:
    """Sort key, best first: verdict, sound in time, whole picture; then size, length and sharpness within a few percent;
    what is then equal is settled by name, so that the answer does not depend on the order of the rows."""
    rank = {"keep": 0, "hold": 1, "reject": 3, "error": 4}.get(clip.decision.verdict, 2) if clip.decision else 2
    sharpness, offset = clip.number("sharpness") or 0, clip.number("av_offset_frames") or 0
    area, length = (clip.width or 0) * (clip.height or 0), (clip.end_frame or 0) - (clip.start_frame or 0)
    measures = (clip.face_px or 0, area, length, sharpness)
    return (
        rank,
        abs(offset),
        clip.scores.get("letterbox") is not None,
        *(-_step(value) for value in measures),
        clip.source_uri or "",
        clip.clip_id,
    )


def _step(value: float) -> int:
    """Logarithmic steps of a tenth: less is the measure's own noise."""
    return round(math.log(value) / math.log(1.1)) if value > 0 else -1000
