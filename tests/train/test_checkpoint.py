"""Checkpoints from strangers and from bad disks: nothing in them is run, nothing outside is touched, damage is named."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, combinations_with_replacement, product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from configs import schema, strict
from configs.dataset_schema import NEGATIVES
from configs.errors import ConfigError, EchoForgeError
from configs.folders import PROGRESS_FILE
from configs.schema import Config
from model.transformer import EchoMimicTransformer
from train import stages
from train.checkpoints import loading, manifest, retention, saving
from train.checkpoints.files import Damaged, digest
from train.checkpoints.info import RUN_FILE, CheckpointInfo
from train.checkpoints.state_storage import Chunk, Stored, check
from train.config import StageConfig
from train.data import negatives
from train.ema import EMA
from train.guard import Guard
from train.log import METRICS_FILE, Log, read_metrics
from train.objectives import reference
from train.state import Progress, State
from workflows.networks import check_network, load_network

SMALL = [
    "transformer.dim=24", "transformer.ffn_dim=16", "transformer.num_heads=2", "transformer.num_layers=1",
    "transformer.patch_size=[1,2,2]",
]  # fmt: skip


@pytest.fixture(scope="module")
def config() -> Config:
    return schema.load("tiny", SMALL)


def new_state(config: Config, seed: int = 0, step: int = 0) -> State:
    torch.manual_seed(seed)
    network = EchoMimicTransformer(config.model.transformer)
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)), "exp_avg": torch.rand_like(parameter), "exp_avg_sq": torch.rand_like(parameter),
        }  # fmt: skip
    state = State(network, optimizer, EMA(network, config.train.ema), Progress(step=step))
    for average in state.ema.state.values():
        average.add_(1)
    return state


def save(run: Path, config: Config, step: int, pin: str | None = None) -> Path:
    info = CheckpointInfo(
        model=strict.to_dict(config.model), train=strict.to_dict(config.train), preset=config.preset, seed=0,
        dataset="dataset", dataset_digest="0" * 16,
    )  # fmt: skip
    return saving.save(run, new_state(config, step, step), info, keep_last=9, pin=pin)


def as_plain_dcp(path: Path, state: dict[str, Tensor]) -> Path:
    """Make a checkpoint what it was before ours were: ``dcp.save`` with its own writer, and no digests."""
    for file in (path / "state").iterdir():
        file.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(dict(state), checkpoint_id=str(path / "state"), no_dist=True)
    (path / "digests.json").unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class Reader:
    """One of the ways in which a checkpoint is read."""

    name: str
    read: Callable[[Path, Config], Any]


def resume(path: Path, config: Config) -> State:
    state = new_state(config, 99)
    loading.read_info(path)
    loading.load(path, state)
    return state


def generate(path: Path, config: Config) -> EchoMimicTransformer:
    """What `generate RUN` and every worker of `negatives gather` do first."""
    check_network(path, config)
    return load_network(path, config.model.transformer, "cpu")


READERS = [Reader("resume", resume), Reader("generate", generate)]
readers = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@readers
@pytest.mark.parametrize("where", ["beside", "instead", "rank"])
def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path, config: Config, reader: Reader, where: str) -> None:
    """Beside our metadata, in the place of an old checkpoint's, and where DCP looks for that of one rank."""
    path, mark = save(tmp_path / "run", config, 3), tmp_path / "executed"
    if where != "beside":
        as_plain_dcp(path, new_state(config).tensors())
        (path / "state" / ".metadata").unlink()
    name = "__0.metadata" if where == "rank" else ".metadata"
    (path / "state" / name).write_bytes(pickle.dumps(Bomb(mark)))
    if where == "beside":
        reader.read(path, config)
    else:
        with pytest.raises(EchoForgeError, match=r"step-000003.*metadata") as caught:
            reader.read(path, config)
        assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    assert not mark.exists()


