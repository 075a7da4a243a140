"""How ``made.tar.xz`` was made: a catalog, a dataset and a run of an earlier version, which later ones must still read.

It was made with commit fe843c6, the last one before the modules were moved into folders. Its layout is assumed here, so
that this runs with that commit only:

    mkdir -p /made/code && git archive fe843c6 | tar -x -C /made/code
    python tests/made_before/make.py /made/code

A copy without ``.git`` records no revision, and ``/made`` is the place that the catalog names its videos by. The test
moves them (`catalog relocate`).
"""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path("/made")
TIME = 1_700_000_000  # of all videos and sidecars: the ids of units hash it
PUPPETS = (None, None, None, None, None, "duplicate_exact", "no_face", "damaged", "subtitles", "silence")
SETTINGS = [
    "sync.required=false",
    "puppets.max_s=1.8",
    "buckets.lengths=[17]",
    "buckets.areas=[4096]",
    "encode.tasks=[i2v, lip_sync]",
    "shards.splits={negatives: 0.35, val: 0.2}",
    "transformer.dim=16",
    "transformer.ffn_dim=16",
    "transformer.num_heads=1",
    "transformer.patch_size=[1, 2, 2]",
    "transformer.num_layers=1",
    "transformer.freq_dim=16",
    "transformer.audio.hidden=8",
    "loader.global_batch=2",
    "optim.micro_batch=2",
    "optim.threads=1",
    "sampler.steps=2",
    "log.every=1",
    "log.validate_every=2",
    "log.validation_samples=1",
    "gather.batch=2",
    "gather.quantile=0.5",
    "gather.margin=0.0",
    "objective.negative.ratio_stop=0",
    "stages=[{name: s, kind: sft, steps: 3}, {name: n, kind: negatives, samples: 3}, {name: d, kind: ndpo, steps: 2}]",
]
THRESHOLDS = {  # tried, and taken back
    "sync.required=true": "sync.required=false",
    "decide.min_face_px=56": "decide.min_face_px=24.0",
    "decide.min_sharpness=0.59": "decide.min_sharpness=0.27",
}


