"""A dataset from a stranger: its index, links and devices lead nobody out of the folder, and no claim costs memory."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from benchmarks import synthetic_shards
from benchmarks.synthetic_shards import write_dataset
from configs import schema
from configs.dataset_files import Damaged, Digests
from configs.dataset_schema import DATASET_FILE, DIGESTS_FILE, INDEX, INDEX_FILE, NEGATIVES, PROMPTS_FILE
from configs.errors import EchoForgeError
from configs.members import BadMember
from configs.reviews import Judgement
from curation.review import page
from pipeline.catalog import identity
from pipeline.dataset import edit as shards_edit
from pipeline.dataset import files
from pipeline.dataset.card import SHEET_FILE
from pipeline.dataset.inspect import inspect
from pipeline.dataset.stats import stats
from pipeline.dataset.verify import verify
from train.config import KeepConfig, LoaderConfig
from train.data import index, negatives
from train.data.index import open_index
from train.data.inputs import read_prompts
from train.data.loader import Loader
from train.data.streaming import stream
from workflows import gather_worker
from workflows.gather_worker import _captions

CONFIG = schema.load("tiny")
BUCKET = "64x64x9"


def make(root: Path, split: str = "train") -> Path:
    root.mkdir()
    write_dataset(root, {BUCKET: 2}, per_tar=2, split=split)
    encoders = {"codec": {"name": "x", "digest": "d"}}
    (root / DATASET_FILE).write_text(json.dumps({"encoders": encoders}))
    (root / PROMPTS_FILE).write_bytes(save({"null": torch.zeros(1, 64)}))
    return root


# ------------------------------------------------------------------------------------------------ readers


def load_all(root: Path, out: Path) -> None:
    cfg = LoaderConfig(KeepConfig(), 2, "whisper", "any", 1, 0, True, True, "stop", 0)
    with Loader(root, cfg, seed=0, once=True) as loader:
        list(loader)


def stream_all(root: Path, out: Path) -> None:
    if len(list(stream(root))) < 2:
        raise EchoForgeError("a sample was left out and named in the log.")


def captions(root: Path, out: Path) -> None:
    index = open_index(root, split="train", keep=KeepConfig())
    _captions(index, tuple(index.sample_ids([0, 1])))


def look(root: Path, out: Path) -> None:
    first = pq.read_table(root / INDEX_FILE, columns=["bucket"]).num_rows and _ids(root)[0]
    inspect(str(root), first, str(out), CONFIG.model)


def part(root: Path, out: Path) -> None:
    shards_edit.split(str(root), str(out))


def join(root: Path, out: Path) -> None:
    other = make(root.parent / "other", "val")
    shards_edit.merge([str(root), str(other)], str(out))


def check(root: Path, out: Path) -> None:
    report = verify(str(root))
    if not report.ok:
        raise EchoForgeError(str(report.problems[0]))


def figures(root: Path, out: Path) -> None:
    stats(str(root))


READERS = {f.__name__: f for f in (load_all, stream_all, captions, look, part, join, check)}


def _ids(root: Path) -> list[str]:
    ids: list[str] = pq.read_table(root / INDEX_FILE, columns=["sample_id"])["sample_id"].to_pylist()
    return ids


# ------------------------------------------------------------------------------------------------ names and what they lead to


def renamed(root: Path, name: str | None) -> None:
    """The index says ``name`` for every tar."""

    def change(row: dict[str, Any]) -> None:
        for item in [*row["tensors"], *row["members"]]:
            item["tar"] = name

    edit(root, change)


def edit(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    rows = pq.read_table(root / INDEX_FILE).to_pylist()
    for row in rows:
        change(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), root / INDEX_FILE)


def the_tar(root: Path) -> Path:
    return next(root.rglob("*.tar"))


def outside(root: Path) -> Path:
    """The tar, moved out of the dataset."""
    target = root.parent / "outside.tar"
    return the_tar(root).rename(target)


def link_in_the_middle(root: Path) -> None:
    (root / "gen-000").rename(root.parent / "gen")
    (root / "gen-000").symlink_to(root.parent / "gen")


def link_to(root: Path, target: str) -> None:
    tar = the_tar(root)
    tar.rename(root.parent / "outside.tar")
    tar.symlink_to(target)


def in_place(root: Path, make_it: Callable[[Path], object]) -> None:
    tar = the_tar(root)
    tar.unlink()
    make_it(tar)


def not_utf8(root: Path) -> None:
    """The bytes of a name in the file are replaced: Parquet stores what it is told to be text."""
    rows = pq.read_table(root / INDEX_FILE)
    pq.write_table(rows, root / INDEX_FILE, compression="none", use_dictionary=False)
    data = (root / INDEX_FILE).read_bytes()
    (root / INDEX_FILE).write_bytes(data.replace(b"gen-000/64x64x9/shard", b"gen-\xff\xfe0/64x64x9/shard"))


NAMES: dict[str, Callable[[Path], object]] = {
    "parent": lambda root: (outside(root), renamed(root, "../outside.tar")),
    "parent inside": lambda root: (outside(root), renamed(root, f"gen-000/{BUCKET}/../../../outside.tar")),
    "absolute": lambda root: renamed(root, str(outside(root))),
    "url": lambda root: renamed(root, f"file://{outside(root)}"),
    "chain": lambda root: renamed(root, f"x.tar::file://{outside(root)}"),
    "command": lambda root: renamed(root, "pipe:cat /etc/passwd.tar"),
    "drive": lambda root: renamed(root, r"C:\x.tar"),
    "backslash": lambda root: renamed(root, r"..\outside.tar"),
    "NUL": lambda root: renamed(root, "gen-000/a\x00b.tar"),
    "too long": lambda root: renamed(root, f"gen-000/{'a' * 300}.tar"),
    "much too long": lambda root: renamed(root, "a/" * 4000 + "b.tar"),
    "empty": lambda root: renamed(root, ""),
    "the folder": lambda root: renamed(root, "."),
    "missing": lambda root: the_tar(root).unlink(),
    "another file": lambda root: renamed(root, INDEX_FILE),
    "not UTF-8": not_utf8,
    "null": lambda root: renamed(root, None),
    "link in the middle": link_in_the_middle,
    "link as tar": lambda root: link_to(root, str(root.parent / "outside.tar")),
    "link to a device": lambda root: link_to(root, "/dev/zero"),
    "pipe": lambda root: in_place(root, os.mkfifo),
    "directory": lambda root: in_place(root, Path.mkdir),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize("damage", NAMES.values(), ids=NAMES.keys())
def test_no_name_leads_out_of_the_dataset(
    damage: Callable[[Path], object], reader: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    root, out = make(tmp_path / "dataset"), tmp_path / "out"
    damage(root)
    with pytest.raises(EchoForgeError) as error:
        reader(root, out)
    assert "\x00" not in str(error.value) and len(str(error.value)) < 100_000
    left = [path for path in out.rglob("*") if path.is_file()] if out.exists() else []
    assert not [path for path in left if path.suffix in (".tar", ".mp4") or path.name == INDEX_FILE]


# ------------------------------------------------------------------------------------------------ claims


def member(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda row: [item.update(values) for item in row["members"]] and None


def tensor(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda row: row["tensors"][0].update(values)


CLAIMS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a huge member": member(length=10**15),
    "a member at minus one": member(offset=-1),
    "a member past 64 bits": member(offset=2**62, length=2**62),
    "a huge tensor": tensor(length=2**50, shape=[2**24, 2**24, 4], dtype="U8"),
    "a tensor at minus eight": tensor(offset=-8),
    "a tensor over another": tensor(offset=0),
    "a shape with nothing": tensor(shape=None),
    "a length with nothing": tensor(length=None),
    "no tensors": lambda row: row.update(tensors=None),
    "a huge picture": lambda row: row.update(H=2**31 - 1, W=2**31 - 1),
    "a video of negative length": lambda row: row.update(F=-5),
    "an id that is a path": lambda row: row.update(sample_id=f"../{row['sample_id']}"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS.keys())
def test_no_claim_of_the_index_is_believed(claim: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    """Every reader ends in a result or in one sentence; nothing is written outside; verify finds each."""
    root = make(tmp_path / "dataset")
    edit(root, claim)  # type: ignore[arg-type]
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    refused = set()
    for name, reader in {**READERS, "figures": figures}.items():
        try:
            reader(root, tmp_path / "out" / name)
        except EchoForgeError as error:
            refused.add(name)
            assert "\n" not in str(error)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
    assert {"check"} <= refused and refused & {"load_all", "captions", "look"}
    assert before == sorted(path for path in tmp_path.rglob("*") if path.is_file())


def test_a_caption_number_beyond_all_captions_is_a_bad_sample(tmp_path: Path) -> None:
    root = make(tmp_path / "dataset")
    edit(root, lambda row: row.update(n_captions=2**31 - 1))
    with pytest.raises(EchoForgeError, match="text"):
        load_all(root, tmp_path)


def test_a_table_that_unpacks_to_more_than_it_can_mean_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path / "dataset")
    rows = pq.read_table(root / INDEX_FILE).slice(0, 1).to_pylist()
    rows[0]["text_lens"] = [0] * 1_000_000
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX), root / INDEX_FILE)
    assert (root / INDEX_FILE).stat().st_size < 100_000
    with pytest.raises(EchoForgeError, match="claims"):
        stats(str(root))


# ------------------------------------------------------------------------------------------------ small files


def write(name: str, data: bytes | str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(data.encode() if isinstance(data, str) else data)


def instead(name: str, make_it: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: ((root / name).unlink(), make_it(root / name))


def header(text: str, more: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + more


SMALL: dict[str, tuple[str, Callable[[Path], object]]] = {
    "index: nothing": (INDEX_FILE, write(INDEX_FILE, b"")),
    "index: garbage": (INDEX_FILE, write(INDEX_FILE, b"PAR1" + bytes(1000) + b"PAR1")),
    "index: cut": (INDEX_FILE, lambda root: os.truncate(root / INDEX_FILE, 3000)),
    "index: a pipe": (INDEX_FILE, instead(INDEX_FILE, os.mkfifo)),
    "index: a device": (INDEX_FILE, instead(INDEX_FILE, lambda path: path.symlink_to("/dev/zero"))),
    "index: a folder": (INDEX_FILE, instead(INDEX_FILE, Path.mkdir)),
    "index: other types": (
        INDEX_FILE,
        lambda root: pq.write_table(pa.table({name: [1] for name in INDEX.names}), root / INDEX_FILE),
    ),
    "json: nothing": (DATASET_FILE, write(DATASET_FILE, "")),
    "json: a list": (DATASET_FILE, write(DATASET_FILE, "[]")),
    "json: deep": (DATASET_FILE, write(DATASET_FILE, "[" * 200_000)),
    "json: other types": (DATASET_FILE, write(DATASET_FILE, '{"encoders": {"codec": 5}}')),
    "json: a number for a table": (DATASET_FILE, write(DATASET_FILE, '{"encoders": {}, "settings": 1e400}')),
    "json: not UTF-8": (DATASET_FILE, write(DATASET_FILE, b'{"encoders": {"\xff": 1}}')),
    "json: a device": (DATASET_FILE, instead(DATASET_FILE, lambda path: path.symlink_to("/dev/zero"))),
    "prompts: nothing": (PROMPTS_FILE, write(PROMPTS_FILE, b"")),
    "prompts: huge header": (PROMPTS_FILE, write(PROMPTS_FILE, (2**62).to_bytes(8, "little") + b"{}")),
    "prompts: a pickle": (PROMPTS_FILE, write(PROMPTS_FILE, b"\x80\x04\x95" + bytes(100))),
    "prompts: huge tensor": (
        PROMPTS_FILE,
        write(
            PROMPTS_FILE, header('{"null":{"dtype":"F32","shape":[1099511627776,64],"data_offsets":[0,4]}}', bytes(4))
        ),
    ),
    "prompts: no null": (PROMPTS_FILE, write(PROMPTS_FILE, save({"other": torch.zeros(1, 64)}))),
    "prompts: other shape": (PROMPTS_FILE, write(PROMPTS_FILE, save({"null": torch.zeros(64)}))),
    "prompts: a pipe": (PROMPTS_FILE, instead(PROMPTS_FILE, os.mkfifo)),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("name", "damage"), SMALL.values(), ids=SMALL.keys())
def test_a_damaged_small_file_is_one_sentence_with_its_name(
    name: str, damage: Callable[[Path], object], tmp_path: Path
) -> None:
    root = make(tmp_path / "dataset")
    damage(root)
    readers: list[Callable[[Path, Path], Any]] = [part, join, check]
    readers += {INDEX_FILE: [load_all, figures], PROMPTS_FILE: [lambda root, out: read_prompts(root)]}.get(name, [])
    for reader in readers:
        with pytest.raises(EchoForgeError) as error:
            reader(root, tmp_path / "out")
        message = str(error.value)
        assert name in message and "\n" not in message and len(message) < 1000
        shutil.rmtree(tmp_path / "other", ignore_errors=True)


@pytest.mark.parametrize("side", [11_000, 65_500])
def test_a_huge_first_frame_leaves_its_place_white(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """A JPEG of a few hundred bytes can promise 4 gigapixels; Pillow warns of the one and refuses the other."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    picture = stream.getvalue()
    frame = picture.index(b"\xff\xc0") + 5  # SOF0: height and width follow its length and depth
    picture = picture[:frame] + side.to_bytes(2, "big") * 2 + picture[frame + 4 :]
    monkeypatch.setattr(synthetic_shards, "_files", lambda _: {"json": b"{}", "txt": b"a", "jpg": picture})
    root = make(tmp_path / "dataset")
    part(root, tmp_path / "part")
    join(root, tmp_path / "whole")
    for name in ("part", "whole"):
        with Image.open(tmp_path / name / SHEET_FILE) as sheet:
            assert sheet.convert("L").getextrema() == (255, 255)
    assert not [w for w in recwarn if issubclass(w.category, Image.DecompressionBombWarning)]


