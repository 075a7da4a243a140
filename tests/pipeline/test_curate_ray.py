"""Real videos through real operators: in this process and on Ray the catalogs are the same, row for row."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from configs import schema
from curation import puppets
from pipeline.catalog.curate import curate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    found = [row for file in sorted((out / name).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return sorted(found, key=lambda row: (row["source_uri"], row.get("start_frame", 0)))


def test_inline_equals_ray_on_whole_cpus_and_on_shares_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: the workers are of this machine, and the operators see the same pictures and sound."""
    import ray

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # Ray claims no GPU that is hidden
    config = schema.load("tiny", ["sync.required=false", "execution.curate.gpus=0.5", "execution.curate.memory_mb=900"])
    videos = tmp_path / "videos"
    puppets.make(videos, 4, 11, config.curation.puppets, False)
    first = next(videos.glob("*.mp4"))
    shutil.copy(first, videos / '-it\'s "a"\n$(copy) 日本.mp4')
    (videos / "broken.mp4").write_bytes(first.read_bytes()[:2000])
    curate([str(videos)], str(tmp_path / "inline"), config, inline=True, quiet=True)
    # Half a GPU each: two workers lie on the one GPU that this Ray claims to have.
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, object_store_memory=80 << 20)
    try:
        curate([str(videos)], str(tmp_path / "ray"), config, quiet=True)
    finally:
        ray.shutdown()
    for name in ("videos", "clips"):
        assert rows(tmp_path / "inline", name) and rows(tmp_path / "inline", name) == rows(tmp_path / "ray", name)
