"""The negatives of a stage: which generated samples count, under which conditions, and what the reference lost on them.

A negative is learnt from under the conditions that it was generated with: the stored sample's tensors (and another
sample's sound where ``audio_source`` names one), the recorded task, nothing dropped, and never the text of the issue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from configs import members, reviews
from configs.dataset_schema import NEGATIVES
from configs.errors import EchoForgeError
from configs.runtime.shown import one_line
from train import stages
from train.checkpoints import files
from train.config import LoaderConfig
from train.data.index import SampleIndex, read_samples

FOLDER = "negatives"
SAMPLES_FILE = "samples.parquet"
CACHE_FOLDER = "ref_cache"
_AGAIN = f"delete {SAMPLES_FILE} and gather again (`negatives gather`)"


@dataclass(frozen=True)
class Gathered:
    """What the table of a stage says of one generated sample, unchecked."""

    negative_id: str
    sample_id: str | None
    audio_source: str | None
    task: str | None
    latents_path: str | None


@dataclass(frozen=True)
class Negative:
    """One generated sample that was judged bad. ``frames`` are the bad video frames (`reviews.Frames`), None = all."""

    negative_id: str
    sample_id: str
    audio_source: str
    task: str
    issue: str
    latents: Path
    frames: reviews.Frames | None


def folder(run: Path, stage: str) -> Path:
    """Where the negatives of a stage lie. Raises ConfigError where a stage cannot be called so."""
    return run / FOLDER / stages.check_name(stage)


def gathered(run: Path, stage: str) -> bool:
    """Are the samples of a `negatives` stage there? (The table appears whole, as the last file.)"""
    return (folder(run, stage) / SAMPLES_FILE).is_file()


def read(run: Path, stage: str, issues: Sequence[str], *, accept_flags: bool) -> list[Negative]:
    """The negatives of a stage, in the order of their ids.

    What the reviews add up to is the rule of `configs.reviews`.

    Args:
        issues: only negatives of these issues; none: all.
        accept_flags: a flagged sample that nobody reviewed is negative.

    Raises:
        EchoForgeError: a table is damaged, or no negative is left.
    """
    where = folder(run, stage)
    table = _table(where / SAMPLES_FILE, NEGATIVES)
    judged = reviews.judgements(table, reviews.read(where), accept_flags=accept_flags)
    columns = [table.column(field.name).to_pylist() for field in fields(Gathered)]
    rows = [Gathered(*values) for values in zip(*columns, strict=True)]
    found: list[Negative] = []
    for row in rows:
        judgement = judged[row.negative_id]
        if judgement.verdict == "negative" and (not issues or judgement.issue in issues):
            found.append(_negative(row, judgement, where))
    if not found:
        wanted = f" with issue {', '.join(issues)}" if issues else ""
        raise EchoForgeError(
            f"stage '{stage}' has {len(rows)} samples and no negative{wanted}; review them "
            "(`negatives review`), or take the ndpo stage out."
        )
    return sorted(found, key=lambda n: n.negative_id)


def _negative(row: Gathered, judgement: reviews.Judgement, where: Path) -> Negative:
    if not (row.sample_id and row.task and row.latents_path):
        empty = next(name for name in ("sample_id", "task", "latents_path") if not getattr(row, name))
        raise EchoForgeError(f"negative {row.negative_id} of {where} has no {empty}; {_AGAIN}.")
    name = one_line(row.latents_path)[:200]
    try:
        path = members.check(where, row.latents_path)
        there = path.exists()
    except members.BadMember as error:
        raise EchoForgeError(f"negative {row.negative_id} has no latents at {name} ({error}); {_AGAIN}.") from error
    if not there:
        raise EchoForgeError(f"negative {row.negative_id} has no latents at {name}; {_AGAIN}.")
    source = row.audio_source or row.sample_id
    issue = judgement.issue or "other"
    return Negative(row.negative_id, row.sample_id, source, row.task, issue, path, judgement.frames)


def _table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        with files.open_binary(path) as file:
            table = pq.ParquetFile(file).read().select(schema.names).cast(schema)
        return table
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        why = files.reason(error) if isinstance(error, OSError) else one_line(error)[:300]
        raise EchoForgeError(f"the table {path.name} of {path.parent} cannot be read ({why}); {_AGAIN}.") from error


def condition_index(dataset: str | Path, loader: LoaderConfig, negatives: Sequence[Negative]) -> SampleIndex:
    """An index with one row per negative (its id in ``sample_id``), so that the ordinary loader reads their conditions.

    Raises:
        EchoForgeError: a sample that a negative was generated from is no longer in the dataset, or the dataset cannot be
            read.
    """
    wanted = {name for n in negatives for name in (n.sample_id, n.audio_source)}
    found = read_samples(dataset, wanted, keep=loader.keep)
    rows = {sample: row for row, sample in enumerate(found.column("sample_id").to_pylist())}
    for negative in negatives:
        for sample in (negative.sample_id, negative.audio_source):
            if sample not in rows:
                raise EchoForgeError(
                    f"negative {negative.negative_id} was generated from sample {sample}, which the dataset no longer keeps."
                )
    video = found.take([rows[n.sample_id] for n in negatives])
    sound = found.take([rows[n.audio_source] for n in negatives])
    table = _replaced(video, "sample_id", [n.negative_id for n in negatives])
    table = _replaced(table, "audio", sound.column("audio"))
    table = _replaced(table, "tensors", _with_sound(video.column("tensors"), sound.column("tensors")))
    buckets = np.asarray(table.column("bucket").to_pylist())
    digest = hashlib.sha256("\n".join(n.negative_id for n in negatives).encode()).hexdigest()[:16]
    members = {str(name): np.flatnonzero(buckets == name) for name in sorted(set(buckets))}
    return SampleIndex(str(dataset).rstrip("/"), "negatives", digest, table, members)


def _replaced(table: pa.Table, name: str, values: Sequence[object] | pa.ChunkedArray) -> pa.Table:
    """``table`` with other values in the column ``name``."""
    field = table.schema.field(name)
    column = values if isinstance(values, pa.ChunkedArray) else pa.array(values, field.type)
    return table.set_column(table.schema.get_field_index(name), field, column)


def _with_sound(video: pa.ChunkedArray, sound: pa.ChunkedArray) -> list[object]:
    """Row by row the tensors of ``video``, those of the sound taken from ``sound``."""
    both = zip(video.to_pylist(), sound.to_pylist(), strict=True)
    return [
        [t for t in own or [] if not t["name"].startswith("audio.")]
        + [t for t in other or [] if t["name"].startswith("audio.")]
        for own, other in both
    ]


def latents(negative: Negative, shape: Sequence[int]) -> Tensor:
    """The sampled video [C, T, h, w] fp32, as the sampler left it.

    Args:
        shape: that of the real video's latents.

    Raises:
        EchoForgeError: the file is damaged, holds no ``latents``, or those of another size.
    """
    try:
        found = load_file(negative.latents)["latents"].float()
    except Exception as error:
        raise EchoForgeError(
            f"latents of negative {negative.negative_id} cannot be read ({one_line(error)[:300]}); {_AGAIN}."
        ) from error
    if tuple(found.shape) != tuple(shape):
        raise EchoForgeError(
            f"latents of negative {negative.negative_id} are {list(found.shape)}, its real video's {list(shape)}; {_AGAIN}."
        )
    return found


def frame_mask(negative: Negative, latent_frames: int) -> Tensor:
    """1 for the latent frames that the issue touches, fp32 [T]; latent j > 0 stands for video frames 4j−3 … 4j."""
    if negative.frames is None:
        return torch.ones(latent_frames)
    mask = torch.zeros(latent_frames)
    for j in range(latent_frames):
        first, last = (0, 1) if j == 0 else (4 * j - 3, 4 * j + 1)
        mask[j] = float(any(first < (last if end is None else end) and last > start for start, end in negative.frames))
    return mask
