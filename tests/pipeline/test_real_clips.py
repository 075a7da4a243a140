"""Real clips and their faults through `curate`, file by file against the ground truth that came with them."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from configs import schema
from curation.schema import CLIPS, VIDEOS
from pipeline.catalog import tables
from pipeline.catalog.curate import curate
from pipeline.catalog.queries import redecide

pytestmark = pytest.mark.timeout(600)

ALLOWED = {
    "keep": {"keep"},
    "fixable": {"keep"},
    "reject": {"reject", "error"},
    "uncertain": {"keep", "reject", "error"},
}
# What only a sync network can tell, what needs the other files, and a still face beside speech.
NEEDS_MORE = {"av_offset", "av_mismatch", "duplicate", "not_talking"}
OVERRIDES = ["sync.required=false", "dedup.enabled=false"]


@dataclass
class Curated:
    """The whole folder, once."""

    folder: Path
    catalog: Path
    truth: list[dict[str, Any]]

    def rows(self) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
        """By name: the row of the file, and those of its clips."""
        videos = {
            str(Path(row["source_uri"]).relative_to(self.folder)): row
            for row in tables.read(str(self.catalog), "videos", VIDEOS).to_pylist()
        }
        clips: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in tables.read(str(self.catalog), "clips", CLIPS).to_pylist():
            clips[str(Path(row["source_uri"]).relative_to(self.folder))].append(row)
        return videos, clips


@pytest.fixture(scope="module")
def curated(shared_media: Path, tmp_path_factory: pytest.TempPathFactory) -> Curated:
    truth = json.loads((shared_media / "manifest.json").read_text())["files"]
    catalog = tmp_path_factory.mktemp("real") / "catalog"
    files = [str(shared_media / e["file"]) for e in truth]
    curate(files, str(catalog), schema.load("tiny", OVERRIDES), quiet=True)
    return Curated(shared_media, catalog, truth)


def test_every_file_has_the_verdict_that_a_careful_person_gave(curated: Curated) -> None:
    videos, _ = curated.rows()
    assert set(videos) == {e["file"] for e in curated.truth}
    wrong = {}
    for entry in curated.truth:
        row = videos[entry["file"]]
        reasons = set(entry["expected_reasons"])
        if entry["expected_verdict"] == "reject" and reasons <= NEEDS_MORE:
            continue
        if row["verdict"] not in ALLOWED[entry["expected_verdict"]]:
            wrong[entry["file"]] = (row["verdict"], row["reasons"], entry["expected_verdict"], reasons)
        assert row["verdict"] == "keep" or row["reasons"], f"{entry['file']}: no sentence"
    assert not wrong


def test_burned_in_text_is_named_for_what_it_is_and_clean_pictures_hold_none(curated: Curated) -> None:
    _, clips = curated.rows()
    for entry in curated.truth:
        kinds = {box["kind"] for clip in clips[entry["file"]] for box in clip["text_boxes"] if box["score"] >= 0.5}
        if entry["has_subtitle"] and clips[entry["file"]]:
            assert kinds & {"subtitle", "ticker"}, entry["file"]
        elif not entry["has_subtitle"] and not entry.get("other_text"):
            assert not kinds - {"scene"}, entry["file"]


def test_no_clip_crosses_a_cut(curated: Curated) -> None:
    _, clips = curated.rows()
    for entry in curated.truth:
        rate = 25 / eval_rate(entry["measured"].get("fps_avg"))
        for cut in entry["shot_cuts"]:
            crossed = [c for c in clips[entry["file"]] if c["start_frame"] < round(cut * rate) < c["end_frame"]]
            assert not crossed, f"{entry['file']}: a clip crosses the cut at frame {cut}"


def test_copies_are_found_as_a_set_and_the_original_stays(curated: Curated) -> None:
    redecide(str(curated.catalog), schema.load("tiny", ["sync.required=false"]))
    try:
        videos, clips = curated.rows()
        copies = {name for name, rows in clips.items() if any(c["duplicate_of"] for c in rows)}
        assert {e["file"] for e in curated.truth if "duplicate" in e["expected_reasons"]} <= copies
        family = {e["file"] for e in curated.truth if "face5" in e["file"]}
        kept = {name for name in family if videos[name]["verdict"] == "keep"}
        assert "faults/mirror_face5.mp4" in copies and len(kept) <= 2, kept
        person = {e["file"]: Path(e["derived_from"] or e["file"]).stem for e in curated.truth}
        owner = {c["clip_id"]: name for name, rows in clips.items() for c in rows}
        for name, rows in clips.items():
            for original in (owner[c["duplicate_of"]] for c in rows if c["duplicate_of"]):
                joined = {name, original} & {e["file"] for e in curated.truth if len(e["shot_cuts"])}
                assert joined or person[original] == person[name], f"{name} is no copy of {original}"
    finally:
        redecide(str(curated.catalog), schema.load("tiny", OVERRIDES))


def eval_rate(text: str | None) -> float:
    """`30000/1001` → 29.97."""
    over, _, under = (text or "25").partition("/")
    return float(over) / float(under or 1)
