"""Clips of puppets become a dataset: whole, reproducible to the byte, extendable, readable by everyone."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load as load_safetensors

from configs import schema
from configs.dataset_schema import CARD_FILE, DATASET_FILE, DIGESTS_FILE, INDEX_FILE, PROMPTS_FILE
from configs.errors import EchoForgeError
from curation import puppets
from curation import schema as catalog
from curation.media.clip_reader import read_clip
from model import conditions, masks
from pipeline import storage
from pipeline.catalog import identity
from pipeline.catalog.relocate import relocate
from pipeline.dataset.add import add as add_field
from pipeline.dataset.encode import load_encoders
from pipeline.dataset.files import read_index
from pipeline.dataset.shard import shard
from pipeline.dataset.stats import described, stats
from pipeline.dataset.verify import verify
from train.config import KeepConfig
from train.data.index import open_index
from train.data.loader import Loader
from train.data.streaming import stream
from workflows.sync_fit import fit

ROOT = Path(__file__).resolve().parents[2]
CONFIG = schema.load("tiny", ["shards.target_mb=1"])


def make_catalog(root: Path, n: int, name: str = "catalog", skip: tuple[int, ...] = ()) -> Path:
    """Puppets with a catalog from their ground truth (no operator needed): one clip each, all kept."""
    videos = root / "videos"
    if not videos.is_dir():
        puppets.make(videos, 8, 3, CONFIG.curation.puppets, False)
    rows = pq.read_table(videos / "manifest.parquet").to_pylist()[:n]
    clips, sources = [], []
    for k, row in enumerate(rows):
        if k in skip:
            continue
        path, frames = videos / row["file"], row["frames"]
        video = catalog.video_id(path)
        at = list(range(0, frames, 5))
        track = {
            "track_id": 0,
            "box_frames": at,
            "boxes": [row["face_boxes"][i] for i in at],
            "mouth_boxes": [row["mouth_boxes"][i] for i in at],
        }
        clips.append(
            {
                "clip_id": catalog.clip_id(video, 2, frames), "video_id": video, "source_uri": str(path),
                "start_frame": 2, "end_frame": frames, "width": row["size"], "height": row["size"],
                "tracks": [track], "active_track": 0, "sync_fit_conf": float(k), "verdict": "keep", "tier": "normal",
                "captions": [{"text": row["caption"], "kind": "short", "source": "sidecar"}], "offset_samples": 0,
            }
        )  # fmt: skip
        sources.append({"video_id": video, "source_uri": str(path), "licence": "CC0-1.0", "source": "puppets"})
    for table, kept, contents in (("clips", catalog.CLIPS, clips), ("videos", catalog.VIDEOS, sources)):
        (root / name / table).mkdir(parents=True, exist_ok=True)
        pq.write_table(catalog.table(contents, kept), root / name / table / "part-0.parquet")
    return root / name


def digests(root: Path) -> dict[str, str]:
    """Digest of every tar. Compared between runs on one machine: a plan fixes the batches, so the bytes (pipeline/encode)."""
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*.tar")}


def members(tar: bytes) -> dict[str, str]:
    """Name → digest of every member."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return {m.name: hashlib.sha256(archive.extractfile(m).read()).hexdigest() for m in archive}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shard")
    make_catalog(root, 8)
    shard(str(root / "catalog"), str(root / "dataset"), CONFIG, inline=True)
    return root