def main(code: Path) -> None:
    """Make everything below :data:`ROOT` with the program at ``code``, and pack it beside this file."""
    sys.path.insert(0, str(code))
    for name in ("videos", "catalog", "dataset", "run", "continued"):
        shutil.rmtree(ROOT / name, ignore_errors=True)
    _videos()
    options = [word for setting in SETTINGS for word in ("--set", setting)]

    def run(*words: str) -> None:
        subprocess.run([sys.executable, str(code / "cli.py"), *words], check=True, cwd=ROOT)

    run("curate", "videos", "--out", "catalog", "--inline", *options)
    expected: dict[str, Any] = {"settings": SETTINGS, "decided": {"": _decided()}}
    for threshold, back in THRESHOLDS.items():
        run("catalog", "redecide", "catalog", "--set", threshold)
        expected["decided"][threshold] = _decided()
        run("catalog", "redecide", "catalog", "--set", back)
    assert _decided() == expected["decided"][""]
    run("shard", "catalog", "--out", "dataset", "--inline", *options)
    run("train", "dataset", "--out", "run", "--review", *options)  # until the negatives wait for a review
    _review(run)
    shutil.copytree(ROOT / "run", ROOT / "continued")
    run("train", "dataset", "--out", "continued", *options)
    expected |= _digests()
    lines = (ROOT / "continued" / "metrics.jsonl").read_text("utf-8").splitlines()
    expected["metrics"] = [json.loads(line) for line in lines]
    expected["judgements"] = _judgements()
    _age_names()
    (ROOT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", "utf-8")
    _pack()


def _videos() -> None:
    puppets, schema = importlib.import_module("curation.puppets"), importlib.import_module("configs.schema")
    cfg = schema.load("tiny", SETTINGS).curation.puppets
    (ROOT / "videos").mkdir(parents=True)
    for number, fault in enumerate(PUPPETS):
        source = 0 if fault == "duplicate_exact" else number
        puppets.make_one(ROOT / "videos", puppets.Plan(number, fault, source), 3, cfg)
    for path in (ROOT / "videos").iterdir():
        os.utime(path, (TIME, TIME))


def _decided() -> dict[str, list[Any]]:
    """Clip or video → verdict, reasons, tier."""
    table = pq.read_table
    clips = table(str(ROOT / "catalog" / "clips")).to_pylist()
    videos = table(str(ROOT / "catalog" / "videos")).to_pylist()
    found = {row["clip_id"]: [row["verdict"], row["reasons"], row["tier"]] for row in clips}
    return found | {Path(row["source_uri"]).name: [row["verdict"], row["reasons"]] for row in videos}


def _review(run: Any) -> None:
    """Two people's votes: the first sample is negative in a part of its frames, the second fine, the third open."""
    table = ROOT / "reviews.csv"
    run("negatives", "export", "run", "--stage", "n", "--out", str(table))
    lines = list(csv.DictReader(table.open(encoding="utf-8")))
    lines[0] |= {"verdict": "negative", "issue": "blur", "frame_start": "4", "reviewer": "ann"}
    lines[1] |= {"verdict": "fine", "reviewer": "ann"}
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    run("negatives", "import", "run", str(table), "--stage", "n")
    table.unlink()
    part = next((ROOT / "run" / "negatives" / "n" / "reviews").glob("*.parquet"))
    votes = pq.read_table(part)
    at = votes.schema.get_field_index("time")
    times = [datetime.fromtimestamp(TIME + number, UTC) for number in range(votes.num_rows)]
    votes = votes.set_column(at, votes.schema.field(at), pa.array(times, votes.schema.field(at).type))
    pq.write_table(votes, part.with_name("reviews.parquet"))  # a machine whose clock is behind refuses later votes
    part.unlink()


def _judgements() -> list[str]:
    """What each gathered sample counts as, in words."""
    reviews, folder = importlib.import_module("configs.reviews"), ROOT / "run" / "negatives" / "n"
    gathered = pq.read_table(folder / "samples.parquet")
    return [str(j) for j in reviews.judgements(gathered, reviews.read(folder), accept_flags=True).values()]


def _digests() -> dict[str, Any]:
    """What later versions must still compute: digests of settings, and the columns of the tables with their types."""
    schema, strict = importlib.import_module("configs.schema"), importlib.import_module("configs.strict")
    backends, catalog = importlib.import_module("curation.backends"), importlib.import_module("curation.catalog")
    shared = importlib.import_module("configs.dataset_schema")
    presets = {name: schema.load(name, []) for name in ("tiny", "wan2.1-fun-1.3b")}
    tables = {
        "videos": catalog.VIDEOS, "clips": catalog.CLIPS, "index": shared.INDEX, "negatives": shared.NEGATIVES,
        "reviews": shared.REVIEWS,
    }  # fmt: skip
    return {
        "curate": {name: backends.parameters(config.curation) for name, config in presets.items()},
        "sections": {
            name: {
                f"{package}.{section}": strict.digest(value, section)
                for package in ("curation", "model", "train", "pipeline", "evaluation")
                for section, value in vars(getattr(config, package)).items()
                if dataclasses.is_dataclass(value)
            }
            for name, config in presets.items()
        },
        "columns": {name: [[field.name, str(field.type)] for field in table] for name, table in tables.items()},
    }


def _age_names() -> None:
    """Give a key of the catalog's configuration the name that it had once (`configs/aliases.py`); drop the report."""
    generation = importlib.import_module("pipeline.generation")
    now = generation.current(str(ROOT / "catalog"))
    for config in (now.run["config"], now.run["as_curated"]):
        config["sync"]["conf_min"] = config["decide"].pop("sync_min_conf")
    now = dataclasses.replace(now, report=None)
    generation.save(str(ROOT / "catalog"), now)
    generation.copy(str(ROOT / "catalog"), now, None)


def _pack() -> None:
    for unneeded in [*ROOT.rglob("report.html"), *ROOT.rglob("status.json"), *ROOT.rglob("*.lock")]:
        unneeded.unlink()
    with tarfile.open(Path(__file__).with_name("made.tar.xz"), "w:xz", preset=9) as tar:
        for name in ("expected.json", "videos", "catalog", "dataset", "run"):
            tar.add(ROOT / name, name, filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    if not member.name.startswith("videos"):
        member.mtime = TIME
    return member


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
