"""Every bit of a dataset is covered by a digest, and no kill between two of its files makes a mix that passes as whole."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import dataset_files
from configs.dataset_files import Damaged, Digests, FileDigest
from configs.dataset_schema import DATASET_FILE, DIGESTS_FILE, INDEX_FILE, PROMPTS_FILE
from configs.errors import EchoForgeError
from pipeline import storage
from pipeline.dataset import edit
from pipeline.dataset.add import add as add_field
from pipeline.dataset.files import read_digests, read_index
from pipeline.dataset.shard import shard
from pipeline.dataset.verify import verify
from tests.pipeline.test_shard import CONFIG, make_catalog
from train.config import KeepConfig
from train.data.index import open_index
from train.data.inputs import read_prompts

FIELD = "cond_avatar"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Puppets, a catalog, and a dataset with a field that was added."""
    root = tmp_path_factory.mktemp("digests")
    make_catalog(root, 3)
    shard(str(root / "catalog"), str(root / "dataset"), CONFIG, inline=True)
    add_field(str(root / "dataset"), FIELD, CONFIG, inline=True)
    return root


@pytest.fixture
def dataset(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world / "dataset", tmp_path / "dataset"))


def files_of(root: Path) -> list[Path]:
    """All files of a dataset but the engine's record of work."""
    return sorted(p for p in root.rglob("*") if p.is_file() and "ledger" not in p.relative_to(root).parts)


def content(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files_of(root)}


def flips(root: Path, count: int, seed: int) -> Iterator[tuple[Path, int, int]]:
    """Random bits over all bytes of all files."""
    chance, files = random.Random(seed), files_of(root)
    sizes = [path.stat().st_size for path in files]
    for _ in range(count):
        path = chance.choices(files, sizes)[0]
        yield path, chance.randrange(path.stat().st_size), chance.randrange(8)