def _equal_but_for_rounding(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal but for one step of bfloat16.

    `shard` encodes samples in batches and a test encodes one alone; another shape may be summed in another order
    (1e-5 at most: tests/model/test_codec_dct.py), and a value near the middle of two bfloat16 is then rounded to the other.
    """
    step = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(a.float(), b.float(), rtol=step, atol=1e-5)


def sample_of(dataset: Path, row: int = 0) -> tuple[dict, dict[str, torch.Tensor], dict[str, bytes]]:  # type: ignore[type-arg]
    entry = pq.read_table(dataset / INDEX_FILE).to_pylist()[row]
    files = {}
    for member in entry["members"]:
        with (dataset / member["tar"]).open("rb") as file:
            file.seek(member["offset"])
            files[member["ext"]] = file.read(member["length"])
    return entry, load_safetensors(files["safetensors"]), files


def test_the_dataset_is_complete(world: Path) -> None:
    dataset = world / "dataset"
    for name in (INDEX_FILE, PROMPTS_FILE, DATASET_FILE, CARD_FILE):
        assert (dataset / name).stat().st_size
    table = pq.read_table(dataset / INDEX_FILE)
    assert set(table["video_id"].to_pylist()) == {catalog.video_id(p) for p in (world / "videos").glob("*.mp4")}
    assert json.loads((dataset / DATASET_FILE).read_bytes())["totals"]["samples"] == table.num_rows
    shown = dict(described(stats(str(dataset))))
    assert shown["samples"].startswith(f"{table.num_rows} (") and shown["sync_c"] == "not measured"
    assert "latents" in shown["kB a sample"] and "96x96x33" in shown["by bucket"]
    assert "stand-in" in (dataset / CARD_FILE).read_text() and "CC0-1.0" in (dataset / CARD_FILE).read_text()
    assert "null" in load_safetensors((dataset / PROMPTS_FILE).read_bytes())
    assert not list(dataset.rglob("*.tmp")) and not list(dataset.rglob("*.pkl"))


def test_tensors_are_those_of_the_clip(world: Path) -> None:
    entry, tensors, files = sample_of(world / "dataset")
    meta = json.loads(files["json"])
    encoders = load_encoders(CONFIG.model, CONFIG.pipeline.encode)
    start = meta["start_frame"]
    clip = read_clip(meta["source_uri"], start, start + 33, width=96, height=96, crop=meta["crop"])
    video = torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    latents = encoders.codec.encode(video)[0].to(torch.bfloat16)
    _equal_but_for_rounding(tensors["latents"], latents)
    mask = masks.pixel_mask("flf2v", 33, 96, 96)
    want = encoders.codec.encode(conditions.masked_video(video, mask))[0].to(torch.bfloat16)
    mask4 = masks.latent_mask(mask)
    got = conditions.condition(
        "flf2v", latents, i2v=tensors["cond_i2v"], flf2v_last=tensors["cond_flf2v_last"], mask4=mask4
    )
    _equal_but_for_rounding(got[4:], want)
    ref = next(t for t in entry["tensors"] if t["name"] == "text.0")
    with (world / "dataset" / ref["tar"]).open("rb") as file:
        file.seek(ref["offset"])
        stored = torch.frombuffer(bytearray(file.read(ref["length"])), dtype=torch.bfloat16).view(ref["shape"])
    assert torch.equal(stored, encoders.text.encode(meta["captions"])[0].to(torch.bfloat16))  # words are looked up
    assert len(stored) == entry["text_lens"][0] and "/texts/" in ref["tar"]
    grid = entry["audio"][0]
    rows = tensors["audio.whisper"]
    assert grid["frame0"] == CONFIG.model.audio_encoder.context_frames * 2 and rows.isfinite().all()
    assert rows[grid["valid_from"] : grid["valid_to"]].any() and not rows[: grid["valid_from"]].any()
    unpacked = masks.unpack_bits(tensors["mouth_mask"], 36)
    assert torch.equal(unpacked, masks.box_grid(tensors["mouth_boxes"], 33, 96, 96).flatten(1)) and unpacked.any()


def test_boxes_follow_the_face(world: Path) -> None:
    manifest = {catalog.video_id(world / "videos" / r["file"]): r
                for r in pq.read_table(world / "videos" / "manifest.parquet").to_pylist()}  # fmt: skip
    for k in range(4):
        entry, tensors, files = sample_of(world / "dataset", k)
        start = json.loads(files["json"])["start_frame"]
        truth = np.asarray(manifest[entry["video_id"]]["face_boxes"])[start : start + 33]
        seen = tensors["face_boxes"].isfinite().all(1).numpy()
        assert seen.mean() > 0.9 and np.abs(tensors["face_boxes"].numpy()[seen] - truth.clip(0, 96)[seen]).max() < 6


def test_a_second_run_encodes_nothing_and_another_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    before = digests(world / "dataset")
    assert shard(str(world / "catalog"), str(world / "dataset"), CONFIG, inline=True).encoded_now == 0
    again = shard(str(world / "catalog"), str(tmp_path / "other"), CONFIG, inline=True)
    assert again.encoded_now == len(before) and digests(tmp_path / "other") == before == digests(world / "dataset")
    first, second = (pq.read_table(r / INDEX_FILE) for r in (world / "dataset", tmp_path / "other"))
    assert first.equals(second)


def test_a_killed_run_resumes_without_encoding_what_is_committed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.dataset.jobs import Job, ShardWorker

    honest, seen = ShardWorker.run, []

    def dies(self: ShardWorker, payload: Job) -> object:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(payload.tar)
        return honest(self, payload)

    config = schema.load("tiny", ["shards.target_mb=1", "execution.commit_units=1"])
    monkeypatch.setattr(ShardWorker, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        shard(str(world / "catalog"), str(tmp_path / "d"), config, inline=True)
    monkeypatch.setattr(ShardWorker, "run", honest)
    assert not (tmp_path / "d" / INDEX_FILE).exists()
    summary = shard(str(world / "catalog"), str(tmp_path / "d"), config, inline=True)
    assert summary.encoded_now == summary.tars - 2
    assert digests(tmp_path / "d") == digests(world / "dataset")


def test_what_the_ledger_or_the_disk_lost_is_made_again_and_nothing_else(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tar that is gone, one that is cut short, and a damaged part of the ledger."""
    out, config = tmp_path / "d", schema.load("tiny", ["shards.target_mb=1", "execution.commit_units=1"])
    shard(str(world / "catalog"), str(out), config, inline=True)
    before = digests(out)
    gone, short, *_ = sorted(out.glob("gen-000/*x*/*.tar"))
    gone.unlink()
    os.truncate(short, 2048)
    part = max(out.glob("ledger/shard/*/parts/*.parquet"), key=lambda path: path.stat().st_size)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 4
    part.write_bytes(data)
    summary = shard(str(world / "catalog"), str(out), config, inline=True)
    said = capsys.readouterr().err
    assert digests(out) == before and summary.encoded_now in (2, 3)
    assert f"'{part}' is damaged" in said and "tars are gone or cut short" in said


def test_new_videos_make_a_new_generation_and_touch_nothing(world: Path, tmp_path: Path) -> None:
    few, out = make_catalog(world, 5, "few"), tmp_path / "d"
    shard(str(few), str(out), CONFIG, inline=True)
    before = digests(out)
    splits = dict(zip(*(pq.read_table(out / INDEX_FILE)[n].to_pylist() for n in ("video_id", "split")), strict=True))
    shard(str(world / "catalog"), str(out), CONFIG, inline=True)
    after = digests(out)
    assert before.items() < after.items() and any(name.startswith("gen-001/") for name in after)
    table = pq.read_table(out / INDEX_FILE)
    now = list(zip(table["video_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert all(splits.get(video, split) == split for video, split in now)
    assert len(set(now)) == len({video for video, _ in now})  # a video is in one split


def test_a_new_verdict_changes_the_index_and_no_tar(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "d"
    few = make_catalog(world, 4, "verdicts")
    shard(str(few), str(out), CONFIG, inline=True)
    before, part = digests(out), few / "clips" / "part-0.parquet"
    rows = pq.read_table(part).to_pylist()
    rows[0]["verdict"] = "reject"
    pq.write_table(catalog.table(rows, catalog.CLIPS), part)
    shard(str(few), str(out), CONFIG, inline=True)
    table = pq.read_table(out / INDEX_FILE)
    verdicts = dict(zip(table["clip_id"].to_pylist(), table["verdict"].to_pylist(), strict=True))
    assert verdicts[rows[0]["clip_id"]] == "reject" and digests(out) == before


def rewrite_clips(where: Path, change: Callable[[int, dict], dict]) -> None:  # type: ignore[type-arg]
    """Every row of a catalog's clips table, changed."""
    part = where / "clips" / "part-0.parquet"
    rows = pq.read_table(part).to_pylist()
    pq.write_table(catalog.table([change(k, row) for k, row in enumerate(rows)], catalog.CLIPS), part)


def marks(dataset: Path) -> dict[str, tuple[str, str | None]]:
    """Sample id → verdict and reason."""
    table = pq.read_table(dataset / INDEX_FILE)
    values = zip(table["verdict"].to_pylist(), table["reason"].to_pylist(), strict=True)
    return dict(zip(table["sample_id"].to_pylist(), values, strict=True))


def test_a_sample_made_otherwise_today_is_superseded_and_training_sees_one_version_of_a_clip(
    world: Path, tmp_path: Path
) -> None:
    out, keep, old = tmp_path / "d", ("keep", None), ("reject", "superseded")
    mine, other = make_catalog(world, 4, "mine"), make_catalog(world, 8, "other", skip=(0, 1, 2, 3))
    shard(str(mine), str(out), CONFIG, inline=True)
    shard(str(other), str(out), CONFIG, inline=True)
    before = marks(out)
    tars = digests(out)
    assert set(before.values()) == {keep}
    saved = (mine / "clips" / "part-0.parquet").read_bytes()

    def changed(number: int, row: dict) -> dict:  # type: ignore[type-arg]
        later = {"start_frame": 3, "clip_id": catalog.clip_id(row["video_id"], 3, row["end_frame"])}
        cut = {"crop": {"x": 4, "y": 4, "w": 88, "h": 88}}
        return row | [{"offset_samples": 1280}, cut, later, {}][number]

    rewrite_clips(mine, changed)
    ids = pq.read_table(mine / "clips" / "part-0.parquet")["clip_id"].to_pylist()
    shard(
        str(mine), str(out), CONFIG, inline=True, limit=1
    )  # plans the clip with the least id, and answers for it alone
    assert sum(mark == old for mark in marks(out).values()) == (ids.index(min(ids)) != 3)
    shard(str(mine), str(out), CONFIG, inline=True)
    after = marks(out)
    superseded = {sample for sample in before if after[sample] == old}
    assert len(superseded) == 3 and {after[s] for s in set(after) - superseded} == {keep}
    assert len(after) == len(before) + 3 and tars.items() < digests(out).items()
    for split in ("train", "val", "test", "negatives"):
        with contextlib.suppress(EchoForgeError):  # an empty split
            seen = open_index(out, split=split, keep=KeepConfig(("keep", "reject"), (), {}, {}, ())).table
            assert not superseded & set(seen["sample_id"].to_pylist())
            assert len(set(seen["video_id"].to_pylist())) == seen.num_rows
    shard(str(other), str(out), CONFIG, inline=True)
    assert marks(out) == after, "another catalog knows nothing of these videos"
    shard(str(mine), str(out), schema.load("tiny", ["shards.target_mb=1", "buckets.lengths=[17]"]), inline=True)
    shorter = marks(out)
    assert len(shorter) > len(after) and {s: shorter[s] for s in after} == after, "other lengths are other buckets"
    (mine / "clips" / "part-0.parquet").write_bytes(saved)
    shard(str(mine), str(out), CONFIG, inline=True)
    back = marks(out)
    assert {back[sample] for sample in before} == {keep}
    assert {back[sample] for sample in set(after) - set(before)} == {old}


def test_other_sizes_and_videos_without_clips_supersede_nothing(world: Path, tmp_path: Path) -> None:
    out, keep = tmp_path / "d", ("keep", None)
    two = make_catalog(world, 2, "two")
    small = schema.load("tiny", ["shards.target_mb=1", "buckets.areas=[4096]"])
    shard(str(two), str(out), small, inline=True)
    before = marks(out)
    shard(str(two), str(out), schema.load("tiny", ["shards.target_mb=1", "buckets.areas=[4096, 9216]"]), inline=True)
    assert len(marks(out)) > len(before) and set(marks(out).values()) == {keep}, "another size is another bucket"
    part = two / "clips" / "part-0.parquet"
    pq.write_table(pq.read_table(part).slice(1), part)  # as when the analysis of a video ends in an error now
    shard(str(two), str(out), small, inline=True)
    assert set(marks(out).values()) == {keep}


def test_a_store_that_fails_for_a_moment_loses_no_sample(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, out, entry = make_catalog(world, 2, "moment"), tmp_path / "d", storage.entry

    def broken(uri: str) -> storage.Entry:
        if uri.endswith(".mp4") and uri in lost:
            raise storage.StoreError(f"'{uri}' does not answer.")
        return entry(uri)

    sources = pq.read_table(two / "clips" / "part-0.parquet")["source_uri"].to_pylist()
    for lost in ([sources[0]], sources):
        monkeypatch.setattr(storage, "entry", broken)
        if lost == sources:
            with pytest.raises(EchoForgeError, match=r"does not answer.*mend these and run again"):
                shard(str(two), str(tmp_path / "e"), CONFIG, inline=True)
        else:
            assert "does not answer" in str(shard(str(two), str(out), CONFIG, inline=True))
    monkeypatch.undo()
    for place in (out, tmp_path / "e"):
        shard(str(two), str(place), CONFIG, inline=True)
        assert len(marks(place)) == 2


def test_an_index_of_an_earlier_version_is_read_and_one_without_scores_is_not(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "dataset", tmp_path / "d")
    (tmp_path / "d" / DIGESTS_FILE).unlink()  # earlier versions wrote none
    index = pq.read_table(tmp_path / "d" / INDEX_FILE)
    pq.write_table(index.drop_columns("reason"), tmp_path / "d" / INDEX_FILE)
    assert read_index(str(tmp_path / "d"))["reason"].null_count == index.num_rows
    assert len(open_index(tmp_path / "d", split="train", keep=CONFIG.train.loader.keep))
    pq.write_table(index.drop_columns("verdict"), tmp_path / "d" / INDEX_FILE)
    with pytest.raises(EchoForgeError, match="lacks the columns verdict"):
        read_index(str(tmp_path / "d"))


def test_a_file_under_two_names_stays_kept(world: Path, tmp_path: Path) -> None:
    few = make_catalog(world, 2, "twice")
    rows = pq.read_table(few / "clips" / "part-0.parquet").to_pylist()
    rows.append(rows[0] | {"source_uri": "copy.mp4", "verdict": "reject", "duplicate_of": rows[0]["clip_id"]})
    pq.write_table(catalog.table(rows, catalog.CLIPS), few / "clips" / "part-0.parquet")
    shard(str(few), str(tmp_path / "d"), CONFIG, inline=True)
    assert set(pq.read_table(tmp_path / "d" / INDEX_FILE)["verdict"].to_pylist()) == {"keep"}


def test_an_unreadable_clip_is_named_and_changes_no_other_sample(world: Path, tmp_path: Path) -> None:
    few = make_catalog(world, 4, "broken")
    rows = pq.read_table(few / "clips" / "part-0.parquet").to_pylist()
    rows[1]["source_uri"] = str(tmp_path / "gone.mp4")
    pq.write_table(catalog.table(rows, catalog.CLIPS), few / "clips" / "part-0.parquet")
    summary = shard(str(few), str(tmp_path / "d"), CONFIG, inline=True)
    assert any("gone.mp4" in cause for cause in summary.failed)
    assert rows[1]["clip_id"] not in pq.read_table(tmp_path / "d" / INDEX_FILE)["clip_id"].to_pylist()


def as_curated(root: Path, n: int, name: str, home: str) -> tuple[Path, list[dict[str, Any]]]:
    """A catalog whose sources are copies below ``home``, with the size and tag that `curate` would note."""
    where = make_catalog(root, n, name)
    found = {}
    for table, kept in (("videos", catalog.VIDEOS), ("clips", catalog.CLIPS)):
        rows = pq.read_table(where / table / "part-0.parquet").to_pylist()
        for row in rows:
            data = Path(row["source_uri"]).read_bytes()
            row["source_uri"] = uri = storage.join(home, Path(row["source_uri"]).name)
            if table == "videos":
                storage.write_bytes(uri, data)
                row |= {"bytes": len(data), "source_tag": storage.entry(uri).tag}
        pq.write_table(catalog.table(rows, kept), where / table / "part-0.parquet")
        found[table] = rows
    return where, found["clips"]


def clips_in(dataset: Path) -> set[str]:
    return set(pq.read_table(dataset / INDEX_FILE)["clip_id"].to_pylist())


@pytest.mark.parametrize("remote", [False, True], ids=["disk", "object store"])
def test_a_file_replaced_after_curate_is_left_out_and_named_once(
    world: Path, tmp_path: Path, remote: bool, request: pytest.FixtureRequest
) -> None:
    home = f"{request.getfixturevalue('s3')}/sources" if remote else str(tmp_path / "sources")
    where, clips = as_curated(world, 3, f"replaced-{remote}", home)
    uris = [clip["source_uri"] for clip in clips]
    storage.write_bytes(uris[0], storage.read_bytes(uris[1]))  # another video under the old name
    tail = storage.read_bytes(uris[2])
    storage.write_bytes(uris[2], tail[:-1] + bytes([tail[-1] ^ 1]))  # as long as before, one bit differs
    storage.write_bytes(uris[1], storage.read_bytes(uris[1]))  # touched: the same bytes, a new time
    summary = shard(str(where), str(tmp_path / "d"), CONFIG, inline=True)
    assert clips_in(tmp_path / "d") == {clips[1]["clip_id"]}
    left = [line for line in summary.failed if "changed since it was curated; run `curate` again" in line]
    assert sorted(line.partition(": changed")[0] for line in left) == sorted([uris[0], uris[2]])
    assert len(summary.failed) == len(left)
    whole = pq.read_table(world / "dataset" / INDEX_FILE).to_pylist()
    at = next(i for i, row in enumerate(whole) if row["clip_id"] == clips[1]["clip_id"])
    touched, as_ever = sample_of(tmp_path / "d")[1], sample_of(world / "dataset", at)[1]
    assert all(torch.equal(touched[name].nan_to_num(), as_ever[name].nan_to_num()) for name in as_ever)


def test_a_source_whose_size_and_time_agree_is_not_read_to_compare_it(world: Path, tmp_path: Path) -> None:
    """Its id is not the hash of its bytes here, and nobody finds out; without the time somebody does."""
    where, clips = as_curated(world, 2, "trusted", str(tmp_path / "sources"))
    for table, kept in (("videos", catalog.VIDEOS), ("clips", catalog.CLIPS)):
        rows = pq.read_table(where / table / "part-0.parquet").to_pylist()
        rows = [row | {"video_id": f"{k:016x}"} for k, row in enumerate(rows)]
        if table == "videos":
            rows[1]["source_tag"] = None  # a catalog of an older version
        pq.write_table(catalog.table(rows, kept), where / table / "part-0.parquet")
    summary = shard(str(where), str(tmp_path / "d"), CONFIG, inline=True)
    assert clips_in(tmp_path / "d") == {clips[0]["clip_id"]}
    assert [line.partition(": ")[0] for line in summary.failed] == [clips[1]["source_uri"]]


def test_a_source_that_is_back_is_encoded_and_one_that_stays_away_is_planned_once(world: Path, tmp_path: Path) -> None:
    where, clips = as_curated(world, 3, "away", str(tmp_path / "sources"))
    first, second = (Path(clip["source_uri"]) for clip in clips[:2])
    kept = first.read_bytes(), second.read_bytes()
    first.unlink()
    second.write_bytes(b"something else")
    out = tmp_path / "d"
    for _ in range(2):
        summary = shard(str(where), str(out), CONFIG, inline=True)
        assert sorted(summary.failed) == [f"{first}: {identity.GONE}", f"{second}: {identity.CHANGED}"]
    assert clips_in(out) == {clips[2]["clip_id"]} and not (out / "gen-001").exists()
    before = digests(out)
    first.write_bytes(kept[0])
    assert shard(str(where), str(out), CONFIG, inline=True).failed == [f"{second}: {identity.CHANGED}"]
    second.write_bytes(kept[1])
    for _ in range(2):
        summary = shard(str(where), str(out), CONFIG, inline=True)
        assert not summary.failed and summary.samples == 3 and clips_in(out) == {clip["clip_id"] for clip in clips}
    assert before.items() < digests(out).items() and verify(str(out)).ok
    assert add_field(str(out), "cond_avatar", CONFIG, inline=True) == 3 and verify(str(out)).ok


def test_sync_fit_leaves_out_a_file_that_was_replaced_and_says_so(world: Path, tmp_path: Path) -> None:
    where, clips = as_curated(world, 2, "fitted", str(tmp_path / "sources"))
    Path(clips[0]["source_uri"]).write_bytes(b"replaced")
    with pytest.raises(EchoForgeError, match=r"Left out: .*changed since it was curated") as caught:
        fit(str(where), tmp_path / "fit.safetensors", CONFIG, domain="two puppets, too few to fit on")
    assert clips[0]["source_uri"] in str(caught.value) and clips[1]["source_uri"] not in str(caught.value)


def test_after_curating_again_the_new_file_is_encoded_and_the_old_cause_is_gone(world: Path, tmp_path: Path) -> None:
    where, clips = as_curated(world, 3, "recurated", str(tmp_path / "sources"))
    other = next(
        p for p in (world / "videos").glob("*.mp4") if p.name not in {Path(c["source_uri"]).name for c in clips}
    )
    Path(clips[0]["source_uri"]).write_bytes(other.read_bytes())
    assert shard(str(where), str(tmp_path / "d"), CONFIG, inline=True).failed
    video = catalog.video_id(other)
    for table, kept in (("videos", catalog.VIDEOS), ("clips", catalog.CLIPS)):
        rows = pq.read_table(where / table / "part-0.parquet").to_pylist()
        rows[0] |= {"video_id": video}
        if table == "clips":
            rows[0] |= {"clip_id": catalog.clip_id(video, 2, 40), "end_frame": 40}
        else:
            there = storage.entry(clips[0]["source_uri"])
            rows[0] |= {"bytes": there.size, "source_tag": there.tag}
        pq.write_table(catalog.table(rows, kept), where / table / "part-0.parquet")
    summary = shard(str(where), str(tmp_path / "d"), CONFIG, inline=True)
    assert catalog.clip_id(video, 2, 40) in clips_in(tmp_path / "d") and not summary.failed


def test_refusals(world: Path, tmp_path: Path) -> None:
    with pytest.raises(EchoForgeError, match="curate"):
        shard(str(tmp_path), str(tmp_path / "d"), CONFIG, inline=True)
    other = schema.load("tiny", ["encode.jpeg_quality=50"])
    with pytest.raises(EchoForgeError, match="other settings"):
        shard(str(world / "catalog"), str(world / "dataset"), other, inline=True)


def test_everyone_can_read_it(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain tarfile, webdataset in secure mode, `datasets`, and our loader."""
    dataset = world / "dataset"
    table = pq.read_table(dataset / INDEX_FILE)
    ids, tars = set(table["sample_id"].to_pylist()), sorted(dataset.rglob("shard-*.tar"))
    names = [name for tar in tars for name in tarfile.open(tar).getnames()]  # noqa: SIM115
    assert {name.split(".")[0] for name in names} == ids
    assert [n.split(".")[1] for n in names[:6]] == ["safetensors", "json", "txt", "jpg", "flac", "mp4"]

    import webdataset as wds

    monkeypatch.setattr(wds.utils, "enforce_security", True)
    stream = wds.WebDataset([str(t) for t in tars], shardshuffle=False)
    assert {
        s["__key__"] for s in stream if load_safetensors(s["safetensors"])["latents"].shape == (16, 9, 12, 12)
    } == ids

    import datasets

    files = [str(t) for t in tars]
    loaded = datasets.load_dataset(  # its cache would go to the home folder, which need not be writable
        "webdataset", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path)
    )
    loaded = loaded.select_columns(["__key__", "json", "txt"])
    assert {row["__key__"] for row in loaded} == ids

    with Loader(
        str(dataset), CONFIG.train.loader, seed=0, global_batch=2, tasks=("i2v", "flf2v", "lip_sync")
    ) as loader:
        batch = next(loader)
    assert batch["latents"].isfinite().all() and set(batch.sample_ids) <= ids
    assert KeepConfig().verdicts == ("keep",)


def test_a_caption_is_encoded_and_stored_once(world: Path, tmp_path: Path) -> None:
    """Two clips say the same and one says more; a later generation with a known caption adds no text."""
    few = make_catalog(world, 4, "captions")
    rows = pq.read_table(few / "clips" / "part-0.parquet").to_pylist()
    for row, texts in zip(rows, (["a"], ["a"], ["a", "b"], ["b"]), strict=True):
        row["captions"] = [{"text": text, "kind": "short", "source": "sidecar"} for text in texts]
    pq.write_table(catalog.table(rows[:3], catalog.CLIPS), few / "clips" / "part-0.parquet")
    out = tmp_path / "d"
    shard(str(few), str(out), CONFIG, inline=True)
    pq.write_table(catalog.table(rows, catalog.CLIPS), few / "clips" / "part-0.parquet")
    shard(str(few), str(out), CONFIG, inline=True)
    assert [p.name for p in out.rglob("texts-*.tar")] == ["texts-000000.tar"]
    with tarfile.open(next(out.rglob("texts-*.tar"))) as tar:
        assert sorted(n.split(".")[1] for n in tar.getnames()) == ["safetensors"] * 2 + ["txt"] * 2
    index = pq.read_table(out / INDEX_FILE).to_pylist()
    places = {row["clip_id"]: [t["offset"] for t in row["tensors"] if t["name"].startswith("text.")] for row in index}
    one, same, both, late = (places[row["clip_id"]] for row in rows)
    assert one == same == both[:1] and late == both[1:] and len(both) == 2
    assert verify(str(out)).ok
    streamed = {s.sample_id: s.tensors for s in stream(out)}
    assert all("text.0" in tensors and "latents" in tensors for tensors in streamed.values()) and streamed


def test_verify_inspect_and_add(world: Path, tmp_path: Path) -> None:
    from pipeline.dataset.inspect import inspect

    few, out = make_catalog(world, 3, "tools"), tmp_path / "d"
    shard(str(few), str(out), CONFIG, inline=True)
    before = digests(out)
    assert add_field(str(out), "cond_avatar", CONFIG, inline=True) == pq.read_table(out / INDEX_FILE).num_rows
    assert before.items() < digests(out).items()
    shard(str(few), str(out), CONFIG, inline=True)  # the field stays when the index is made again
    report = verify(str(out))
    assert report.ok, str(report)
    row, _, files = sample_of(out)
    start = json.loads(files["json"])["start_frame"]
    assert "keep" in (out / CARD_FILE).read_text(), "the card still says what curation kept"
    assert {t["name"]: t["shape"] for t in row["tensors"]}["cond_avatar"] == [16, 9, 12, 12]
    with Loader(str(out), CONFIG.train.loader, seed=0, global_batch=1, tasks=("avatar_sync",)) as loader:
        assert next(loader)["cond_avatar"].any()
    seen = inspect(str(out), row["sample_id"][:6], str(tmp_path / "look"), CONFIG.model)
    original = read_clip(seen.facts["source"], start, start + 33, width=96, height=96).frames.astype(float)
    shown = read_clip(str(seen.video), 0, 33, width=96, height=96).frames.astype(float)
    assert 10 * np.log10(255**2 / ((shown - original) ** 2).mean()) > 20 and seen.picture.stat().st_size


def test_a_dataset_on_an_object_store(world: Path, s3: str) -> None:
    """The same bytes as on a disk, verified there, read back by range requests."""
    few = make_catalog(world, 3, "remote")
    there, here = f"{s3}/dataset", world / "remote-here"
    shard(str(few), there, CONFIG, inline=True)
    shard(str(few), str(here), CONFIG, inline=True)
    for tar in digests(here):
        assert members(storage.read_bytes(f"{there}/{tar}")) == members((here / tar).read_bytes()), tar
    assert verify(there).ok
    batches = []
    for root in (there, str(here)):
        with Loader(root, CONFIG.train.loader, seed=0, global_batch=2, pin=False) as loader:
            batches.append(next(loader))
    assert batches[0].sample_ids == batches[1].sample_ids
    # Both were encoded here, from one plan.
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in ("latents", "cond_i2v", "text", "audio"))


@pytest.mark.slow
def test_a_dataset_in_an_object_store_that_fails_is_the_same(world: Path, s3: str, proxy: Any) -> None:
    """Every request fails once, in all the ways that networks know."""
    few = make_catalog(world, 3, "faulty")
    there, here = f"{s3}/faulty-dataset", world / "faulty-here"
    shard(str(few), str(here), CONFIG, inline=True)
    proxy.failing = 1
    shard(str(few), there, CONFIG, inline=True)
    assert proxy.done.total() > 30
    for tar in digests(here):
        assert members(storage.read_bytes(f"{there}/{tar}")) == members((here / tar).read_bytes()), tar
    assert read_index(there) == read_index(str(here)) and verify(there).ok


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_moment_the_tars_are_byte_for_byte_the_same(world: Path, tmp_path: Path) -> None:
    """kill -9 of `cli.py shard` and all its workers, again and again; nothing committed is encoded a second time."""
    chance = random.Random(3)
    config = schema.load("tiny", ["shards.target_mb=0"])  # a tar for every sample
    straight = tmp_path / "straight"
    shard(str(world / "catalog"), str(straight), config, inline=True)
    want, out = digests(straight), tmp_path / "killed"
    command = [
        sys.executable,
        "cli.py",
        "shard",
        str(world / "catalog"),
        "--out",
        str(out),
        "--set",
        "shards.target_mb=0",
    ]
    first_seen: dict[str, int] = {}
    for kill in range(8):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        before, deadline = len(digests(out)), time.monotonic() + 60
        while process.poll() is None and len(digests(out)) <= before and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        _kill_all(process.pid)
        process.wait()
        done = {unit for part in (out / "ledger" / "shard").rglob("*.parquet") for unit in _units_of(part)}
        for tar, digest in digests(out).items():
            assert want[tar] == digest, f"half a tar after kill {kill}"
        first_seen |= {u: (out / u).stat().st_mtime_ns for u in done if u not in first_seen}
    summary = shard(str(world / "catalog"), str(out), config, inline=True)
    assert digests(out) == want and not summary.failed and verify(str(out)).ok
    assert all((out / tar).stat().st_mtime_ns == made for tar, made in first_seen.items()), "committed, encoded again"
    assert not [p for p in out.rglob("*") if ".tmp" in p.name]


def _units_of(part: Path) -> list[str]:
    """The tars that a part file of the ledger calls done."""
    table = pq.read_table(part)
    return table["key"].to_pylist() if "key" in table.column_names else []


def _kill_all(pid: int) -> None:
    """kill -9 of a process and everything that it started, Ray's included."""
    children = {pid}
    for _ in range(5):
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rsplit(")", 1)[1].split()[1]) in children:
                    children.add(int(stat.parent.name))
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def test_a_condition_is_made_from_the_stored_video_when_the_source_is_gone(world: Path, tmp_path: Path) -> None:
    few, out = make_catalog(world, 2, "gone"), tmp_path / "d"
    rows = pq.read_table(few / "clips" / "part-0.parquet").to_pylist()
    for row in rows:
        row["source_uri"] = str(shutil.copy(row["source_uri"], tmp_path))
    pq.write_table(catalog.table(rows, catalog.CLIPS), few / "clips" / "part-0.parquet")
    shard(str(few), str(out), CONFIG, inline=True)
    for row in rows:
        Path(row["source_uri"]).unlink()
    assert add_field(str(out), "cond_avatar", CONFIG, inline=True) == pq.read_table(out / INDEX_FILE).num_rows
    assert verify(str(out)).ok
    with Loader(str(out), CONFIG.train.loader, seed=0, global_batch=1, tasks=("avatar_sync", "i2v")) as loader:
        batch = next(loader)
    outside = (batch["cond_avatar"] - batch["latents"]).float()[..., :2].abs().mean()  # left of the face: as the video
    assert outside < 0.5 * batch["latents"].float()[..., :2].abs().mean()


@pytest.mark.slow
def test_the_real_vae_s_code_makes_shards_too(world: Path, tmp_path: Path) -> None:
    """A Wan VAE of the real layout, narrow and with random weights: causal, so that the stored conditions are exact."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1)
    vae.save_pretrained(tmp_path / "vae")
    config = schema.load("tiny", ["codec.kind=wan", f"codec.path={tmp_path / 'vae'}", "encode.batch=2"])
    few, out = make_catalog(world, 2, "wan"), tmp_path / "d"
    shard(str(few), str(out), config, inline=True)
    assert verify(str(out)).ok
    description = json.loads((out / DATASET_FILE).read_bytes())
    assert description["encoders"]["codec"]["name"] == "Wan2.1 VAE"
    _, tensors, files = sample_of(out)
    meta = json.loads(files["json"])
    start = meta["start_frame"]
    frames = read_clip(meta["source_uri"], start, start + 33, width=96, height=96, crop=meta["crop"]).frames
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    mask = masks.pixel_mask("flf2v", 33, 96, 96)
    codec = load_encoders(config.model, config.pipeline.encode).codec
    want = codec.encode(conditions.masked_video(video, mask))[0].to(torch.bfloat16)
    got = conditions.condition(
        "flf2v", tensors["latents"], i2v=tensors["cond_i2v"], flf2v_last=tensors["cond_flf2v_last"],
        mask4=masks.latent_mask(mask),
    )  # fmt: skip
    torch.testing.assert_close(got[4:].float(), want.float(), rtol=0.02, atol=0.02)


def test_media_that_moved_are_encoded_after_a_relocation_and_until_then_the_causes_are_named(tmp_path: Path) -> None:
    catalog_dir = make_catalog(tmp_path, 4)
    expected = shard(str(catalog_dir), str(tmp_path / "expected"), CONFIG, inline=True)
    shutil.move(tmp_path / "videos", tmp_path / "moved")
    with pytest.raises(EchoForgeError) as nothing:
        shard(str(catalog_dir), str(tmp_path / "dataset"), CONFIG, inline=True)
    message = str(nothing.value)
    assert message.count(f"{tmp_path}/videos/puppet-") >= 3 and "(and 1 more)" in message
    assert f"`catalog relocate {catalog_dir} OLD NEW`" in message and "\n" not in message
    relocate(str(catalog_dir), str(tmp_path / "videos"), str(tmp_path / "moved"))
    summary = shard(str(catalog_dir), str(tmp_path / "dataset"), CONFIG, inline=True)
    assert (summary.samples, summary.failed) == (expected.samples, [])
    assert verify(str(tmp_path / "dataset")).ok
    assert shard(str(catalog_dir), str(tmp_path / "dataset"), CONFIG, inline=True).encoded_now == 0
