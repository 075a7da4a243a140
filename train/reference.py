"""What the reference lost on the negatives, computed once per stage: no second network in memory while training.

K pairs (σ, ε) per negative are fixed by its id, so that a cached loss belongs to exactly the draw that training
uses. The cache is a Parquet table keyed by the digest of the reference's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor

from train import draws

SCHEMA = pa.schema(
    [("negative_id", pa.string()), ("draw", pa.int32()), ("negative", pa.float64()), ("positive", pa.float64())]
)
"""``negative`` and ``positive``: the reference's error on y⁻ and on the real video under the same conditions."""


class Cache:
    """Reference losses by (negative, draw)."""

    def __init__(self, rows: dict[tuple[str, int], tuple[float, float]]) -> None:
        self._rows = rows

    def negative(self, ids: Sequence[str], numbers: Sequence[int]) -> Tensor:
        """ℓ_ref of the negatives, fp32 [B]."""
        return self._pick(ids, numbers, 0)

    def positive(self, ids: Sequence[str], numbers: Sequence[int]) -> Tensor:
        """ℓ_ref of the real videos, fp32 [B]."""
        return self._pick(ids, numbers, 1)

    def _pick(self, ids: Sequence[str], numbers: Sequence[int], column: int) -> Tensor:
        return torch.tensor([self._rows[(i, n)][column] for i, n in zip(ids, numbers, strict=True)])

    def covers(self, ids: Sequence[str], count: int) -> bool:
        """Are all ``count`` draws of all negatives here?"""
        return all((i, n) in self._rows for i in ids for n in range(count))

    @staticmethod
    def read(path: Path) -> Cache | None:
        """The cache at ``path``, or None."""
        if not path.is_file():
            return None
        rows = pq.ParquetFile(path).read().to_pylist()
        return Cache({(r["negative_id"], r["draw"]): (r["negative"], r["positive"]) for r in rows})

    def merged(self) -> Cache:
        """The rows of all ranks together."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return self
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, self._rows)
        return Cache({key: value for part in parts for key, value in part.items()})

    def write(self, path: Path) -> None:
        """Write the table, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"negative_id": i, "draw": n, "negative": a, "positive": b} for (i, n), (a, b) in sorted(self._rows.items())
        ]
        part = path.with_suffix(".part")
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), part)
        part.replace(path)


def sigma_of(negative: str, number: int, count: int, low: float, high: float, seed: int) -> float:
    """σ of draw ``number`` of ``count``: stratified over [low, high]."""
    return low + (high - low) * (number + draws.uniform(seed, negative, number, "negative t")) / count


def noise_of(negative: str, number: int, shape: Sequence[int], seed: int) -> Tensor:
    """ε of a draw, fp32."""
    return draws.noise(shape, seed, negative, number, "negative noise")
