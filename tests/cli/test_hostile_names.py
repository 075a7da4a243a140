"""Names from outside reach the terminal letter by letter: no markup, no emoji codes, no control sequences."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "[/x].mp4",
    "[red]a[/red].mp4",
    "\\[bold]b.mp4",
    ":smile: c.mp4",
    "\x1b]0;title\x07\x1b[2Jd.mp4",
    "\u202egnp.mp4",
    "e\r\n.mp4",
    "\x9b31mf.mp4",
)
OWN_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What rich itself writes: colours, cursor, line ends."""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip


def shown(done: subprocess.CompletedProcess[str]) -> str:
    text = OWN_SEQUENCES.sub("", done.stdout + done.stderr)
    assert "Traceback" not in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text), text
    return text


def test_a_catalog_of_hostile_names_is_printed_as_it_is(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in NAMES:
        (videos / name).parent.mkdir(exist_ok=True)
        (videos / name).write_bytes(b"no video")
    made = run("curate", "videos", "--out", "[/cat]", "--inline", cwd=tmp_path)
    assert made.returncode == 0 and "[/cat]" in shown(made)
    told = shown(run("catalog", "status", "[/cat]", cwd=tmp_path))
    for literal in (
        "[/x].mp4",
        "[red]a[/red].mp4",
        "\\[bold]b.mp4",
        ":smile: c.mp4",
        "\\x1b]0;title\\x07\\x1b[2Jd.mp4",
    ):
        assert literal in told
    assert "\\u202egnp.mp4" in told and "\\x9b31mf.mp4" in told
    assert "[/cat]" in shown(run("shard", "[/cat]", "--out", "data", cwd=tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_errors_and_usage_show_names_as_they_are(tmp_path: Path, name: str) -> None:
    assert run("catalog", "status", name, cwd=tmp_path).returncode == 2
    for arguments in (("catalog", "status", name), ("catalog", "status", "a", name), (name,)):
        text = shown(run(*arguments, cwd=tmp_path))
        assert ".mp4" in text and (not name.isprintable() or name in text)


def test_there_is_one_way_to_the_terminal() -> None:
    """What prints by itself forgets to escape: only `configs/runtime/console.py` knows rich's console, and nothing prints."""
    for folder in ("curation", "pipeline", "train", "evaluation", "workflows", "cli.py"):
        place = ROOT / folder
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                name = path.relative_to(ROOT).as_posix()
                assert not (isinstance(node, ast.ImportFrom) and node.module in ("rich.console", "rich.markup")), name
                called = node.func if isinstance(node, ast.Call) else None
                assert not (isinstance(called, ast.Name) and called.id == "print"), f"{name}:{node.lineno}"


@pytest.mark.parametrize(
    "line",
    [
        ("shards", "stats", "memory://bob:S3cretPw@place/x"),
        ("catalog", "verify", "memory://bob:S3cretPw@place/x"),
        ("train-plan", "https://127.0.0.1:9/x?token=S3cretPw"),
    ],
)
def test_credentials_of_addresses_are_printed_nowhere(tmp_path: Path, line: tuple[str, ...]) -> None:
    done = run(*line, cwd=tmp_path)
    assert done.returncode != 0 and "S3cretPw" not in shown(done)
