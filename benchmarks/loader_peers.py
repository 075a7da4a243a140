"""Our loader beside webdataset's own and mosaicml-streaming, on the same samples: `python -m benchmarks.loader_peers`.

All read the same cold dataset of real size with the same number of readers (threads here, worker processes there),
shuffled, to ready batches of tensors. The peers decode whole samples; ours reads the fields that the tasks need and
checks the digest of every tensor, which theirs do not. mosaicml-streaming pins old versions of packages that this
project uses, so it is measured in a Python of its own: ``--mosaic-python /path/to/python`` (it needs torch, safetensors
and mosaicml-streaming); without it, the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.loader import BUCKET, config, drop_pages
from benchmarks.synthetic_shards import REAL, write_dataset
from train.data.loader import Loader

MOSAIC = """
import json, os, sys, time
from pathlib import Path
from safetensors.torch import load
from torch.utils.data import DataLoader
from streaming import MDSWriter, StreamingDataset

source, target, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if not Path(target).exists():
    with MDSWriter(out=target, columns={"key": "str", "tensors": "bytes"}, hashes=[], size_limit=2**27) as out:
        for file in sorted(source.glob("*.safetensors")):
            out.write({"key": file.stem, "tensors": file.read_bytes()})

class Samples(StreamingDataset):
    def __getitem__(self, index):
        return load(super().__getitem__(index)["tensors"])


for path in Path(target).glob("*.mds"):
    fd = os.open(path, os.O_RDONLY); os.fsync(fd); os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED); os.close(fd)
data = Samples(local=target, shuffle=True, batch_size=1)
loader = DataLoader(data, batch_size=1, num_workers=workers, collate_fn=lambda items: items[0])
begin, count, size = time.perf_counter(), 0, 0
for item in loader:
    count += 1
    size += sum(t.numel() * t.element_size() for t in item.values())
print(json.dumps({"samples": count, "bytes": size, "seconds": time.perf_counter() - begin}))
"""


def ours(root: Path, readers: int) -> tuple[int, int, float]:
    """Samples, bytes and seconds of one cold pass."""
    drop_pages(root)
    begin, count, size = time.perf_counter(), 0, 0
    with Loader(root, config(readers, 4), seed=0, tasks=("i2v", "flf2v"), once=True, pin=False) as loader:
        for batch in loader:
            count += len(batch)
            size += sum(t.numel() * t.element_size() for t in batch.tensors.values())
    return count, size, time.perf_counter() - begin


def _decoded(stream: Any) -> Iterator[Any]:
    from safetensors.torch import load

    for sample in stream:
        yield load(sample["safetensors"])


def webdataset(root: Path, readers: int) -> tuple[int, int, float]:
    """The same with webdataset's loader: shards and samples shuffled, ``readers`` worker processes."""
    import webdataset as wds

    drop_pages(root)
    tars = sorted(map(str, root.rglob("*.tar")))
    stream = wds.WebDataset(tars, shardshuffle=len(tars), seed=0, workersplitter=wds.split_by_worker).shuffle(8)
    begin, count, size = time.perf_counter(), 0, 0
    for tensors in wds.WebLoader(stream.compose(_decoded), batch_size=None, num_workers=readers):
        count += 1
        size += sum(t.numel() * t.element_size() for t in tensors.values())
    return count, size, time.perf_counter() - begin


def mosaic(samples: Path, target: Path, readers: int, python: str) -> tuple[int, int, float]:
    """The same with mosaicml-streaming in the Python named; the conversion to its format is not counted."""
    done = subprocess.run(
        [python, "-c", MOSAIC, str(samples), str(target), str(readers)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"mosaicml-streaming failed in {python}: {done.stderr.strip().splitlines()[-1:]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return answer["samples"], answer["bytes"], answer["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--readers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mosaic-python", help="a Python that has mosaicml-streaming")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        root, loose = Path(folder) / "dataset", Path(folder) / "samples"
        root.mkdir()
        write_dataset(root, {BUCKET: args.samples}, sizes=REAL, per_tar=8)
        ways: dict[str, Any] = {"ours": lambda: ours(root, args.readers)}
        ways["webdataset"] = lambda: webdataset(root, args.readers)
        if args.mosaic_python:
            loose.mkdir()
            for tar in root.rglob("*.tar"):
                with tarfile.open(tar) as archive:
                    for member in archive:
                        if member.name.endswith(".safetensors"):
                            (loose / member.name).write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
            ways["mosaicml-streaming"] = lambda: mosaic(loose, Path(folder) / "mds", args.readers, args.mosaic_python)
        seen: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, way in ways.items():
                count, size, seconds = way()
                assert count == args.samples, f"{name} gave {count} samples"
                seen[name].append(size / seconds / 1e6)
    speeds = {name: round(statistics.median(values), 1) for name, values in seen.items()}
    result = {
        "bucket": BUCKET, "samples": args.samples, "readers": args.readers, "mb_per_s_cold": speeds,
        "ours_times_as_fast": {name: round(speeds["ours"] / speed, 2) for name, speed in speeds.items() if name != "ours"},
        "not_measured": [] if args.mosaic_python else ["mosaicml-streaming: no --mosaic-python"],
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
