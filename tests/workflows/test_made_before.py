"""What was made before still counts: a catalog, a dataset and a run of commit fe843c6 (`tests/made_before/make.py`).

Nothing of them is analysed, encoded or generated again; names, digests, verdicts and columns are those of then.
Floats that are computed anew have a tolerance: another CPU adds in another order.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import reviews, schema, strict
from configs.dataset_schema import DATASET_FILE, INDEX, INDEX_FILE, NEGATIVES, REVIEWS
from configs.errors import EchoForgeError
from configs.schema import Config
from curation.analysis.stages import parameters
from curation.schema import CLIPS, VIDEOS
from evaluation import defects
from pipeline.catalog.curate import curate
from pipeline.catalog.queries import relocate, status
from pipeline.catalog.redecide import chosen, configuration, redecide
from pipeline.catalog.verify import verify as verify_catalog
from pipeline.dataset.shard import shard
from pipeline.dataset.verify import verify as verify_dataset
from train.data import negatives
from train.log import METRICS_FILE
from workflows import gather
from workflows.cycle import run_cycle
from workflows.generate import generate

THEN = Path(__file__).parents[1] / "made_before" / "made.tar.xz"
VIDEOS_THEN = "/made/videos"
OF_THE_DAY = ("time", "seconds", "waited")
OTHERWISE = ("source_uri", "source", "phash")
"""Columns that may differ when a file of another folder is curated on another CPU; a bit of the hash is a comparison."""


def _unpack(root: Path) -> Path:
    with tarfile.open(THEN) as tar:
        tar.extractall(root, filter="data")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with ``videos``, ``catalog``, ``dataset``, ``run`` and ``expected.json``; the tests only read it."""
    return _unpack(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def expected(made: Path) -> dict[str, Any]:
    return json.loads((made / "expected.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def config(expected: dict[str, Any]) -> Config:
    return schema.load("tiny", expected["settings"])


def _rows(folder: Path, key: str) -> dict[str, dict[str, Any]]:
    return {Path(row[key]).name: row for row in pq.read_table(folder).to_pylist()}


def _decided(catalog: Path) -> dict[str, list[Any]]:
    clips, videos = _rows(catalog / "clips", "clip_id"), _rows(catalog / "videos", "source_uri")
    found = {name: [row["verdict"], row["reasons"], row["tier"]] for name, row in clips.items()}
    return found | {name: [row["verdict"], row["reasons"]] for name, row in videos.items()}


def _near(value: Any) -> Any:
    """``value`` with a tolerance for every float in it."""
    if isinstance(value, dict):
        return {name: _near(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_near(item) for item in value]
    return pytest.approx(value, rel=1e-2, abs=1e-3) if isinstance(value, float) else value


def test_columns_and_digests_of_settings_are_those_of_then(expected: dict[str, Any]) -> None:
    tables = {"videos": VIDEOS, "clips": CLIPS, "index": INDEX, "negatives": NEGATIVES, "reviews": REVIEWS}
    assert {name: [[f.name, str(f.type)] for f in table] for name, table in tables.items()} == expected["columns"]
    for preset, sections in expected["sections"].items():
        config = schema.load(preset)
        assert parameters(config.curation) == expected["curate"][preset]
        assert sections == {
            f"{package}.{section}": strict.digest(value, section)
            for package in ("curation", "model", "train", "pipeline", "evaluation")
            for section, value in vars(getattr(config, package)).items()
            if is_dataclass(value)
        }


def test_the_catalog_counts(tmp_path: Path, expected: dict[str, Any], config: Config) -> None:
    root = _unpack(tmp_path)
    catalog, decided = root / "catalog", expected["decided"]
    assert verify_catalog(str(catalog)).ok
    assert _decided(catalog) == decided[""]
    assert status(str(catalog)).clips == {"keep": 5, "reject": 4}
    saved = configuration(str(catalog), [])
    assert saved is not None and saved.curation == config.curation, "read through the table of renamed keys"
    before = pq.read_table(catalog / "clips")
    for threshold, then in decided.items():
        redecide(str(catalog), chosen(str(catalog), None, [*filter(None, [threshold])]))
        assert _decided(catalog) == then, threshold
        redecide(str(catalog), config)
    assert pq.read_table(catalog / "clips") == before

    redecide(str(catalog), chosen(str(catalog), None, ["decide.min_face_px=56"]))
    moved = relocate(str(catalog), VIDEOS_THEN, str(root / "videos"))
    assert moved.sources == 10 and not moved.left
    summary = curate([str(root / "videos")], str(catalog), config, inline=True, quiet=True)
    assert summary.analysed_now == 0
    assert _decided(catalog) == decided["decide.min_face_px=56"], "what `redecide` set stays"

    redecide(str(catalog), config)
    description, index = (root / "dataset" / name for name in (DATASET_FILE, INDEX_FILE))
    encoders, samples = json.loads(description.read_text("utf-8"))["parameters"], pq.read_table(index)
    sharded = shard(str(catalog), str(root / "dataset"), config, inline=True)
    assert sharded.encoded_now == 0 and sharded.samples == 10
    assert json.loads(description.read_text("utf-8"))["parameters"] == encoders
    assert pq.read_table(index) == samples


def test_a_video_gives_the_same_rows_and_samples_from_scratch(made: Path, config: Config, tmp_path: Path) -> None:
    catalog, name = tmp_path / "catalog", "puppet-0001.mp4"
    curate([str(made / "videos" / name)], str(catalog), config, inline=True, quiet=True)
    for table, key in (("videos", "source_uri"), ("clips", "clip_id")):
        then = {k: row for k, row in _rows(made / "catalog" / table, key).items() if row["source_uri"].endswith(name)}
        now = _rows(catalog / table, key)
        assert len(then) == 1 and now.keys() == then.keys()
        for row in (*then.values(), *now.values()):
            for column in OTHERWISE:
                row.pop(column, None)
        assert now == _near(then)
    shard(str(catalog), str(tmp_path / "dataset"), config, inline=True)
    index, before = (pq.read_table(f / INDEX_FILE) for f in (tmp_path / "dataset", made / "dataset"))
    same = before.filter(pa.array([clip in index["clip_id"].to_pylist() for clip in before["clip_id"].to_pylist()]))
    for column in ("sample_id", "clip_id", "video_id", "bucket", "split", "F", "H", "W", "text_lens", "tier"):
        assert index[column].to_pylist() == same[column].to_pylist(), column
    tensors, then_tensors = (
        [[(t["name"], t["dtype"], t["shape"], t["length"]) for t in row] for row in table["tensors"].to_pylist()]
        for table in (index, same)
    )
    assert tensors == then_tensors


def _generated_again(*_: Any) -> None:
    raise EchoForgeError("a batch is generated again.")


def test_the_run_counts(
    expected: dict[str, Any], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _unpack(tmp_path)
    assert verify_dataset(str(root / "dataset")).ok
    run, stage = root / "run", root / "run" / "negatives" / "n"
    negative = negatives.read(run, "n", (), accept_flags=True)
    counted = reviews.judgements(pq.read_table(stage / "samples.parquet"), reviews.read(stage), accept_flags=True)
    assert [str(j) for j in counted.values()] == expected["judgements"]
    assert [n.negative_id for n in negative] == [k for k, j in counted.items() if j.verdict == "negative"]

    done = run_cycle(str(root / "dataset"), run, config)
    assert done.outcome.status == "finished" and done.outcome.step == 5 and not done.gathered
    written = map(json.loads, (run / METRICS_FILE).read_text("utf-8").splitlines())
    lines, then = (
        [{k: v for k, v in line.items() if k not in OF_THE_DAY} for line in found]
        for found in (written, expected["metrics"])
    )
    assert lines == _near(then), "the same run as if it had gone on then"

    samples = pq.read_table(stage / "samples.parquet")
    (stage / "samples.parquet").unlink()
    monkeypatch.setattr(gather.GatherWorker, "run", _generated_again)
    gather.gather(run, str(root / "dataset"), "n", config, inline=True)
    assert pq.read_table(stage / "samples.parquet") == samples
    assert pq.read_schema(stage / "samples.parquet").metadata[b"measures"] == b"1"
    monkeypatch.setattr(defects, "VERSION", defects.VERSION + 1)
    with pytest.raises(EchoForgeError, match="batches could not be gathered"):  # old and new numbers never mix
        gather.gather(run, str(root / "dataset"), "n", config, inline=True)

    source = root / "videos" / "puppet-0001.mp4"
    assert generate(run, config, audio=source, out=tmp_path / "a.mp4", image=source, seconds=0.68).frames == 17