@readers
def test_a_pickled_object_in_the_state_of_an_old_checkpoint_is_not_run(
    tmp_path: Path, config: Config, reader: Reader
) -> None:
    """DCP loads what its metadata calls bytes with ``weights_only=False``."""
    path, mark = save(tmp_path / "run", config, 3), tmp_path / "executed"
    as_plain_dcp(path, new_state(config).tensors())
    where = path / "state" / ".metadata"
    metadata: Metadata = pickle.loads(where.read_bytes())
    bomb = path / "state" / "__0_0.distcp"
    torch.save(Bomb(mark), bomb)
    for index in [i for i in metadata.storage_data if i.fqn.startswith(("model.", "ema."))]:
        info = metadata.storage_data.pop(index)
        info.offset, info.length = 0, bomb.stat().st_size
        metadata.state_dict_metadata[index.fqn] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex(index.fqn)] = info
    where.write_bytes(pickle.dumps(metadata))
    with pytest.raises(EchoForgeError, match="step-000003"):
        reader.read(path, config)
    where.write_bytes(pickle.dumps(metadata).replace(b"BytesStorageMetadata", b"TensorStorageMetadata"))
    with pytest.raises(EchoForgeError, match="step-000003"):
        reader.read(path, config)
    assert not mark.exists()


def test_an_old_checkpoint_is_read(tmp_path: Path, config: Config) -> None:
    old = new_state(config, 7)
    path = as_plain_dcp(save(tmp_path / "run", config, 3), old.tensors())
    loaded = resume(path, config)
    assert loaded.progress.step == 3
    for name, tensor in old.tensors().items():
        torch.testing.assert_close(loaded.tensors()[name], tensor, rtol=0, atol=0)
    weights = generate(path, config).state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in old.ema.state.items())


def test_what_is_saved_is_read_back(tmp_path: Path, config: Config) -> None:
    path = save(tmp_path / "run", config, 3)
    saved, loaded = new_state(config, 3, 3), resume(path, config)
    assert loaded.progress == saved.progress
    assert all(torch.equal(tensor, saved.tensors()[name]) for name, tensor in loaded.tensors().items())
    assert not any(file.read_bytes()[:1] == b"\x80" for file in path.rglob("*") if file.is_file()), "a pickle"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, config: Config) -> Path:
    """A run with a checkpoint, and a pinned one after it. Tests put back what they change."""
    run = tmp_path_factory.mktemp("whole") / "run"
    save(run, config, 3)
    save(run, config, 5, pin="stage")
    return run


@contextmanager
def changed(file: Path, content: bytes) -> Iterator[None]:
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


def refused(call: Callable[[], Any], *named: str) -> str:
    """The one sentence with which ``call`` is refused; it names all of ``named``, and a remedy."""
    with pytest.raises(EchoForgeError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000, message
    assert all(name in message for name in named), message
    assert re.search(r"; (copy|delete|put|use|gather|remove|train) ?\w* .*\.$", message), message
    return message


def test_one_flipped_bit_in_any_file_is_found_and_named(whole: Path, config: Config) -> None:
    rng, path, state = random.Random(0), whole / "step-000005", new_state(config, 99)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    assert {"raw.safetensors", "run.json", "progress.json", "digests.json", "metadata.json"} < {f.name for f in files}
    for file in files:
        content = file.read_bytes()
        for _ in range(20):
            at, bit = rng.randrange(len(content)), rng.randrange(8)
            flipped = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
            with changed(file, flipped):
                message = refused(lambda: loading.load(path, state), "step-000005", file.name)
                assert "go on from step-000003" in message, "an older checkpoint is there"
    loading.load(path, state)


@pytest.mark.parametrize("step", [3, 5])
def test_generating_looks_at_what_it_reads(whole: Path, config: Config, step: int) -> None:
    """Of a pinned checkpoint the exported weights; of another one the averages in the state."""
    path = whole / f"step-{step:06d}"
    read = {"run.json", "ema.safetensors" if step == 5 else "00000-ema-0.safetensors"}
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        content = file.read_bytes()
        with changed(file, content[:-40] + bytes([content[-40] ^ 4]) + content[-39:] if len(content) > 40 else b"?"):
            if file.name in read | {"digests.json"} | ({"metadata.json"} if step == 3 else set()):
                refused(lambda: generate(path, config), path.name, file.name)
            else:
                generate(path, config)


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"dim": value}
    return value


