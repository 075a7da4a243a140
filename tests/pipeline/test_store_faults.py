"""An object store that fails now and then, or for good: the same results, or one sentence, and nothing half visible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
import s3fs
import torch
from safetensors.torch import save_file

from benchmarks.synthetic_shards import write_dataset
from configs import schema
from configs.dataset_schema import INDEX_FILE, PROMPTS_FILE
from configs.errors import EchoForgeError
from configs.runtime import leases, locks
from curation.analysis.video import Analysis
from curation.clip import Clip, Video
from curation.sources.source import Source
from pipeline import listing, parquet, storage
from pipeline.catalog import curate
from pipeline.engine import lease
from train.data.inputs import read_prompts
from train.data.loader import Loader

sys.path.insert(0, str(Path(__file__).parent))
from faulty_proxy import KINDS, FaultyProxy


@pytest.fixture
def here(s3: str, request: pytest.FixtureRequest) -> str:
    return f"{s3}/{request.node.name.replace('[', '-').strip(']').replace(' ', '-')}"


@pytest.mark.parametrize("kind", [" or ".join(KINDS), *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS)])
def test_everything_that_is_asked_of_a_store_survives_a_failure(proxy: FaultyProxy, here: str, kind: str) -> None:
    table, data = pa.table({"x": list(range(5000))}), os.urandom(300_000)
    proxy.kinds, proxy.failing = tuple(kind.split(" or ")), 1
    storage.write_bytes(f"{here}/a.bin", data)
    parquet.write(f"{here}/t.parquet", table, row_group=500)
    assert storage.exists(f"{here}/a.bin") and not storage.exists(f"{here}/b.bin")
    assert [e.name for e in listing.files(here)] == ["a.bin", "t.parquet"] and storage.entry(
        f"{here}/a.bin"
    ).size == len(data)
    assert storage.read_bytes(f"{here}/a.bin") == data
    assert storage.read_range(f"{here}/a.bin", 1000, 5000) == data[1000:6000]
    with storage.local_copy(f"{here}/a.bin") as copy:
        assert copy.read_bytes() == data
    with parquet.opened(f"{here}/t.parquet") as file:
        assert file.read(columns=["x"]) == table
    storage.remove(f"{here}/a.bin")
    storage.remove_tree(here)
    assert not storage.exists(f"{here}/a.bin") and not storage.exists(f"{here}/t.parquet")
    assert proxy.done.total() > 10


def test_a_store_that_goes_on_failing_is_one_sentence_and_shows_nothing(proxy: FaultyProxy, here: str) -> None:
    """Every way of reading and writing; what was there stays, and nothing appears."""
    storage.write_bytes(f"{here}/there", b"before")
    parquet.write(f"{here}/t.parquet", pa.table({"x": [1]}))

    def tables() -> object:
        with parquet.opened(f"{here}/t.parquet") as file:
            return file.read()

    def copies() -> None:
        with storage.local_copy(f"{here}/there"):
            pass

    ways: list[Callable[[], object]] = [
        lambda: storage.write_bytes(f"{here}/there", b"after" * 9), lambda: storage.write_bytes(f"{here}/new", b"x"),
        lambda: storage.read_bytes(f"{here}/there"), lambda: storage.read_range(f"{here}/there", 0, 3),
        lambda: listing.files(here), tables, copies, lambda: lease.locked(here, "catalog", "x").__enter__(),
    ]  # fmt: skip
    for kinds in (("500", "cut upload"), ("503", "cut upload")):
        proxy.failing, proxy.kinds = 10_000, kinds
        for number, way in enumerate(ways):
            with pytest.raises(EchoForgeError) as caught:
                way()
            said = str(caught.value)
            assert "failed" in said and "\n" not in said and "testing-secret" not in said, (number, said)
        proxy.failing = 0
        assert [e.name for e in listing.files(here)] == ["t.parquet", "there"]
        assert storage.read_bytes(f"{here}/there") == b"before"


def test_a_bucket_that_does_not_exist_is_one_sentence(proxy: FaultyProxy) -> None:
    with pytest.raises(storage.StoreError, match="bucket does not exist"):
        storage.write_bytes("s3://there-is-none/x", b"x")


@pytest.mark.slow
def test_a_big_upload_whose_last_answer_is_lost_is_whole(
    proxy: FaultyProxy, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun again, because the store has forgotten the upload that it has finished."""
    data = os.urandom(1 << 20) * 101  # in parts
    monkeypatch.delitem(fsspec.config.conf, "s3")  # no short time limits: a part has 50 MB
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.failing, proxy.kinds, proxy.only, proxy.most = 1, ("lost",), "?uploadId=", 1
    storage.write_bytes(f"{here}/big", data)
    assert proxy.done["lost"] == 1 and storage.read_bytes(f"{here}/big") == data


# ---------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, {"64x64x9": 6})
    save_file({name: torch.zeros(1, 64, dtype=torch.bfloat16) for name in ("null", "negative")}, root / PROMPTS_FILE)
    return root


def batches(root: str) -> list[Any]:
    with Loader(root, schema.load("tiny").train.loader, seed=0, global_batch=2, once=True, pin=False) as loader:
        return list(loader)


