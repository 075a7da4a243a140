"""The command line teaches, and a mistake is one sentence with an exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import cli
from configs.dataset_schema import NEGATIVES

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    *[[name] for name in ("curate", "shard", "train", "train-plan", "generate", "demo", "eval", "play")],
    *[["catalog", name] for name in ("status", "explain", "redecide", "relocate", "report")],
    *[["shards", name] for name in ("verify", "inspect", "stats", "add", "merge", "split")],
    *[["negatives", name] for name in ("gather", "review", "stats", "export", "import", "merge")],
    *[["sync", name] for name in ("fit", "score")],
    *[["weights", name] for name in ("list", "fetch", "check")],
]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cli.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    result = CliRunner().invoke(cli.app, [*command, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("weights", "list", "--set", "sync.requird=false"), 2, "did you mean 'sync.required'"),
        (("weights", "list", "--set", "sync_min_conf=4"), 2, "did you mean 'decide.sync_min_conf'?"),
        (("--set", "sedd=1", "weights", "list"), 2, "did you mean 'seed'"),
        (("weights", "list", "--preset", "huge"), 2, "neither a file nor one of"),
        (("catalog", "status", "no-such-catalog"), 2, "holds no catalog"),
        (("shards", "verify", "no-such-dataset"), 2, "no-such-dataset"),
        (("negatives", "stats", "no-such-run"), 2, "no gathered negatives"),
        (("weights", "check", "--preset", "wan2.1-fun-1.3b"), 3, ""),
    ],
)
def test_mistakes_end_in_one_sentence(arguments: tuple[str, ...], code: int, words: str) -> None:
    result = _run(*arguments)
    assert result.returncode == code, result.stderr
    assert words in " ".join(result.stderr.split()) and "Traceback" not in result.stderr


def test_weights_list_names_every_file_of_the_real_preset() -> None:
    result = CliRunner().invoke(cli.app, ["weights", "list", "--preset", "wan2.1-fun-1.3b"])
    assert result.exit_code == 0 and "missing" in result.output
    assert "needs no pretrained file" in CliRunner().invoke(cli.app, ["weights", "list"]).output


def test_negatives_through_a_spreadsheet(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "negatives" / "n1"
    folder.mkdir(parents=True)
    rows = [{"negative_id": f"n{i}", "flags": [], "prompt": "a puppet"} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows, schema=NEGATIVES), folder / "samples.parquet")
    run, csv = str(tmp_path / "run"), tmp_path / "sheet.csv"
    assert CliRunner().invoke(cli.app, ["negatives", "export", run, "--out", str(csv)]).exit_code == 0
    sheet = pd.read_csv(csv, dtype=str)
    sheet.loc[0, ["verdict", "issue"]] = ["negative", "hands"]
    sheet.to_csv(csv, index=False)
    for expected in ("1 reviews added", "0 reviews added"):
        result = CliRunner().invoke(cli.app, ["negatives", "import", run, str(csv), "--reviewer", "ann"])
        assert expected in result.output, result.output
    assert "hands" in CliRunner().invoke(cli.app, ["negatives", "stats", run]).output