DAMAGE = {
    "empty": b"", "not JSON": b"{", "not UTF-8": b"\xff\xfe{", "zeros": bytes(4096), "a list": b"[1]", "a number": b"5",
    "deep": b"[" * 100_000, "deep objects": b'{"a":' * 100_000, "digits": b'{"step": ' + b"9" * 5000 + b"}",
    "large": b" " * (2**20 + 1),
}  # fmt: skip
TYPES = {
    PROGRESS_FILE: [
        {"step": "3"}, {"step": None}, {"step": -1}, {"step": 2**70}, {"step": 3.5}, {"step": True}, {"stage": -1},
        {"guard": []}, {"guard": {"mean": "x"}}, {"guard": {"mean": [1]}}, {"guard": {"mean": 1}}, {"method": 5}, {"new": 1},
    ],
    RUN_FILE: [
        {}, {"model": nested(900)}, {"model": {"transformer": nested(900)}}, {"train": nested(900)},
        {"model": 5}, {"model": []}, {"model": {}},
        {"model": {"transformer": None}}, {"model": {"transformer": [1]}},
    ],
    "state/metadata.json": [
        {}, {"format": "echoforge-state-1"}, {"format": "echoforge-state-1", "tensors": []}, {"format": "another"},
        {"format": "echoforge-state-1", "tensors": {"a": 5}},
    ],
}  # fmt: skip


def without_digests(path: Path, to: Path) -> Path:
    """A copy in which only what files hold can tell that they are damaged."""
    shutil.copytree(path, to / path.name)
    (to / path.name / "digests.json").write_bytes(manifest_of_nothing())
    return to / path.name


def manifest_of_nothing() -> bytes:
    return manifest._text({}).encode()


@pytest.mark.parametrize("name", TYPES)
def test_a_damaged_file_is_named_with_the_remedy(whole: Path, config: Config, tmp_path: Path, name: str) -> None:
    """Also when its digest is right: somebody else may have written it."""
    path = without_digests(whole / "step-000003", tmp_path)
    for content in [*DAMAGE.values(), *(json.dumps(value).encode() for value in TYPES[name])]:
        if name == PROGRESS_FILE and content == b'{"guard": {"mean": 1}}':
            continue  # the next test
        with changed(path / name, content):
            refused(lambda: resume_and_check(path, config), path.name, Path(name).name)


def resume_and_check(path: Path, config: Config) -> None:
    check_network(path, config)
    resume(path, config)


@pytest.mark.parametrize(
    "files", [[], "x", 5, None, {"progress.json": 5}, {"a\0b": "sha256:"}, {"a/../b": "sha256:"}], ids=str
)
def test_a_manifest_of_another_form_is_refused_though_its_own_digest_is_right(
    whole: Path, config: Config, tmp_path: Path, files: Any
) -> None:
    path = without_digests(whole / "step-000003", tmp_path)
    (path / manifest.MANIFEST).write_text(manifest._text(files))
    refused(lambda: resume(path, config), path.name, manifest.MANIFEST)


@pytest.mark.parametrize("way", ["parent", "absolute", "link on the way"])
def test_a_manifest_opens_nothing_outside_the_checkpoint(whole: Path, config: Config, tmp_path: Path, way: str) -> None:
    """Not even to find that its digest is right."""
    path = without_digests(whole / "step-000003", tmp_path)
    (tmp_path / "outside").mkdir()
    secret = tmp_path / "outside" / "secret.txt"
    secret.write_text("secret")
    (path / "link").symlink_to(tmp_path / "outside")
    name = {"parent": "../outside/secret.txt", "absolute": str(secret), "link on the way": "link/secret.txt"}[way]
    (path / manifest.MANIFEST).write_text(manifest._text({name: digest(secret)}))
    refused(lambda: resume(path, config), path.name, "lies ")


def test_a_guard_without_its_numbers_is_named() -> None:
    with pytest.raises(EchoForgeError, match=r"progress\.json"):
        Guard(schema.load("tiny").train.optim).load({"mean": 1.0})


METADATA_LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "outside": lambda t: t["chunks"][0].update(file="../../secret.safetensors"),
    "absolute": lambda t: t["chunks"][0].update(file="/etc/passwd"),
    "a folder": lambda t: t["chunks"][0].update(file=".."),
    "no text": lambda t: t["chunks"][0].update(file=5),
    "absent": lambda t: t["chunks"][0].update(file="00009-model-0.safetensors"),
    "another kind": lambda t: t["chunks"][0].update(file="00000-optim-0.safetensors"),
    "a hole": lambda t: t["chunks"].clear(),
    "beyond": lambda t: t["chunks"][0].update(offset=[1] * len(t["shape"])),
    "negative": lambda t: t["chunks"][0].update(offset=[-1] * len(t["shape"])),
    "text": lambda t: t["chunks"][0].update(offset="0" * len(t["shape"])),
    "huge": lambda t: (t.update(shape=[2**62] * 3), t["chunks"][0].update(shape=[2**62] * 3)),
    "no shape": lambda t: t.update(shape=None),
    "no type": lambda t: t.update(dtype="os.system"),
    "many": lambda t: t["chunks"].extend(t["chunks"] * 1000),
}


