"""Hostile tars are refused and nothing in them runs; verify names what is wrong; merge and split copy bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from safetensors.torch import save

from benchmarks.synthetic_shards import Sizes, sample_tensors, write_dataset
from configs.dataset_schema import INDEX_FILE
from configs.errors import EchoForgeError
from pipeline.dataset import edit
from pipeline.dataset.index import BadShard, scan
from pipeline.dataset.tar import ShardSample, write_tar
from pipeline.dataset.verify import verify
from train.data.streaming import stream


class Bomb:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:  # type: ignore[type-arg]
        return os.mkdir, (str(self.mark),)


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out


def special(kind: bytes, name: str = "abc.json", target: str = "/etc/passwd") -> io.BytesIO:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return tar_of((info, b""))


def header(entry: dict[str, object], data: bytes = b"") -> bytes:
    text = json.dumps({"latents": entry}).encode()
    return len(text).to_bytes(8, "little") + text + data


HOSTILE: dict[str, io.BytesIO] = {
    "symlink": special(tarfile.SYMTYPE),
    "hard link": special(tarfile.LNKTYPE),
    "device": special(tarfile.CHRTYPE),
    "pipe": special(tarfile.FIFOTYPE),
    "directory": special(tarfile.DIRTYPE),
    "parent name": tar_of((tarfile.TarInfo("../abc.json"), b"{}")),
    "absolute name": tar_of((tarfile.TarInfo("/abc.json"), b"{}")),
    "nested name": tar_of((tarfile.TarInfo("a/b.json"), b"{}")),
    "pickle member": tar_of((tarfile.TarInfo("abc.pyd"), b"x")),
    "twice": tar_of((tarfile.TarInfo("abc.json"), b"{}"), (tarfile.TarInfo("abc.json"), b"{}")),
    "no tar": io.BytesIO(b"\x80\x04" + b"x" * 2000),
    "cut": io.BytesIO(tar_of((tarfile.TarInfo("abc.flac"), b"x" * 4000)).getvalue()[:2000]),
    "not safetensors": tar_of((tarfile.TarInfo("abc.safetensors"), pickle.dumps({"a": 1}))),
    "huge header": tar_of((tarfile.TarInfo("abc.safetensors"), (2**62).to_bytes(8, "little") + b"{}")),
    "bomb": tar_of(
        (tarfile.TarInfo("abc.safetensors"), header({"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}))
    ),
    "wrong size": tar_of(
        (tarfile.TarInfo("abc.safetensors"), header({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, bytes(8)))
    ),
    "object dtype": tar_of(
        (
            tarfile.TarInfo("abc.safetensors"),
            header({"dtype": "object", "shape": [1], "data_offsets": [0, 8]}, bytes(8)),
        )
    ),
}


@pytest.mark.parametrize("stream", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_tars_are_refused_in_one_sentence(stream: io.BytesIO) -> None:
    with pytest.raises(BadShard) as error:
        scan(stream, "gen-000/x/shard-000000.tar")
    assert "\n" not in str(error.value) and "shard-000000" in str(error.value)


def test_writing_is_deterministic_and_refuses_nan() -> None:
    tensors = sample_tensors("a", "64x64x9", Sizes())
    first, second = io.BytesIO(), io.BytesIO()
    write_tar(first, [ShardSample("a", tensors, {"txt": b"x", "json": b"{}"})])
    write_tar(second, [ShardSample("a", dict(reversed(tensors.items())), {"json": b"{}", "txt": b"x"})])
    assert first.getvalue() == second.getvalue()
    tensors["latents"][0, 0, 0, 0] = torch.inf
    with pytest.raises(EchoForgeError, match="sample a: tensor 'latents'"):
        write_tar(io.BytesIO(), [ShardSample("a", tensors)])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "dataset"
    root.mkdir()
    ids = write_dataset(root, {"64x64x9": 6}, per_tar=2)["sample_id"].to_pylist()
    for path in sorted(root.rglob("*.tar")):  # `.json` members that name their sample, as `shard` writes them
        names = sorted({n.split(".")[0] for n in tarfile.open(path).getnames()}, key=ids.index)  # noqa: SIM115
        with path.open("wb") as file:
            write_tar(
                file,
                [
                    ShardSample(
                        i,
                        sample_tensors(i, "64x64x9", Sizes()),
                        {"json": json.dumps({"sample_id": i}).encode(), "txt": b"hello"},
                    )
                    for i in names
                ],
            )
    rows = pq.read_table(root / INDEX_FILE)
    found = {}
    for path in root.rglob("*.tar"):
        with path.open("rb") as file:
            found |= scan(file, path.relative_to(root).as_posix())
    updated = [row | asdict(found[row["sample_id"]]) for row in rows.to_pylist()]
    pq.write_table(type(rows).from_pylist(updated, schema=rows.schema), root / INDEX_FILE)
    return root


def test_verify_is_content_with_what_was_written(dataset: Path) -> None:
    report = verify(str(dataset))
    assert report.ok, str(report)
    assert report.samples == 6 and report.tars == 3 and report.tensors == 6 * 11


def flip(dataset: Path, tar: Path, offset: int) -> None:
    data = bytearray(tar.read_bytes())
    data[offset] ^= 1
    tar.write_bytes(data)


def damaged_tensor(dataset: Path) -> str:
    row = pq.read_table(dataset / INDEX_FILE).to_pylist()[3]
    ref = next(t for t in row["tensors"] if t["name"] == "cond_i2v")
    flip(dataset, dataset / ref["tar"], ref["offset"] + 5)
    return f"{row['sample_id']}: tensor 'cond_i2v' differs from the index in sha256"


def missing(dataset: Path) -> str:
    row = pq.read_table(dataset / INDEX_FILE).to_pylist()[0]
    (dataset / row["tensors"][0]["tar"]).unlink()
    return f"{row['sample_id']}: the tar is missing"


def nan(dataset: Path) -> str:
    table = pq.read_table(dataset / INDEX_FILE)
    rows = table.to_pylist()
    ref = next(t for t in rows[1]["tensors"] if t["name"] == "latents")
    data = bytearray((dataset / ref["tar"]).read_bytes())
    data[ref["offset"] : ref["offset"] + 2] = b"\xc0\x7f"
    (dataset / ref["tar"]).write_bytes(data)
    changed = data[ref["offset"] : ref["offset"] + ref["length"]]
    ref["sha256"], ref["xxh3"] = hashlib.sha256(changed).hexdigest()[:16], xxhash.xxh3_64_hexdigest(changed)
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), dataset / INDEX_FILE)
    return f"{rows[1]['sample_id']}: tensor 'latents' holds NaN"


def two_splits(dataset: Path) -> str:
    table = pq.read_table(dataset / INDEX_FILE)
    rows = table.to_pylist()
    rows[1] |= {"video_id": rows[0]["video_id"], "split": "val"}
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), dataset / INDEX_FILE)
    return f"{rows[1]['sample_id']}: video {rows[0]['video_id']} is in the splits train and val"


@pytest.mark.parametrize("damage", [damaged_tensor, missing, nan, two_splits], ids=lambda f: f.__name__)
def test_verify_names_what_is_wrong(dataset: Path, damage: Callable[[Path], str]) -> None:
    expected = damage(dataset)
    report = verify(str(dataset))
    assert not report.ok and expected in str(report)
    assert expected.split(":")[0] in report.bad_samples


def test_streaming_reads_the_same_samples_and_runs_no_pickle(dataset: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    tar = next(dataset.rglob("*.tar"))
    with tarfile.open(tar, "a") as file:
        for name in ("evil.pyd", "evil.pickle", "evil.pth"):
            data = pickle.dumps(Bomb(mark))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    found = {item.sample_id: item for item in stream(dataset, shuffle=3)}
    assert set(found) == set(pq.read_table(dataset / INDEX_FILE)["sample_id"].to_pylist()) and not mark.exists()
    some = next(iter(found))
    assert torch.equal(found[some].tensors["latents"], sample_tensors(some, "64x64x9", Sizes())["latents"])
    assert not verify(str(dataset)).ok


def describe(root: Path, digest: str = "d") -> Path:
    (root / "dataset.json").write_text(json.dumps({"encoders": {"codec": {"name": "x", "digest": digest}}}))
    (root / "prompts.safetensors").write_bytes(save({"null": torch.zeros(1, 64)}))
    return root


def test_merge_and_split_copy_bytes(tmp_path: Path) -> None:
    parts = [tmp_path / "a", tmp_path / "b"]
    for root, split, start in ((parts[0], "train", 0), (parts[1], "val", 4)):
        root.mkdir()
        write_dataset(root, {"64x64x9": 4}, split=split, start=start)
        describe(root)
    out = tmp_path / "both"
    assert edit.merge([str(p) for p in parts], str(out)) == 8
    problems = [p for p in verify(str(out)).problems if ".json" not in p.what]
    assert not problems
    copied = {p.read_bytes() for p in out.rglob("*.tar")}
    assert copied == {p.read_bytes() for part in parts for p in part.rglob("*.tar")}
    assert edit.split(str(out), str(tmp_path / "val"), splits=["val"]) == 4
    assert set(pq.read_table(tmp_path / "val" / INDEX_FILE)["split"].to_pylist()) == {"val"}
    with pytest.raises(EchoForgeError, match="already"):
        edit.split(str(out), str(tmp_path / "val"), splits=["val"])
    describe(parts[1], "other")
    with pytest.raises(EchoForgeError, match="other encoders"):
        edit.merge([str(p) for p in parts], str(tmp_path / "no"))
