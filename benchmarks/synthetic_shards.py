"""A dataset of random tensors in the real format, for tests and for measuring the loader: no video, no encoder."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from configs.dataset_schema import INDEX, INDEX_FILE
from pipeline.dataset.index import scan
from pipeline.dataset.tar import ShardSample, write_tar


@dataclass(frozen=True)
class Sizes:
    """Widths of the tensors. Defaults: the tiny preset."""

    channels: int = 16
    text_dim: int = 64
    text_len: int = 12
    captions: int = 2
    image: tuple[int, int] = (17, 48)
    audio: tuple[int, ...] = (32,)
    tokens_per_frame: int = 2
    context: int = 8  # audio rows before and after the clip


REAL = Sizes(text_dim=4096, text_len=120, captions=1, image=(257, 1280), audio=(5, 384), context=8)
"""The sizes of the released models: umT5-xxl, CLIP ViT-H, Whisper-tiny."""


def sample_tensors(sample_id: str, bucket: str, sizes: Sizes) -> dict[str, torch.Tensor]:
    """Random tensors of one sample of ``bucket`` (``WxHxF``), the same for the same id."""
    width, height, frames = (int(v) for v in bucket.split("x"))
    t, h, w, c = 1 + (frames - 1) // 4, height // 8, width // 8, sizes.channels
    seed = int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:7], "little")
    gen = torch.Generator().manual_seed(seed)
    rows = sizes.context * 2 + frames * sizes.tokens_per_frame
    shapes = {
        "latents": (c, t, h, w),
        "cond_i2v": (c, t - 1, h, w),
        "cond_flf2v_last": (c, 1, h, w),
        "image": sizes.image,
        "audio.whisper": (rows, *sizes.audio),
    } | {f"text.{k}": (sizes.text_len - k, sizes.text_dim) for k in range(sizes.captions)}
    tensors = {n: torch.randn(s, generator=gen).to(torch.bfloat16) for n, s in shapes.items()}
    box = torch.tensor([0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height])
    patches = -(-(height // 16) * (width // 16) // 8)
    for part in ("face", "mouth"):
        tensors[f"{part}_boxes"] = box.repeat(frames, 1)
        tensors[f"{part}_mask"] = torch.randint(0, 256, (frames, patches), generator=gen, dtype=torch.uint8)
    return tensors


def write_dataset(
    root: Path,
    counts: Mapping[str, int],
    *,
    per_tar: int = 4,
    split: str = "train",
    sizes: Sizes | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    start: int = 0,
) -> pa.Table:
    """Write ``counts[bucket]`` samples per bucket and the index. ``columns`` overrides index columns, row by row.

    Returns:
        The index, its rows in the order written.
    """
    sizes = sizes or Sizes()
    parts: list[pa.Table] = []
    for bucket, count in counts.items():
        ids = [hashlib.sha256(f"{bucket}:{split}:{start + k}".encode()).hexdigest()[:16] for k in range(count)]
        folder = root / "gen-000" / bucket
        folder.mkdir(parents=True, exist_ok=True)
        for number, first in enumerate(range(0, count, per_tar), start=len(list(folder.glob("*.tar")))):
            path = folder / f"shard-{number:06d}.tar"
            stream = io.BytesIO()
            write_tar(
                stream,
                (ShardSample(i, sample_tensors(i, bucket, sizes), _files(i)) for i in ids[first : first + per_tar]),
            )
            path.write_bytes(stream.getbuffer())
            parts.append(_rows(root, path, ids[first : first + per_tar], bucket, split, sizes))
    table = pa.concat_tables(parts)
    for name, values in (columns or {}).items():
        field = INDEX.field(name)
        table = table.set_column(INDEX.get_field_index(name), field, pa.array(values, field.type))
    pq.write_table(table.sort_by("sample_id"), root / INDEX_FILE)
    return table


def _files(sample_id: str) -> dict[str, bytes]:
    return {"json": json.dumps({"sample_id": sample_id}).encode(), "txt": b"a person talks"}


def _rows(root: Path, path: Path, ids: Sequence[str], bucket: str, split: str, sizes: Sizes) -> pa.Table:
    """The rows of the index for the samples of one tar."""
    with path.open("rb") as file:
        found = scan(file, path.relative_to(root).as_posix())
    width, height, frames = (int(v) for v in bucket.split("x"))
    same = {
        "bucket": bucket,
        "split": split,
        "generation": "gen-000",
        "F": frames,
        "H": height,
        "W": width,
        "n_captions": sizes.captions,
        "text_lens": [sizes.text_len - k for k in range(sizes.captions)],
        "tier": "normal",
        "verdict": "keep",
        "audio": [
            {
                "variant": "whisper",
                "tokens_per_frame": float(sizes.tokens_per_frame),
                "frame0": sizes.context,
                "valid_from": 2,
                "valid_to": sizes.context * 2 + frames * sizes.tokens_per_frame,
            }
        ],
    }
    rows = [{"sample_id": id_, "clip_id": id_, "video_id": id_, **same, **asdict(found[id_])} for id_ in ids]
    return pa.Table.from_pylist(rows, schema=INDEX)