def fills(shape: tuple[int, ...], boxes: Iterable[tuple[tuple[int, int], ...]]) -> bool:
    """Whether chunks are believed to hold a tensor; a box is (offset, size) of each axis."""
    chunks = (Chunk(tuple(o for o, _ in box), tuple(n for _, n in box), "0-a-0.safetensors") for box in boxes)
    try:
        check("t", Stored(torch.float32, shape, tuple(chunks)))
    except Damaged:
        return False
    return True


@pytest.mark.parametrize("shape", [(), (4,), (2, 2), (1, 3), (0, 2)], ids=str)
def test_chunks_are_believed_where_each_element_lies_in_one_of_them(shape: tuple[int, ...]) -> None:
    """All sets of up to four boxes; empty ones, which a rank without a share of a tensor writes, change nothing."""
    spans = [[(o, n) for o in range(size + 1) for n in range(size + 1 - o)] for size in shape]
    boxes = [box for box in product(*spans) if all(n for _, n in box) or not any(o for o, _ in box[1:])]
    for some in chain.from_iterable(combinations_with_replacement(boxes, count) for count in range(5)):
        held = torch.zeros(shape)
        for box in some:
            held[tuple(slice(o, o + n) for o, n in box)] += 1
        assert fills(shape, some) == bool((held == 1).all()), some


def test_many_chunks_are_looked_at_fast() -> None:
    began = time.monotonic()
    assert fills((40_000, 3), [((row, 1), (0, 3)) for row in range(40_000)])
    assert not fills((2,) * 14, [((0, 1),) * 14] * 2**14), "more corners than a checkpoint of ours can have"
    assert time.monotonic() - began < 5


def test_an_old_checkpoint_whose_chunks_overlap_is_refused(tmp_path: Path, config: Config) -> None:
    path = as_plain_dcp(save(tmp_path, config, 4), {"model.x": torch.ones(2)})
    where = path / "state" / ".metadata"
    metadata = pickle.loads(where.read_bytes())
    chunk = replace(metadata.state_dict_metadata["model.x"].chunks[0], sizes=torch.Size([1]))
    metadata.state_dict_metadata["model.x"].chunks = [chunk, chunk]
    index, place = next(iter(metadata.storage_data.items()))
    metadata.storage_data = {index: place, MetadataIndex("model.y", index.offset): place}
    where.write_bytes(pickle.dumps(metadata))
    refused(lambda: resume(path, config), path.name, "model.x")


@pytest.mark.parametrize("lie", METADATA_LIES)
def test_metadata_that_lies_is_refused(whole: Path, config: Config, tmp_path: Path, lie: str) -> None:
    path = without_digests(whole / "step-000003", tmp_path)
    where = path / "state" / "metadata.json"
    data = json.loads(where.read_text())
    METADATA_LIES[lie](data["tensors"]["model.patch_embedding.weight"])
    where.write_text(json.dumps(data))
    with pytest.raises(EchoForgeError, match="step-000003") as caught:
        resume(path, config)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


LINKED = ["run.json", "progress.json", "digests.json", "state/metadata.json", "state/00000-model-0.safetensors"]


@pytest.mark.parametrize("instead", ["link", "pipe", "folder", "/dev/zero"])
@pytest.mark.parametrize("name", [*LINKED, "state"])
def test_links_pipes_and_devices_in_a_checkpoint_are_refused(
    whole: Path, config: Config, tmp_path: Path, name: str, instead: str
) -> None:
    path = without_digests(whole / "step-000003", tmp_path)
    moved = (path / name).rename(tmp_path / "moved")
    if instead == "pipe":
        os.mkfifo(path / name)
    elif instead == "folder":
        (path / name).mkdir()
    else:
        (path / name).symlink_to(moved if instead == "link" else instead)
    named = "metadata.json" if (name, instead) == ("state", "folder") else Path(name).name
    refused(lambda: resume_and_check(path, config), path.name, named)