def test_every_flipped_bit_is_found(dataset: Path) -> None:
    report = verify(str(dataset))
    assert report.ok and not report.notes, str(report)
    smallest = [(p, b, 0) for p in files_of(dataset) for b in (0, p.stat().st_size // 2, p.stat().st_size - 1)]
    for path, byte, bit in [*flips(dataset, 150, 12), *smallest]:
        before = path.read_bytes()
        damaged = bytearray(before)
        damaged[byte] ^= 1 << bit
        path.write_bytes(damaged)
        report = verify(str(dataset))
        named = [str(problem) for problem in report.problems] + report.notes
        assert any(path.relative_to(dataset).as_posix() in text for text in named), f"{path} byte {byte} bit {bit}"
        assert not report.ok or path.name == "README.md"  # people may edit the card
        path.write_bytes(before)
    assert verify(str(dataset)).ok


@given(st.dictionaries(st.text("abc/._-", min_size=1, max_size=9), st.integers(0, 2**60)), st.data())
def test_a_digests_file_guards_itself(names: dict[str, int], data: st.DataObject) -> None:
    files = {f"x/{n.replace('/', '_')}y": FileDigest(size, f"{size:064x}") for n, size in names.items()}
    digests = Digests(files, data.draw(st.sampled_from(["", "shard"])))
    written = digests.to_bytes()
    assert dataset_files.parse_digests(written, "d") == digests
    damaged = bytearray(written)
    damaged[data.draw(st.integers(0, len(written) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Damaged, match=DIGESTS_FILE):
        dataset_files.parse_digests(bytes(damaged), "d")


def test_training_checks_the_small_files_on_load(dataset: Path) -> None:
    for name, read in (
        (INDEX_FILE, lambda: open_index(dataset, split="train", keep=KeepConfig())),
        (PROMPTS_FILE, lambda: read_prompts(dataset)),
    ):
        read()
        data = bytearray((dataset / name).read_bytes())
        data[len(data) // 2] ^= 4
        (dataset / name).write_bytes(data)
        with pytest.raises(EchoForgeError, match=rf"{name} of .*sha256 differs"):
            read()


def test_a_dataset_without_digests_is_read_and_verify_says_what_it_could_not_check(dataset: Path) -> None:
    """As earlier versions made it: no digests of files, tars or members, and a ledger that knows of no tars."""
    (dataset / DIGESTS_FILE).unlink()
    rows = pq.read_table(dataset / INDEX_FILE)
    old = pa.list_(pa.struct([f for f in rows.schema.field("members").type.value_type if f.name != "sha256"]))
    at = rows.schema.get_field_index("members")
    pq.write_table(rows.set_column(at, "members", rows["members"].cast(old)), dataset / INDEX_FILE)
    for ledger in (dataset / "ledger").rglob("parts/*.parquet"):
        pq.write_table(pq.read_table(ledger).drop_columns(["tars", "run"]), ledger)
    report = verify(str(dataset))
    assert report.ok and "earlier version" in report.notes[0]
    assert len(open_index(dataset, split="train", keep=KeepConfig()))
    assert edit.split(str(dataset), str(dataset.parent / "copy")) == rows.num_rows
    assert verify(str(dataset.parent / "copy")).notes == []  # the copies were hashed on their way
    add_field(str(dataset), FIELD, CONFIG, inline=True)
    report = verify(str(dataset))
    assert report.ok and "no digest is known" in report.notes[0]
    assert {INDEX_FILE, PROMPTS_FILE, DATASET_FILE, f"fields/{FIELD}.parquet"} <= read_digests(
        str(dataset)
    ).files.keys()  # type: ignore[union-attr]


def test_merge_and_split_keep_digests_and_refuse_a_damaged_tar(dataset: Path, tmp_path: Path) -> None:
    known = read_digests(str(dataset)).files  # type: ignore[union-attr]
    edit.split(str(dataset), str(tmp_path / "part"))
    copied = read_digests(str(tmp_path / "part")).files  # type: ignore[union-attr]
    tars = {name: digest for name, digest in known.items() if name.endswith(".tar")}
    assert tars == {name: digest for name, digest in copied.items() if name.endswith(".tar")} and tars
    assert verify(str(tmp_path / "part")).ok and verify(str(tmp_path / "part")).notes == []
    tar = next(dataset.rglob("shard-*.tar"))
    data = bytearray(tar.read_bytes())
    data[120] ^= 1  # a header: the mode of a member
    tar.write_bytes(data)
    with pytest.raises(EchoForgeError, match="sha256 differs"):
        edit.split(str(dataset), str(tmp_path / "again"))
    assert not list((tmp_path / "again").rglob("*.tar*"))


class Killed(BaseException):
    """Stands for `kill -9`: nothing may catch it."""


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int, work: Callable[[], object]) -> bool:
    """Run ``work`` and end it when it writes its ``number``-th file; whether it came that far."""
    honest, count = storage.write_bytes, 0

    def write(url: str, data: bytes) -> None:
        nonlocal count
        count += 1
        if count > number:
            raise Killed
        honest(url, data)

    monkeypatch.setattr(storage, "write_bytes", write)
    try:
        work()
    except Killed:
        return True
    finally:
        monkeypatch.setattr(storage, "write_bytes", honest)
    return False


def commands(world: Path, out: Path) -> dict[str, Callable[[], Any]]:
    fewer, more = str(out / "fewer"), str(out / "more")
    return {
        "shard": lambda: shard(str(world / "catalog"), more, CONFIG, inline=True),
        "shards add": lambda: add_field(more, FIELD, CONFIG, inline=True),
        "shards split": lambda: edit.split(more, fewer),
    }


@pytest.mark.parametrize("command", ["shard", "shards add", "shards split"])
def test_killed_between_two_files_it_is_old_or_unfinished_and_the_same_command_finishes_it(
    world: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index of two clips becomes that of three, an added field is added again, a split is made."""
    start = tmp_path / "start"
    shutil.copytree(world / "dataset", start / "more")
    if command == "shard":
        (start / "more").rename(start / "unused")
        shard(str(world / "catalog"), str(start / "more"), CONFIG, inline=True, limit=2)
    shutil.copytree(start, tmp_path / "straight")
    commands(world, tmp_path / "straight")[command]()
    want = content(tmp_path / "straight")
    target = "fewer" if command == "shards split" else "more"
    seen = set()
    for number in range(0, 20, 3 if command == "shard" else 1):
        place = tmp_path / "killed"
        shutil.copytree(start, place)
        old = read_index(str(place / target)) if target == "more" else None
        came = killed_at(monkeypatch, number, commands(world, place)[command])
        if came:
            try:
                assert read_index(str(place / target)) == old
                seen.add("old")
            except EchoForgeError as error:
                assert ("unfinished" in str(error) and f"`{command}`" in str(error)) or "holds no index" in str(error)
                seen.add("unfinished")
            commands(world, place)[command]()
        assert content(place) == want, number
        shutil.rmtree(place)
        if not came:
            break
    assert not came and "unfinished" in seen


def test_a_damaged_index_is_made_again_as_the_message_says(world: Path, dataset: Path) -> None:
    shard(str(world / "catalog"), str(dataset), CONFIG, inline=True)
    want = content(dataset)
    os.truncate(dataset / INDEX_FILE, 1000)
    (dataset / PROMPTS_FILE).write_bytes(b"nothing")
    (dataset / DATASET_FILE).write_text("nothing")
    for name in (DATASET_FILE, INDEX_FILE):
        with pytest.raises(EchoForgeError, match="remove the file and run `shard` again") as error:
            shard(str(world / "catalog"), str(dataset), CONFIG, inline=True)
        assert name in str(error.value)
        (dataset / name).unlink()
    shard(str(world / "catalog"), str(dataset), CONFIG, inline=True)
    assert content(dataset) == want and verify(str(dataset)).ok


@pytest.mark.parametrize("damage", [b"", b"PAR1", json.dumps({"a": 1}).encode()])
def test_a_damaged_plan_is_one_sentence(world: Path, dataset: Path, damage: bytes) -> None:
    (dataset / "gen-000" / "plan.parquet").write_bytes(damage)
    for work in (
        lambda: shard(str(world / "catalog"), str(dataset), CONFIG, inline=True),
        lambda: add_field(str(dataset), FIELD, CONFIG, inline=True),
    ):
        with pytest.raises(EchoForgeError, match=r"gen-000/plan.parquet .* copy"):
            work()


def test_a_plan_from_a_stranger_writes_nothing_outside(dataset: Path, tmp_path: Path) -> None:
    path = dataset / "gen-000" / "plan.parquet"
    plan = pq.read_table(path)
    (dataset / DIGESTS_FILE).unlink()
    tars = pa.array(["../../outside/shard-000000.tar"] * plan.num_rows)
    pq.write_table(plan.set_column(1, "tar", tars), path)
    with pytest.raises(EchoForgeError, match="lies outside"):
        add_field(str(dataset), "cond_lip", CONFIG, inline=True)
    pq.write_table(plan, path)
    (dataset / "gen-000").rename(tmp_path / "elsewhere")
    (dataset / "gen-000").symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    with pytest.raises(EchoForgeError):
        add_field(str(dataset), "cond_lip", CONFIG, inline=True)
    assert before == sorted((tmp_path / "elsewhere").rglob("*"))


def test_verify_on_an_object_store_compares_every_file_too(world: Path, s3: str) -> None:
    for path in [*files_of(world / "dataset")]:
        storage.write_bytes(f"{s3}/d/{path.relative_to(world / 'dataset').as_posix()}", path.read_bytes())
    report = verify(f"{s3}/d")
    assert report.ok and not report.notes, str(report)
    data = bytearray(storage.read_bytes(f"{s3}/d/samples.jpg"))
    data[-1] ^= 1
    storage.write_bytes(f"{s3}/d/samples.jpg", bytes(data))
    assert [problem.tar for problem in verify(f"{s3}/d").problems] == ["samples.jpg"]
