"""What is shown while units run: a live table on a terminal, plain lines elsewhere, the same numbers for programs."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from configs.runtime.console import Terminal
from pipeline.engine.progress import Progress
from pipeline.engine.schedule import Done, Receipt
from pipeline.engine.unit import Failure


def watched(console: Terminal, status: Path) -> Progress:
    progress = Progress("curate", "videos", str(status), console)
    progress.begin(12, 2)
    progress.linked("http://127.0.0.1:8265")
    time.sleep(0.05)
    done = [Done("u", 1.0, 3600.0, {"faces": 3.0, "text": 1.0}, share=0.1)] * 4
    progress.update(Receipt(done=done, memory=700 << 20), 1, 2)
    progress.failed(Failure("x", "vid[bold]eos/é\n.mp4", "", "it hung.", "", 2, 0.0))
    return progress


@pytest.mark.parametrize("terminal", [True, False])
def test_the_same_facts_for_people_and_for_programs(tmp_path: Path, terminal: bool) -> None:
    text = io.StringIO()
    progress = watched(Terminal(file=text, force_terminal=terminal, width=110), tmp_path / "status.json")
    if terminal:
        words, deadline = ("6/12", "ETA", "faces 75%", "text 25%", "700 MB", "8265", "1 of 2"), time.monotonic() + 60
        while not all(word in text.getvalue() for word in words) and time.monotonic() < deadline:
            time.sleep(0.05)  # a thread draws it, when the machine lets it
        assert [word for word in words if word not in text.getvalue()] == []
    progress.end()
    shown = text.getvalue()
    for word in (
        "2 of 12 videos were done before",
        "set aside: vid[bold]eos/é",
        "it hung.",
        "6/12 videos, 1 set aside",
    ):
        assert word in shown
    assert terminal or ("\x1b" not in shown and "curate: 10 videos to do" in shown)
    facts = json.loads((tmp_path / "status.json").read_text())
    assert (facts["state"], facts["done"], facts["left"], facts["failed"]) == ("ended", 6, 5, 1)
    assert facts["operators"] == {"faces": 0.75, "text": 0.25} and facts["dashboard"].endswith(":8265")
    assert facts["video_hours_per_hour"] > 1000


def test_the_time_left_follows_the_work_and_not_the_count(tmp_path: Path) -> None:
    progress = watched(Terminal(quiet=True), tmp_path / "status.json")
    status = progress.now()
    assert status.eta_s == pytest.approx(status.elapsed_s * 0.6 / 0.4, rel=0.01)


def test_the_time_that_starting_takes_is_not_in_the_time_left(tmp_path: Path) -> None:
    """Ray and the networks start once; counted in, the first receipt of a short run promises minutes."""
    progress = Progress("curate", "videos", None, Terminal(quiet=True))
    progress.begin(2, 0)
    progress.update(None, 0, 2)
    time.sleep(0.5)
    progress.update(None, 2, 2)
    time.sleep(0.05)
    progress.update(Receipt(done=[Done("u", 0.05, 1.0, {}, share=0.5)]), 1, 2)
    status = progress.now()
    assert 0.05 <= status.eta_s <= status.elapsed_s - 0.5 + 1e-3