def test_what_is_cleared_and_deleted_lies_in_the_run(tmp_path: Path, config: Config) -> None:
    """Links under the names of checkpoints lose themselves and nothing else; other people's names are left alone."""
    run, outside = tmp_path / "run", save(tmp_path / "outside", config, 1)
    before = sorted(file.relative_to(outside) for file in outside.rglob("*"))
    save(run, config, 2)
    mine = ["step-5-backup.old", "step-notes.tmp", "step-.old", "steps-000001.tmp", "step-²"]
    for name in mine:
        (run / name / "kept").mkdir(parents=True)
    (run / "step-²" / PROGRESS_FILE).write_text("{}")
    for name in ("step-000001.tmp", "step-000002.old", "step-000007.old", "step-000008.tmp", "LATEST.tmp"):
        (run / name).symlink_to(outside)
    (run / "step-000009.tmp").symlink_to(run / "nothing")
    (run / "step-000010.tmp").write_text("a file")
    retention.clean(run)
    assert {p.name for p in run.iterdir()} == {"step-000002", "LATEST", "LATEST.tmp", *mine}
    (run / "step-000003.tmp").symlink_to(outside)
    (run / "step-000003.old").symlink_to(outside)
    save(run, config, 3)
    (run / "LATEST.tmp").symlink_to(outside / RUN_FILE)
    (run / "LATEST").unlink()
    (run / "LATEST").symlink_to(outside / RUN_FILE)
    (run / "step-000002.old").symlink_to(outside)
    retention.retain(run, keep_last=1)
    save(run, config, 4)
    assert sorted(file.relative_to(outside) for file in outside.rglob("*")) == before
    resume(outside, config)
    assert all((run / name / "kept").is_dir() for name in mine)
    assert [p.name for p in retention.committed(run)] == ["step-000003", "step-000004"]
    assert (run / "LATEST").read_text() == "step-000004\n" and not (run / "LATEST").is_symlink()


@pytest.mark.parametrize("content", [b"", b"../../outside", b"\xff\0", b"step-999999", None])
def test_latest_is_for_others_and_is_never_read(tmp_path: Path, config: Config, content: bytes | None) -> None:
    save(tmp_path, config, 1)
    (tmp_path / retention.LATEST).unlink()
    if content is None:
        (tmp_path / retention.LATEST).mkdir()
        refused(lambda: retention.clean(tmp_path), retention.LATEST)
        return
    (tmp_path / retention.LATEST).write_bytes(content)
    retention.clean(tmp_path)
    generate(tmp_path, config)
    save(tmp_path, config, 2)
    assert (tmp_path / retention.LATEST).read_text() == "step-000002\n"


