"""What a dataset holds, in figures: hours, samples by split and bucket, bytes by field, terabytes for 1,500 hours."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from configs.dataset_schema import scores
from curation.schema import FPS
from pipeline.dataset.files import read_index


@dataclass(frozen=True)
class Histogram:
    """How a score is spread; None where nothing was measured. ``counts``: in eight equal steps from min to max."""

    measured: int
    min: float | None = None
    median: float | None = None
    max: float | None = None
    counts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Totals:
    """What an index adds up to."""

    samples: int
    hours: float
    videos: int
    tars: int
    bytes: int
    samples_by_split: dict[str, int]
    samples_by_bucket: dict[str, int]
    samples_by_verdict: dict[str, int]
    bytes_by_field: dict[str, int]  # the largest first
    terabytes_per_1500_hours: float
    scores: dict[str, Histogram]


def stats(dataset: str) -> Totals:
    """:func:`stats_of` the index of ``dataset``."""
    return stats_of(read_index(dataset))


def stats_of(table: pa.Table) -> Totals:
    """Totals of an index."""
    frames = sum(table["F"].to_pylist())
    hours = frames / FPS / 3600
    fields: Counter[str] = Counter()
    tars: set[str] = set()
    counted: set[tuple[str, int]] = set()  # captions that several samples share
    total = 0
    for tensors, members in zip(table["tensors"].to_pylist(), table["members"].to_pylist(), strict=True):
        own = {member["tar"] for member in members}
        for tensor in tensors:
            tars.add(tensor["tar"])
            if (place := (tensor["tar"], tensor["offset"])) not in counted:
                counted.add(place)
                fields[_field(tensor["name"])] += tensor["length"]
                total += 0 if tensor["tar"] in own else tensor["length"] + 2048  # with its tar and safetensors headers
        for member in members:
            total += -(-member["length"] // 512) * 512 + 512  # a tar pads to 512 and heads with 512
            if member["ext"] != "safetensors":
                fields[f".{member['ext']}"] += member["length"]
    return Totals(
        samples=table.num_rows,
        hours=round(hours, 4),
        videos=len(set(table["video_id"].to_pylist())),
        tars=len(tars),
        bytes=total,
        samples_by_split=dict(sorted(Counter(table["split"].to_pylist()).items())),
        samples_by_bucket=dict(sorted(Counter(table["bucket"].to_pylist()).items())),
        samples_by_verdict=dict(sorted(Counter(map(str, table["verdict"].to_pylist())).items())),
        bytes_by_field=dict(fields.most_common()),
        terabytes_per_1500_hours=round(total / max(hours, 1e-9) * 1500 / 1e12, 4),
        scores={name: _histogram(table[name].to_pylist()) for name in scores(table.schema)},
    )


def described(totals: Totals) -> list[tuple[str, str]]:
    """Totals as rows for a person: (what, how much)."""
    rows = [
        ("samples", f"{totals.samples} ({totals.hours:.2f} h) of {totals.videos} videos"),
        (
            "tars",
            f"{totals.tars}, {totals.bytes / 1e6:.1f} MB; {totals.terabytes_per_1500_hours:.2f} TB for 1,500 h",
        ),
    ]
    counts = {
        "split": totals.samples_by_split,
        "bucket": totals.samples_by_bucket,
        "verdict": totals.samples_by_verdict,
    }
    for name, held in counts.items():
        rows.append((f"by {name}", "\n".join(f"{count:>8}  {value}" for value, count in held.items())))
    samples = max(totals.samples, 1)
    fields = totals.bytes_by_field.items()
    rows.append(("kB a sample", "\n".join(f"{size / samples / 1e3:>8.1f}  {name}" for name, size in fields)))
    for name, item in totals.scores.items():
        known = [(what, getattr(item, what)) for what in ("min", "median", "max")]
        shown = ", ".join(f"{what} {value:.3g}" for what, value in known if value is not None)
        rows.append((name, f"{shown} ({item.measured} samples)" if shown else "not measured"))
    return rows


def _field(name: str) -> str:
    return "text" if name.startswith("text.") else name


def _histogram(values: list[float | None], bins: int = 8) -> Histogram:
    known = sorted(v for v in values if v is not None and math.isfinite(v))
    if not known:
        return Histogram(0)
    low, high = known[0], known[-1]
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in known:
        counts[min(int((value - low) / width), bins - 1)] += 1
    return Histogram(len(known), low, known[len(known) // 2], high, tuple(counts))
