"""A new score as CONTRIBUTING.md shows it: applied to a copy of the program, which is then run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from configs.dataset_schema import INDEX_FILE
from configs.schema import load
from curation import puppets
from pipeline.catalog.timing import REST

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("cli.py", "pyproject.toml", "configs", "curation", "evaluation", "model", "pipeline", "train", "workflows")
QUIET = ["--set", "sync.required=false", "--inline"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The program, in a folder of its own."""
    for name in COPIED:
        source, target = ROOT / name, tmp_path / "copy" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    return tmp_path / "copy"


@pytest.fixture
def run(copy: Path) -> Callable[..., str]:
    """The real command line of the copy; returns what it wrote."""

    def run(*arguments: str) -> str:
        command = [sys.executable, "cli.py", *arguments]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    return run


def apply_contributing(copy: Path) -> None:
    """Write the file that CONTRIBUTING.md shows, and change the others as it says."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Adding an operator")[2]
    blocks = re.findall(r"^ *```(\w+)\n(.*?)^ *```$", text, re.S | re.M)
    (operator,) = (block for language, block in blocks if language == "python")
    (file,) = re.findall(r"^1\. .*`(curation/operators/\w+\.py)`", text, re.M)
    (copy / file).write_text(re.sub("^ {3}", "", operator, flags=re.M), "utf-8")
    for language, block in blocks:
        if language == "diff":
            for change in re.split(r"^ {3}--- ", block, flags=re.M)[1:]:
                name, _, lines = change.partition("\n")
                for hunk in re.split(r"^ {3}@@\n", lines, flags=re.M):
                    _apply(copy / name, re.sub("^ {3}", "", hunk, flags=re.M).splitlines(keepends=True))


def _apply(file: Path, hunk: list[str]) -> None:
    before = "".join(line[1:] for line in hunk if line[0] != "+")
    after = "".join(line[1:] for line in hunk if line[0] != "-")
    text = file.read_text("utf-8")
    assert text.count(before) == 1, f"{file.name} does not have once what CONTRIBUTING.md shows:\n{before}"
    file.write_text(text.replace(before, after), "utf-8")


def rows(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder).sort_by("clip_id").to_pylist()


def test_a_new_score_is_one_operator_its_column_a_rule_and_a_key(
    copy: Path, run: Callable[..., str], tmp_path: Path
) -> None:
    puppets.make(tmp_path / "videos", 3, 5, load("tiny").curation.puppets, False)
    out, dataset = tmp_path / "catalog", tmp_path / "dataset"
    run("curate", str(tmp_path / "videos"), "--out", str(out), *QUIET)
    before = rows(out / "clips")
    apply_contributing(copy)
    assert "computed again: colour; kept as it is: captions, clips, dedup" in run(
        "curate", str(tmp_path / "videos"), "--out", str(out), *QUIET
    )
    after = rows(out / "clips")
    assert len(after) >= 3 and all(0 < row["colourfulness"] < 1 for row in after)
    assert [{k: v for k, v in row.items() if k != "colourfulness"} for row in after] == before
    assert json.loads((out / "run.json").read_text())["seconds"].keys() == {"colour", REST}, "no other operator ran"
    limit = sorted(row["colourfulness"] for row in after)[1]
    said = run("catalog", "redecide", str(out), "--set", f"decide.min_colourfulness={limit}")
    assert "decide.min_colourfulness: 0.0 → " in said and re.search(r"colour +0 +1 +\+1", said)
    decided = rows(out / "clips")
    (lost,) = (row for row in decided if row["colourfulness"] < limit)
    assert lost["reasons"] == [f"colour: colourfulness {lost['colourfulness']:.2f}, {limit:.2f} needed"]
    assert "colourfulness ≥" in (out / "report.html").read_text("utf-8")
    run("shard", str(out), "--out", str(dataset), "--inline")
    index = pq.read_table(dataset / INDEX_FILE)
    kept = {row["clip_id"]: row["colourfulness"] for row in decided if row["verdict"] == "keep"}
    assert (
        dict(zip(*index.select(["clip_id", "colourfulness"]).to_pydict().values(), strict=True)).items() <= kept.items()
    )
    assert index.num_rows