def test_a_checkpoint_that_is_a_link_is_refused(tmp_path: Path, config: Config) -> None:
    outside = save(tmp_path / "outside", config, 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step-000005").symlink_to(outside)
    for call in (lambda: retention.latest(tmp_path / "run"), lambda: retention.retain(tmp_path / "run", 1)):
        refused(call, "step-000005 of", "is a link")
    generate(outside, config)


def test_a_checkpoint_without_its_digests_or_exports_is_damaged(whole: Path, config: Config, tmp_path: Path) -> None:
    for name in (
        "progress.json",
        "run.json",
        "digests.json",
        "ema.safetensors",
        "pinned",
        "state/00000-ema-0.safetensors",
    ):
        path = tmp_path / name.replace("/", "-") / "step-000005"
        shutil.copytree(whole / "step-000005", path)
        (path / name).unlink()
        assert retention.latest(path.parent) == path
        refused(lambda path=path: resume(path, config), name, "missing")
        if name in ("ema.safetensors", "run.json", "digests.json"):
            refused(lambda path=path: generate(path, config), name, "missing")


def test_damaged_metrics_are_named_and_a_cut_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    lines = ["".join((json.dumps({"kind": "step", "step": n, "loss": 1.5}), "\n")) for n in range(4)]
    for tail in ("", '{"kind": "st', "\0" * 512, "5"):
        path.write_text("".join(lines) + tail)
        assert [line.step for line in read_metrics(path)] == [0, 1, 2, 3]
        Log(tmp_path).rewind(2)
        assert path.read_text() == "".join(lines[:3])
    for bad in ("{", "5", "[]", '{"step": "1"}', '{"step": null}', "[" * 100_000, "\0" * 9, "9" * 2**21, '"\udc80"'):
        path.write_text("".join([lines[0], bad + "\n", lines[1]]), "utf-8", "surrogateescape")
        refused(lambda: read_metrics(path), METRICS_FILE, "line 2")
        refused(lambda: Log(tmp_path).rewind(0), METRICS_FILE, "line 2")
    Log(tmp_path).rewind(None)
    assert path.read_text() == ""


@pytest.mark.parametrize("instead", ["link", "pipe", "folder"])
def test_metrics_are_never_written_elsewhere(tmp_path: Path, instead: str) -> None:
    path, outside = tmp_path / METRICS_FILE, tmp_path / "outside"
    outside.write_text("{}\n")
    if instead == "pipe":
        os.mkfifo(path)
    elif instead == "folder":
        path.mkdir()
    else:
        path.symlink_to(outside)
        (tmp_path / "metrics.part").symlink_to(outside)
        with pytest.raises(OSError):
            Log(tmp_path).write("step", 1, {})
    refused(lambda: Log(tmp_path).rewind(1), METRICS_FILE)
    refused(lambda: read_metrics(path), METRICS_FILE)
    assert outside.read_text() == "{}\n"


def test_a_damaged_cache_of_the_reference_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cache.parquet"
    rng = random.Random(0)
    reference.write(path, [[f"n{k:03d}"] for k in range(50)], 4, lambda ids, draw: (torch.rand(1), torch.rand(1)))
    assert reference.read(path).negative(["n003"], [2]).shape == (1,)
    content = path.read_bytes()
    for damaged in [b"", content[:-9], b"PAR1" + bytes(100) + b"PAR1"]:
        path.write_bytes(damaged)
        refused(lambda: reference.read(path), "cache.parquet")
    for _ in range(60):  # pages have a checksum; what else a bit can change is named, or changes nothing
        at = rng.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
        try:
            reference.read(path).negative(["n003"], [2])
        except EchoForgeError as error:
            assert "cache.parquet" in str(error) and "\n" not in str(error)
    null = pa.Table.from_pylist([{"negative_id": "a", "draw": 0, "negative": None, "positive": 1.0}], reference.SCHEMA)
    pq.write_table(null, path)
    refused(lambda: reference.read(path).negative(["a"], [0]), "cache.parquet")
    refused(lambda: reference.read(path).negative(["b"], [0]), "cache.parquet")
    path.unlink()
    os.mkfifo(path)
    refused(lambda: reference.read(path), "cache.parquet")


@pytest.mark.parametrize("name", ["../../../evil", "/evil", "a/b", "..", ".hidden", "", "a\0b", "a\\b"])
def test_the_name_of_a_stage_leads_to_no_other_folder(tmp_path: Path, config: Config, name: str) -> None:
    planned = replace(config.train, stages=(StageConfig("s", "sft", 1), StageConfig(name, "negatives")))
    for call in (lambda: stages.plan(planned), lambda: negatives.folder(tmp_path, name)):
        with pytest.raises(ConfigError, match=r"stage '.*' cannot be called so"):
            call()


def test_a_table_of_negatives_that_lies_is_refused(tmp_path: Path) -> None:
    where = negatives.folder(tmp_path, "n")
    (where / "latents").mkdir(parents=True)
    (where / "latents" / "a.safetensors").write_bytes(save_tensors({"latents": torch.zeros(1, 2, 2)}))
    (tmp_path / "outside.safetensors").write_bytes(save_tensors({"latents": torch.zeros(1, 2, 2)}))
    (where / "latents" / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    good = dict.fromkeys(NEGATIVES.names) | {
        "negative_id": "a", "sample_id": "s", "task": "i2v", "latents_path": "latents/a.safetensors",
        "flags": [{"issue": "flicker", "score": "x", "value": 1.0, "quantile": 1.0}],
    }  # fmt: skip

    def read(**changes: Any) -> list[negatives.Negative]:
        rows = [{k: v for k, v in (good | changes).items() if v is not None}]
        pq.write_table(pa.Table.from_pylist(rows, NEGATIVES), where / negatives.SAMPLES_FILE)
        return negatives.read(tmp_path, "n", [], accept_flags=True)

    (found,) = read()
    assert negatives.latents(found, (1, 2, 2)).shape == (1, 2, 2)
    refused(lambda: negatives.latents(found, (4, 2, 2)), "latents of negative a")
    for path in ("../../../outside.safetensors", str(tmp_path / "outside.safetensors"), "latents/link.safetensors",
                 "latents", "a\0b", "x" * 5000, None):  # fmt: skip
        refused(lambda path=path: read(latents_path=path), "negative a")
    refused(lambda: read(sample_id=None), "negative a")
    (where / negatives.SAMPLES_FILE).write_bytes(b"PAR1")
    refused(lambda: negatives.read(tmp_path, "n", [], accept_flags=True), negatives.SAMPLES_FILE)