def test_a_small_file_of_a_store_that_is_huge_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("memory")
    read: list[str] = []
    whole = type(store).cat_file
    monkeypatch.setattr(
        type(store), "cat_file", lambda self, path, *a, **k: read.append(path) or whole(self, path, *a, **k)
    )
    store.pipe_file("/stranger/index.parquet", bytes(1001))
    try:
        for fetcher in (files.fetcher, index.fetcher):
            with pytest.raises(BadMember, match=r"'index\.parquet' has 1001 bytes"):
                fetcher("memory://stranger")(INDEX_FILE, 1000)
            assert not read
            assert len(fetcher("memory://stranger")(INDEX_FILE, 1001)) == 1001
            with pytest.raises(FileNotFoundError):
                fetcher("memory://stranger")("gone.json", 1000)
            read.clear()
    finally:
        store.rm("/stranger", recursive=True)


def test_the_secret_was_worth_hiding(tmp_path: Path) -> None:
    """What the names above lead to is a tar that would be read: an honest dataset passes every reader."""
    root = make(tmp_path / "dataset")
    for name, reader in READERS.items():
        reader(root, tmp_path / name)
    assert tarfile.is_tarfile(outside(root))


@pytest.mark.parametrize("name", ["../x.mp4", "/etc/passwd", "http://127.0.0.1/x", "a\x00b", "videos/../../x"])
def test_a_table_of_negatives_names_nothing_outside(name: str, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"negative_id": "n", "video_path": name, "flags": []}], schema=NEGATIVES)
    pq.write_table(table, tmp_path / "samples.parquet")
    assert [item.video for item in page.shown(tmp_path, "title").items] == [None]
    row = negatives.Gathered("n", "s", "a", "i2v", name)
    with pytest.raises(EchoForgeError, match="outside"):
        negatives._negative(row, Judgement("negative", "blur", None), tmp_path)


