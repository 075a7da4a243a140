"""The decision: thresholds only, every reason told, hold only where a score is missing."""

from __future__ import annotations

import pytest

from configs.schema import load
from curation import schema
from curation.config import CurationConfig
from curation.decision.decide import decide_clips, decide_videos, explain
from curation.decision.rules import rules
from curation.report.charts import _others
from tests.good_clip import GOOD_CLIP

SUBTITLE = {
    "x0": 9,
    "y0": 400,
    "x1": 300,
    "y1": 440,
    "first": 0,
    "last": 99,
    "score": 0.9,
    "text": "hi",
    "kind": "subtitle",
}


def config(*overrides: str) -> CurationConfig:
    return load("tiny", list(overrides)).curation


def verdict(row: dict, *overrides: str) -> tuple[str, list[str]]:
    decided = decide_clips(schema.table([row], schema.CLIPS), config(*overrides)).to_pylist()[0]
    return decided["verdict"], decided["reasons"]


def test_a_missing_sync_score_holds_and_says_how_to_go_on() -> None:
    held, reasons = verdict(GOOD_CLIP)
    assert held == "hold" and "weights" in reasons[0] and "sync.required=false" in reasons[0]
    assert verdict(GOOD_CLIP, "sync.required=false") == ("keep", [])
    assert verdict(GOOD_CLIP | {"sync_c": 8.0, "av_offset_frames": 1, "residual_offset": 0})[0] == "keep"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"face_frac": None, "face_px": None}, "face_frac"),
        ({"speech_frac": None, "lufs": None}, "speech"),
        ({"speech_frac": 0.0}, "speech"),
        ({"face_px": 20.0, "width": 100, "height": 100}, "face_size"),
        ({"n_faces": 2}, "face_count"),
        ({"sharpness": 0.1}, "sharpness"),
        ({"exposure": 0.05}, "dark"),
        ({"freeze_frac": 0.7}, "frozen"),
        ({"fps": 10.0}, "fps"),
        ({"text_boxes": [SUBTITLE]}, "subtitle"),
        ({"duplicate_of": "other"}, "duplicate"),
        ({"sync_c": 1.0}, "sync_conf"),
        ({"sync_c": 9.0, "av_offset_frames": -12}, "sync_offset"),
        ({"sync_c": 9.0, "av_offset_frames": 3, "residual_offset": -2, "residual_frames": 110}, "sync_residual"),
        ({"sync_c": 9.0, "av_offset_frames": 3, "residual_frames": 20}, "sync_unstable"),
    ],
)
def test_each_fault_is_rejected_for_its_own_reason_alone(change: dict, code: str) -> None:
    got, reasons = verdict(GOOD_CLIP | change, "sync.required=false")
    assert got == "reject"
    assert [r.split(":")[0] for r in reasons] == [code]
    failed = [
        r.code
        for r in explain(schema.table([GOOD_CLIP | change], schema.CLIPS), config("sync.required=false"))
        if not r.passed
    ]
    assert failed == [code]


def test_a_correction_follows_the_thresholds_and_not_those_of_the_day_it_was_measured() -> None:
    row = GOOD_CLIP | {"sync_c": 2.5, "av_offset_frames": 5, "residual_offset": 0, "residual_frames": 108}
    looser = config("decide.sync_min_conf=2")
    assert verdict(row)[0] == "reject"
    (decided,) = decide_clips(schema.table([row], schema.CLIPS), looser).to_pylist()
    assert (decided["verdict"], decided["offset_samples"]) == ("keep", 5 * 640)
    (back,) = decide_clips(schema.table([decided], schema.CLIPS), config()).to_pylist()
    assert (back["verdict"], back["offset_samples"]) == ("reject", 0)
    assert decide_clips(schema.table([GOOD_CLIP], schema.CLIPS), looser)["offset_samples"].null_count == 1


def test_a_remainder_that_an_earlier_version_never_measured_holds_the_clip_and_says_how_to_go_on() -> None:
    old = GOOD_CLIP | {"sync_c": 2.5, "av_offset_frames": 5, "offset_samples": 0}
    got, (reason,) = verdict(old, "decide.sync_min_conf=2")
    assert got == "hold" and reason.startswith("sync_unmeasured") and "run `curate` again" in reason
    assert verdict(old)[0] == "reject", "no correction depends on it"
    aligned = old | {"av_offset_frames": 0}
    assert verdict(aligned, "decide.sync_min_conf=2") == ("keep", [])
    corrected = old | {"residual_offset": 1}
    assert verdict(corrected, "decide.sync_min_conf=2") == ("keep", [])


def test_text_can_be_cropped_away_when_the_configuration_says_so() -> None:
    row = GOOD_CLIP | {"text_boxes": [SUBTITLE]}
    action = "decide.text.subtitle=crop"
    assert verdict(row, "sync.required=false", action)[0] == "reject"
    assert verdict(row | {"crop": {"x": 0, "y": 0, "w": 400, "h": 400}}, "sync.required=false", action)[0] == "keep"


def test_duplicates_count_only_when_enabled() -> None:
    assert verdict(GOOD_CLIP | {"duplicate_of": "x"}, "sync.required=false", "dedup.enabled=false")[0] == "keep"


def test_videos_take_the_best_of_their_clips_and_errors_stay() -> None:
    cfg = config("sync.required=false")
    clips = decide_clips(
        schema.table(
            [
                GOOD_CLIP,
                GOOD_CLIP | {"clip_id": "d", "sharpness": 0.0},
                GOOD_CLIP | {"video_id": "w", "source_uri": "w", "fps": 5.0},
            ],
            schema.CLIPS,
        ),
        cfg,
    )
    rows = [
        {"video_id": "v", "source_uri": "v.mp4"},
        {"video_id": "w", "source_uri": "w"},
        {"video_id": "n", "source_uri": "n"},
        {"video_id": "e", "source_uri": "e", "verdict": "error", "reasons": ["open: broken"]},
    ]
    out = decide_videos(schema.table(rows, schema.VIDEOS), clips, cfg).to_pylist()
    assert [v["verdict"] for v in out] == ["keep", "reject", "reject", "error"]
    assert out[0]["reasons"] == [] and out[2]["reasons"] and out[3]["reasons"] == ["open: broken"]


def test_deciding_twice_changes_nothing() -> None:
    cfg = config()
    once = decide_clips(schema.table([GOOD_CLIP, GOOD_CLIP | {"sharpness": 0.0}], schema.CLIPS), cfg)
    assert decide_clips(once, cfg).equals(once)


def test_what_ifs_ask_in_the_steps_that_a_rule_counts_in() -> None:
    known = {rule.code: rule for rule in rules(config())}
    assert {2.0, 4.0} <= set(_others(known["sync_conf"])), "confidence 4 instead of 3"
    assert {0.75, 1.25} <= set(_others(known["sync_fit"])) and 2.0 not in _others(known["sync_fit"])
    assert {2.0} <= set(_others(known["face_count"])) and all(v <= 1 for v in _others(known["face_frac"]))
