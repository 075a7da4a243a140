"""The loader's promises: a proven order, exact resume at any world size, bad samples skipped the same everywhere."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.synthetic_shards import Sizes, sample_tensors, write_dataset
from configs.dataset_schema import INDEX, INDEX_FILE
from configs.errors import EchoForgeError
from train.config import KeepConfig, LoaderConfig
from train.data.batch import Batch
from train.data.index import BadSample, open_index
from train.data.loader import Loader
from train.data.order import Order

BUCKETS = {"64x64x17": 13, "96x64x9": 8}
SIZE = 12


def config(**changes: object) -> LoaderConfig:
    values: dict[str, object] = {
        "keep": KeepConfig(), "global_batch": SIZE, "audio": "whisper", "captions": "any", "threads": 2,
        "prefetch": 2, "check_digests": True, "check_finite": True, "bad_samples": "skip", "max_bad": 50,
    }  # fmt: skip
    return LoaderConfig(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, BUCKETS)
    return root


@pytest.fixture
def own_dataset(tmp_path: Path) -> Path:
    """A dataset that the test may damage."""
    write_dataset(tmp_path, BUCKETS)
    return tmp_path


def take(loader: Loader, n: int) -> list[Batch]:
    return [next(loader) for _ in range(n)]


def read_world(root: Path, world: int, steps: int, **kwargs: object) -> list[list[tuple[str, float, bytes]]]:
    """Global batches put together from all ranks: per step the (sample, weight, latent bytes) of every place."""
    result: list[list[tuple[str, float, bytes]]] = [[] for _ in range(steps)]
    for rank in range(world):
        with Loader(root, config(), seed=1, rank=rank, world=world, **kwargs) as loader:  # type: ignore[arg-type]
            for step, batch in enumerate(take(loader, steps)):
                assert batch.step == step
                raw = [x.view(torch.uint8).numpy().tobytes() for x in batch["latents"].contiguous()]
                result[step] += zip(batch.sample_ids, batch["weight"].tolist(), raw, strict=True)
    return result


def test_tensors_arrive_as_written(dataset: Path) -> None:
    with Loader(dataset, config(captions="any"), seed=1, tasks=("i2v", "flf2v")) as loader:
        for batch in take(loader, 3):
            for k, sample in enumerate(batch.sample_ids):
                want = sample_tensors(sample, batch.bucket, Sizes())
                for name in ("latents", "cond_i2v", "cond_flf2v_last", "image", "face_boxes", "mouth_mask"):
                    assert torch.equal(batch[name][k], want[name]), name
                text = want[f"text.{batch.captions[k]}"]
                assert int(batch["text_lens"][k]) == len(text)
                assert torch.equal(batch["text"][k, : len(text)], text) and not batch["text"][k, len(text) :].any()
                assert torch.equal(batch["audio"][k], want["audio.whisper"])
                assert not batch["audio_valid"][k, :2].any() and batch["audio_valid"][k, 2:].all()
            assert batch.audio_frame0 == 8 and batch.tokens_per_frame == 2.0


def test_global_batches_are_the_same_at_every_world_size(dataset: Path) -> None:
    one = read_world(dataset, 1, 7)
    for world in (2, 3, 4):
        assert read_world(dataset, world, 7) == one


@pytest.mark.parametrize("world", [1, 3])
def test_resume_at_any_step_and_world_size(dataset: Path, world: int) -> None:
    steps = 6
    with Loader(dataset, config(), seed=1) as loader:
        straight = [batch.sample_ids for batch in take(loader, steps)]
    for stop in range(steps):
        with Loader(dataset, config(), seed=1, rank=0, world=2) as first:  # stopped on two ranks
            take(first, stop)
            state = first.state()
        assert all(isinstance(v, (int, str)) for v in asdict(state).values())
        rest: list[tuple[str, ...]] = [() for _ in range(steps - stop)]
        for rank in range(world):
            with Loader(dataset, config(), seed=1, rank=rank, world=world) as second:
                second.load_state(state)
                for k, batch in enumerate(take(second, steps - stop)):
                    assert batch.step == stop + k
                    rest[k] += batch.sample_ids
        assert rest == straight[stop:]


def test_every_sample_exactly_once_a_pass(dataset: Path) -> None:
    index = open_index(dataset, split="train", keep=KeepConfig())
    for size in (1, 2, 5, 12, 40):
        order = Order(index.members, seed=3, digest=index.digest, size=size)
        uses: Counter[tuple[int, int]] = Counter()
        position = order.position_of(0)
        while position.epoch < 5:
            batch, position = order.at(position)
            assert {row in index.members[batch.bucket] for row in (s.row for s in batch.slots)} == {True}
            uses.update((slot.epoch, slot.row) for slot in batch.slots)
        complete = [(epoch, row) for epoch in range(4) for row in range(len(index))]
        assert [uses[key] for key in complete] == [1] * len(complete)


def test_one_pass_for_validation_counts_each_sample_once(dataset: Path) -> None:
    with Loader(dataset, config(), seed=1, once=True) as loader:
        batches = list(loader)
    counted = Counter(i for b in batches for i, w in zip(b.sample_ids, b["weight"].tolist(), strict=True) if w)
    assert len(batches) == len(loader) and set(counted.values()) == {1} and len(counted) == sum(BUCKETS.values())


def test_position_of_step_equals_walking(dataset: Path) -> None:
    index = open_index(dataset, split="train", keep=KeepConfig())
    order = Order(index.members, seed=3, digest=index.digest, size=5)
    position = order.position_of(0)
    for step in range(40):
        assert order.at(order.position_of(step)) == order.at(position)
        position = order.at(position)[1]


def test_order_depends_on_seed_and_pass_not_on_place(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, BUCKETS, per_tar=3)  # the same samples in other tars
    assert read_world(tmp_path, 1, 3) == read_world(dataset, 1, 3)
    with Loader(dataset, config(), seed=2) as loader:
        assert [b.sample_ids for b in take(loader, 3)] != [[i for i, _, _ in s] for s in read_world(dataset, 1, 3)]


def flip_byte(root: Path) -> str:
    rows = pq.read_table(root / INDEX_FILE).to_pylist()
    ref = next(t for t in rows[5]["tensors"] if t["name"] == "latents")
    with (root / ref["tar"]).open("r+b") as file:
        file.seek(ref["offset"] + 11)
        byte = file.read(1)[0]
        file.seek(ref["offset"] + 11)
        file.write(bytes([byte ^ 1]))
    return str(rows[5]["sample_id"])


def remove_tar(root: Path) -> str:
    row = pq.read_table(root / INDEX_FILE).to_pylist()[2]
    (root / row["tensors"][0]["tar"]).unlink()
    return str(row["sample_id"])


def cut_tar(root: Path) -> str:
    rows = pq.read_table(root / INDEX_FILE).to_pylist()
    last = max(rows, key=lambda row: row["tensors"][0]["offset"])
    ref = last["tensors"][0]
    os.truncate(root / ref["tar"], ref["offset"] + 5)
    return str(last["sample_id"])


def link_instead(root: Path) -> str:
    row = pq.read_table(root / INDEX_FILE).to_pylist()[4]
    tar = root / row["tensors"][0]["tar"]
    tar.rename(tar.with_suffix(".moved"))
    tar.symlink_to(tar.with_suffix(".moved"))
    return str(row["sample_id"])


def edit_index(change: Callable[[dict], None]) -> Callable[[Path], str]:  # type: ignore[type-arg]
    def damage(root: Path) -> str:
        table = pq.read_table(root / INDEX_FILE)
        rows = table.to_pylist()
        change(rows[0]["tensors"][0])
        pq.write_table(type(table).from_pylist(rows, schema=INDEX), root / INDEX_FILE)
        return str(rows[0]["sample_id"])

    return damage


DAMAGES = {
    "flipped byte": flip_byte,
    "missing tar": remove_tar,
    "cut tar": cut_tar,
    "link instead of a tar": link_instead,
    "tar outside": edit_index(lambda t: t.update(tar="../../etc/passwd")),
    "absolute tar": edit_index(lambda t: t.update(tar="/etc/passwd")),
    "device": edit_index(lambda t: t.update(tar="gen-000/../../dev/zero")),
    "negative offset": edit_index(lambda t: t.update(offset=-8)),
    "object dtype": edit_index(lambda t: t.update(dtype="object")),
    "wrong size": edit_index(lambda t: t.update(length=t["length"] + 2)),
    "bomb": edit_index(lambda t: t.update(length=2**40, shape=[2**39 // 512, 512], dtype="F16")),
    "other shape": edit_index(lambda t: t.update(shape=[*t["shape"], 1])),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_bad_sample_is_skipped_identically_at_every_world_size(
    own_dataset: Path, damage: Callable[[Path], str]
) -> None:
    bad = damage(own_dataset)
    one = read_world(own_dataset, 1, 6)
    assert all(read_world(own_dataset, world, 6) == one for world in (2, 3, 4))
    used = {sample for step in one for sample, _, _ in step}
    assert bad not in used and {weight for step in one for _, weight, _ in step} == {0.0, 1.0}
    with (
        Loader(own_dataset, config(bad_samples="stop"), seed=1) as loader,
        pytest.raises(EchoForgeError, match=r"verify"),
    ):
        take(loader, 6)


def test_nan_is_named_even_when_its_digest_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch, "isfinite", lambda x: torch.ones_like(x, dtype=torch.bool)
    )  # a writer that does not look
    import benchmarks.synthetic_shards as synthetic

    honest = synthetic.sample_tensors
    made: list[str] = []

    def with_nan(sample_id: str, bucket: str, sizes: Sizes) -> dict[str, torch.Tensor]:
        tensors = honest(sample_id, bucket, sizes)
        if not made:
            made.append(sample_id)
            tensors["latents"][0, 0, 0, 0] = float("nan")
        return tensors

    monkeypatch.setattr(synthetic, "sample_tensors", with_nan)
    write_dataset(tmp_path, {"64x64x9": 6})
    monkeypatch.undo()
    with Loader(tmp_path, config(global_batch=6), seed=1) as loader:
        batch = next(loader)
    assert made[0] not in batch.sample_ids and "NaN" in batch.skipped[0] and made[0] in batch.skipped[0]
    with (
        Loader(tmp_path, config(global_batch=6, bad_samples="stop"), seed=1) as loader,
        pytest.raises(EchoForgeError, match="NaN"),
    ):
        next(loader)


def test_nothing_is_left_running(dataset: Path) -> None:
    """No worker process ever, and no thread after the end, also in the middle of a pass."""
    before = {thread.ident for thread in threading.enumerate()}
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    processes = children.read_text() if children.exists() else ""
    with Loader(dataset, config(), seed=1) as loader:
        next(loader)
        assert {t.name.split("_")[0] for t in threading.enumerate() if t.ident not in before} == {"loader"}
        assert not children.exists() or children.read_text() == processes
    assert {thread.ident for thread in threading.enumerate()} <= before


def test_too_many_bad_samples_stop_the_run(own_dataset: Path) -> None:
    for tar in own_dataset.rglob("*.tar"):
        tar.write_bytes(b"")
    with Loader(own_dataset, config(max_bad=3), seed=1) as loader, pytest.raises(EchoForgeError, match="max_bad"):
        take(loader, 3)


def test_keep_list_is_a_query(tmp_path: Path) -> None:
    n = 8
    write_dataset(
        tmp_path,
        {"64x64x9": n},
        columns={
            "verdict": ["keep"] * 6 + ["hold"] * 2,
            "sync_c": [None, 1.0, 2.0, 3.0, 4.0, 5.0, 9.0, 9.0],
            "tier": ["normal"] * 4 + ["strict"] * 4,
        },
    )

    def count(**keep: object) -> int:
        return len(open_index(tmp_path, split="train", keep=KeepConfig(**keep)))  # type: ignore[arg-type]

    assert count() == 6 and count(verdicts=("keep", "hold")) == 8
    assert count(at_least={"sync_c": 3.0}) == 3  # the unmeasured one fails
    assert count(tiers=("strict",), at_most={"sync_c": 4.5}) == 1
    one = open_index(tmp_path, split="train", keep=KeepConfig()).sample_ids([0])[0]
    assert count(skip=(one,)) == 5
    with pytest.raises(EchoForgeError, match="sync_q"):
        count(at_least={"sync_q": 1.0})
    with pytest.raises(EchoForgeError, match="no sample left"):
        open_index(tmp_path, split="val", keep=KeepConfig())


def test_only_the_fields_of_the_task_are_read(dataset: Path) -> None:
    tasks = ("t2v", "i2v")
    with Loader(dataset, config(), seed=1, tasks=tasks, task_of=lambda step, place: tasks[place % 2]) as loader:
        batch = next(loader)
    assert batch.tasks[:2] == tasks and "cond_flf2v_last" not in batch
    assert not batch["cond_i2v"][0::2].any() and batch["cond_i2v"][1::2].any()
    with pytest.raises(EchoForgeError, match="shards add cond_lip"):
        Loader(dataset, config(), seed=1, tasks=("lip_sync",))


def test_wrong_uses_are_refused_in_one_sentence(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(EchoForgeError, match="multiple of the number of ranks"):
        Loader(dataset, config(), seed=1, rank=0, world=5)
    with pytest.raises(EchoForgeError, match="it is an empty folder"):
        Loader(tmp_path, config(), seed=1)
    with Loader(dataset, config(), seed=1) as loader:
        state = loader.state()
        for key, value in (("seed", 2), ("digest", "0"), ("global_batch", 4)):
            with pytest.raises(EchoForgeError, match=key):
                loader.load_state(replace(state, **{key: value}))
    assert issubclass(BadSample, EchoForgeError)


@pytest.mark.parametrize("fast", [True, False])
def test_changed_bytes_are_found_with_and_without_xxhash(
    own_dataset: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    if not fast:
        monkeypatch.setattr("train.data.reader._xxh3", None)
    with Loader(own_dataset, config(bad_samples="stop"), seed=1, once=True) as loader:
        assert all(not batch.skipped for batch in loader)
    row = pq.read_table(own_dataset / INDEX_FILE).to_pylist()[0]
    ref = next(t for t in row["tensors"] if t["name"] == "latents")
    with (own_dataset / ref["tar"]).open("r+b") as file:
        file.seek(ref["offset"] + ref["length"] - 1)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([last ^ 1]))
    with (
        Loader(own_dataset, config(bad_samples="stop"), seed=1, once=True) as loader,
        pytest.raises(EchoForgeError, match="xxh3 differs" if fast else "sha256 differs"),
    ):
        list(loader)


def test_a_score_that_the_schema_does_not_know_selects_samples(tmp_path: Path) -> None:
    """The catalog may name more scores for the index (`curation.schema.INDEXED`)."""
    write_dataset(tmp_path, {"64x64x9": 4})
    table = pq.read_table(tmp_path / INDEX_FILE)
    scores = pa.array([0.1, 0.6, None, 0.9], pa.float32())
    pq.write_table(table.append_column("colourfulness", scores), tmp_path / INDEX_FILE)
    index = open_index(tmp_path, split="train", keep=KeepConfig(at_least={"colourfulness": 0.5}))
    assert index.sample_ids(range(len(index))) == table["sample_id"].take(pa.array([1, 3])).to_pylist()