@pytest.mark.timeout(30)
def test_a_source_that_never_ends_is_not_hashed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in ("/dev/zero", str(tmp_path / "pipe")):
        with pytest.raises(identity.WrongSource, match="not a regular file"):
            identity.check(identity.CuratedSource(place, "0" * 16, None, None))


# ------------------------------------------------------------------------------------------------ conditions of negatives


LOADER = LoaderConfig(KeepConfig(), 2, "whisper", "any", 1, 0, True, True, "stop", 0)


def conditions(root: Path, out: Path) -> None:
    sample = write_dataset(out, {BUCKET: 1})["sample_id"][0].as_py()  # that of the first row of every such dataset
    one = negatives.Negative("n", sample, sample, "i2v", "other", root / "latents", None)
    (row,) = negatives.condition_index(root, LOADER, [one]).table.to_pylist()
    assert (row["sample_id"], row["bucket"]) == ("n", BUCKET)


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "unfinished": (lambda root: (root / DIGESTS_FILE).write_bytes(Digests({}, "shard").to_bytes()), "is unfinished"),
    "damaged": (lambda root: (root / INDEX_FILE).write_bytes(b"PAR1"), "cannot be used"),
    "no index": (lambda root: (root / INDEX_FILE).unlink(), "holds no index"),
    "empty": (lambda root: pq.write_table(INDEX.empty_table(), root / INDEX_FILE), "no longer keeps"),
    "twice": (
        lambda root: pq.write_table(pa.concat_tables([pq.read_table(root / INDEX_FILE)] * 2), root / INDEX_FILE),
        "names a sample twice",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_the_conditions_of_negatives_are_refused_for_what_is_wrong(case: str, tmp_path: Path) -> None:
    root = make(tmp_path / "dataset")
    conditions(root, tmp_path / "before")  # three of its four splits are empty
    damage, sentence = UNUSABLE[case]
    damage(root)
    with pytest.raises(EchoForgeError, match=sentence):
        conditions(root, tmp_path / "after")


@pytest.mark.parametrize("reader", [load_all, stream_all, captions, conditions], ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("column", ["sample_id", "bucket", "split"])
def test_a_row_without_a_name_or_a_place_is_damage(
    column: str, reader: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    root = make(tmp_path / "dataset")
    edit(root, lambda row: row.update({column: None} if row["sample_id"] == _ids(root)[1] else {}))
    with pytest.raises(Damaged, match=f"a row has no {column}"):
        reader(root, tmp_path / "out")


def test_a_worker_that_gathers_reads_the_index_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "dataset", "negatives")
    read: list[str] = []
    monkeypatch.setattr(gather_worker, "load_network", lambda *_: None)
    monkeypatch.setattr(gather_worker, "load_codec", lambda *_: None)
    monkeypatch.setattr(gather_worker, "Loader", lambda *_, **given: pytest.fail(f"{len(given['index'])} rows"))
    monkeypatch.setattr(gather_worker, "open_index", lambda *a, **k: (read.append("once"), open_index(*a, **k))[1])
    worker = gather_worker.GatherWorker(CONFIG, str(root), tmp_path / "step-000001", "n", "ema", tmp_path)
    for row in (0, 1):
        with pytest.raises(pytest.fail.Exception, match="1 rows"):
            worker.run(gather_worker.GatherJob((row,), (_ids(root)[row],), (1,), "i2v"))
    assert read == ["once"]
