"""Every long command says that it has started before it imports anything slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import cli
from workflows.commands.output import LongCommand

ROOT = Path(__file__).resolve().parents[2]
LONG = {
    "curate": ["videos", "--out", "catalog"],
    "shard": ["catalog", "--out", "dataset"],
    "train": ["dataset", "--out", "run"],
    "train-plan": [],
    "generate": ["run", "--audio", "a.wav", "--out", "o.mp4"],
    "demo": ["--out", "demo"],
    "eval": ["a.mp4"],
    "catalog redecide": ["catalog"],
    "catalog relocate": ["catalog", "old", "new"],
    "catalog report": ["catalog"],
    "catalog verify": ["catalog"],
    "shards verify": ["dataset"],
    "shards inspect": ["dataset", "sample"],
    "shards add": ["dataset", "cond_lip"],
    "shards merge": ["a", "b", "--out", "c"],
    "shards split": ["dataset", "--out", "c"],
    "negatives gather": ["run", "dataset"],
    "negatives review": ["run"],
    "negatives stats": ["run"],
    "negatives export": ["run", "--out", "a.csv"],
    "negatives import": ["run", "a.csv"],
    "negatives merge": ["run", "other"],
    "sync fit": ["catalog", "--out", "f.safetensors"],
    "sync score": ["a.mp4"],
    "weights fetch": [],
    "weights check": [],
}
SHORT = {"play", "catalog status", "catalog explain", "shards stats", "weights list"}
FORKS = """
import json, os, sys
import cli
SLOW = {"torch", "ray", "numpy", "pyarrow", "pandas", "cv2", "av", "matplotlib", "scipy", "yaml"}
OURS = {"configs", "curation", "model", "pipeline", "train", "evaluation", "workflows"}
loaded = sorted(SLOW & set(sys.modules))
class Stop:
    # The first import of a command's own work ends the process: what was not written by then does not arrive.
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in SLOW | OURS:
            os._exit(42)
def fork(arguments):
    pipes = [os.pipe(), os.pipe()]
    if not (child := os.fork()):
        for number, (_, end) in enumerate(pipes, 1):
            os.dup2(end, number)
        sys.argv = ["cli.py", *arguments]
        sys.meta_path.insert(0, Stop())
        try:
            cli.main()
        finally:
            os._exit(1)
    for _, end in pipes:
        os.close(end)
    texts = [os.fdopen(end, "rb").read().decode() for end, _ in pipes]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *texts]
commands = json.loads(sys.argv[1])
print(json.dumps([loaded, {name: fork([*name.split(), *more]) for name, more in commands.items()}]))
"""


def test_a_long_command_speaks_before_it_imports_anything_slow() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps(LONG)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded, results = json.loads(done.stdout)
    assert loaded == [], "the parser imports nothing slow"
    for name, (code, out, err) in results.items():
        assert code == 42, (name, err)
        assert err.startswith(f"{name}: starting") and "\x1b" not in err, name
        assert out == "", f"{name}: standard output holds results only"


def test_every_command_is_either_long_or_short() -> None:
    """A new command must choose."""
    assert set(_commands(typer.main.get_command(cli.app))) == LONG.keys() | SHORT
    for name, command in _commands(typer.main.get_command(cli.app)).items():
        assert isinstance(command, LongCommand) == (name in LONG), name


def _commands(group: object, before: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        inner = _commands(command, f"{name} ") if hasattr(command, "commands") else {name: command}
        found |= {before + key: value for key, value in inner.items()}
    return found


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_one_rank_of_several_speaks(monkeypatch: pytest.MonkeyPatch, rank: str, lines: int) -> None:
    monkeypatch.setenv("RANK", rank)
    result = CliRunner().invoke(cli.app, ["weights", "fetch"])
    assert result.stderr.count("starting") == lines and "starting" not in result.stdout