def test_training_reads_the_same_from_a_store_that_fails(proxy: FaultyProxy, here: str, dataset: Path) -> None:
    for path in dataset.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{here}/{path.relative_to(dataset).as_posix()}", path.read_bytes())
    proxy.failing = 1
    assert read_prompts(here).keys() == read_prompts(dataset).keys()
    for there, local in zip(batches(here), batches(str(dataset)), strict=True):
        assert there.sample_ids == local.sample_ids and not there.skipped
        assert all(torch.equal(there[name], local[name]) for name in ("latents", "text", "audio"))
    assert proxy.done.total() > 20
    proxy.failing, proxy.kinds, proxy.only = 10_000, ("503",), ".tar"
    with pytest.raises(EchoForgeError, match="store answers") as caught:
        batches(here)  # an outage is no bad sample: nothing else is learnt from instead
    assert not type(caught.value).__name__.startswith("Bad")
    proxy.only = INDEX_FILE
    with pytest.raises(EchoForgeError, match="store answers"):
        batches(here)


# ------------------------------------------------------------------------------------------------------ curate


def analyse(source: Source, cfg: Any, *, backends: Any) -> Analysis:
    """A file's text is its number of clips."""
    uri = source.uri
    name = Path(uri).read_text()
    clip = {"clip_id": name, "video_id": name, "source_uri": uri, "start_frame": 0, "end_frame": 33, "verdict": "keep"}
    facts = Video(uri, video_id=name, duration_s=10.0)
    return facts, (Clip.from_row(clip | {"phash": [], "text_boxes": []}),)


@pytest.fixture
def _fake_analysis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curate, "analyse_video", analyse)
    monkeypatch.setattr(curate, "timed", lambda loaded, watch: loaded)
    monkeypatch.setattr(curate.registry, "load", lambda cfg: None)
    monkeypatch.setattr(curate.registry, "check_files", lambda cfg: None)


def run(source: str, out: str) -> None:
    curate.curate([source], out, schema.load("tiny"), inline=True, quiet=True)


def rows(out: str, name: str) -> list[Any]:
    found: list[Any] = []
    for entry in listing.files(storage.join(out, name), ".parquet"):
        with parquet.opened(entry.url) as file:
            found += file.read().to_pylist()
    return found


@pytest.mark.usefixtures("_fake_analysis")
def test_curation_from_a_store_into_a_store_that_fails_is_the_same(proxy: FaultyProxy, here: str) -> None:
    for number in range(3):
        storage.write_bytes(f"{here}/videos/{number}.mp4", b"%d" % number)
    run(f"{here}/videos", f"{here}/lone")
    proxy.failing = 1
    run(f"{here}/videos", f"{here}/out")
    proxy.failing = 0
    for name in ("videos", "clips"):
        assert rows(f"{here}/out", name) == rows(f"{here}/lone", name) != []
    assert proxy.done.total() > 30
    objects = fsspec.filesystem("s3").find(f"{here}/out")
    assert not [name for name in objects if "incomplete" in name or leases.FOLDER in name]


@pytest.mark.usefixtures("_fake_analysis")
def test_a_second_curation_into_a_store_is_refused_and_a_lost_lease_stops_the_first(
    proxy: FaultyProxy, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{here}/videos/a.mp4", b"a")
    out, seen = f"{here}/out", []
    monkeypatch.setattr(leases, "RENEW_S", 0.05)

    def stolen(source: Source, cfg: Any, **facts: Any) -> Analysis:
        """While the first one works: a second one is refused; then another machine takes the lease."""
        with pytest.raises(locks.Locked) as caught:
            elsewhere(lambda: run(f"{here}/videos", out))
        seen.append(str(caught.value))
        board = lease.StoreBoard(out)
        assert board.create("00000002", json.dumps({"host": "elsewhere"}))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            storage.check_guards()
        return analyse(source, cfg, **facts)

    monkeypatch.setattr(curate, "analyse_video", stolen)
    with pytest.raises(locks.LockLost, match="took it over"):
        run(f"{here}/videos", out)
    assert f"process {os.getpid()}" in seen[0] and "`curate`" in seen[0]
    assert not [name for name in fsspec.filesystem("s3").find(out) if name.endswith(".parquet")]
    assert [e.name for e in listing.files(f"{out}/{leases.FOLDER}")] == ["00000001", "00000002"]


def elsewhere(action: Callable[[], object]) -> None:
    """In another thread, which holds none of this one's locks."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(action).result()


def test_a_lease_whose_answer_was_lost_is_held_and_given_back(proxy: FaultyProxy, here: str) -> None:
    proxy.failing, proxy.kinds = 1, ("lost",)
    with lease.locked(here, "catalog", "curate") as lock:
        lock.check()
        assert [e.name for e in listing.files(f"{here}/{leases.FOLDER}")] == ["00000001"]
        with pytest.raises(locks.Locked):
            elsewhere(lambda: lease.locked(here, "catalog", "curate").__enter__())
    assert not storage.exists(f"{here}/{leases.FOLDER}")


HOLD = """
import sys, time
from pipeline.engine import lease
with lease.locked(sys.argv[1], "catalog", "curate"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_holders_lease_is_free_here_at_once_and_elsewhere_after_its_term(
    proxy: FaultyProxy, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, here], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(locks.Locked, match=f"process {holder.pid}"), lease.locked(here, "catalog", "curate"):
        pass
    holder.kill()
    holder.wait()
    with monkeypatch.context() as another_machine:
        another_machine.setattr(locks, "dead", lambda text: False)
        with pytest.raises(locks.Locked), lease.locked(here, "catalog", "curate"):
            pass
        another_machine.setattr(leases, "TERM_S", -1.0)  # the store's clock has whole seconds
        with lease.locked(here, "catalog", "curate"):
            pass
    with lease.locked(here, "catalog", "curate"):
        pass
    assert not storage.exists(f"{here}/{leases.FOLDER}")
