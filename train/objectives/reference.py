"""What the reference checkpoint lost on the negatives, at fixed draws: then it need not stay in memory.

Each negative has ``draws`` fixed pairs (σ, ε), a pure function of its id, so the cached losses are those of the very
noise that training uses. A table per reference and setting lies in RUN/negatives/<stage>/ref_cache/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from configs.errors import EchoForgeError
from configs.runtime import disk
from configs.runtime.shown import one_line
from model import flow
from train import rng
from train.checkpoints import files
from train.config import NegativeConfig

SCHEMA = pa.schema(
    [("negative_id", pa.string()), ("draw", pa.int32()), ("negative", pa.float64()), ("positive", pa.float64())]
)
Losses = tuple[Tensor, Tensor]
"""(of the negatives, of the real videos under the same conditions), each fp32 [B]."""


class Cache:
    """Losses of the reference by (negative, draw).

    Args:
        where: the file, for errors.
    """

    def __init__(self, table: pa.Table, where: Path) -> None:
        rows = zip(*(table.column(name).to_pylist() for name in SCHEMA.names), strict=True)
        self._losses = {(name, draw): (negative, positive) for name, draw, negative, positive in rows}
        self._where = where

    def negative(self, ids: Sequence[str], number: Sequence[int]) -> Tensor:
        """ℓ_ref of the negatives, fp32 [B]."""
        return self._losses_of(ids, number)[:, 0]

    def positive(self, ids: Sequence[str], number: Sequence[int]) -> Tensor:
        """ℓ_ref of the real videos, fp32 [B]."""
        return self._losses_of(ids, number)[:, 1]

    def _losses_of(self, ids: Sequence[str], number: Sequence[int]) -> Tensor:
        try:
            found = [self._losses[key] for key in zip(ids, number, strict=True)]
            return torch.tensor(found, dtype=torch.float32).view(-1, 2)
        except (KeyError, TypeError) as error:  # a row is missing; a loss is null
            raise _damaged(self._where, "a loss is missing") from error


def _damaged(path: Path, why: object) -> EchoForgeError:
    return EchoForgeError(
        f"the reference's losses in {path} cannot be used ({one_line(why)[:300]}); "
        "delete the file, and the same command computes them again."
    )


def draw(
    negative: str, number: int, count: int, shape: Sequence[int], shift: float, cfg: NegativeConfig
) -> tuple[float, Tensor]:
    """σ in [t_min, t_max] and ε [shape] of draw ``number``; the first ``count`` draws are stratified over σ."""
    u = (number % count + rng.uniform(0, negative, number, "reference sigma")) / count
    shifted = float(flow.shift_sigma(torch.tensor(u, dtype=torch.float64), shift))
    sigma = cfg.t_min + (cfg.t_max - cfg.t_min) * shifted
    return sigma, rng.noise(shape, 0, negative, number, "reference noise")


def write(path: Path, ids: Iterable[Sequence[str]], count: int, losses: Callable[[Sequence[str], int], Losses]) -> None:
    """Compute and store the losses of all negatives (atomic).

    Args:
        ids: batches of negative ids, in the order in which ``losses`` is to see them.
        losses: (ids of a batch, draw number) → the reference's losses.
    """
    rows = []
    for batch in ids:
        for number in range(count):
            bad, real = losses(batch, number)
            rows += [(i, number, float(b), float(r)) for i, b, r in zip(batch, bad, real, strict=True)]
    table = pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)],
        schema=SCHEMA,
    )
    with disk.replacing(path) as part:
        pq.write_table(table, part, write_page_checksum=True)


def read(path: Path) -> Cache:
    """The table that :func:`write` made.

    Raises:
        EchoForgeError: it is damaged.
    """
    try:
        with files.open_binary(path) as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read()
        return Cache(table.select(SCHEMA.names).cast(SCHEMA), path)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, files.reason(error) if isinstance(error, OSError) else error) from error
