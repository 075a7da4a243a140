"""The report: what only holds a clip is not drawn as what rejects it."""

from __future__ import annotations

import numpy as np
import pytest

from curation.decision.reasons import all_reasons
from curation.report.charts import failed_rules, only_this
from curation.report.page import _funnel, _held
from curation.schema import CLIPS, table

REASONS = all_reasons()
HOLDING = [code for code, entry in REASONS.items() if entry.holds]
CLIP = {"clip_id": "c", "video_id": "v", "source_uri": "v.mp4", "start_frame": 0, "end_frame": 25}


@pytest.mark.parametrize("code", HOLDING)
def test_a_reason_that_only_holds_is_no_rejection_in_funnel_and_what_if(code: str) -> None:
    rows = [
        CLIP | {"verdict": "hold", "reasons": [f"{code}: as this clip is"]},
        CLIP | {"verdict": "reject", "reasons": [f"{code}: as this clip is", "dark: too dark"]},
        CLIP | {"verdict": "reject", "reasons": ["dark: too dark", "shake: the camera shakes"]},
    ]
    clips = table(rows, CLIPS)
    failed = failed_rules(clips)
    steps = _funnel(failed, np.array([row["verdict"] for row in rows], dtype=object), np.ones(len(rows)))
    kinds = {step.name: step.kind for step in steps}
    assert kinds[code.replace("_", " ")] == "hold" and kinds["dark"] == "reject"
    assert [step.name for step in steps][-2] == code.replace("_", " "), "after all that rejects"
    assert only_this("dark", failed, len(rows)).tolist() == [False, True, False]


def test_why_clips_are_on_hold_is_said_for_all_of_them_without_the_numbers_of_one() -> None:
    held = [CLIP | {"verdict": "hold", "reasons": [f"{code}: an offset of +4 frames"]} for code in [*HOLDING, *HOLDING]]
    rejected = CLIP | {"verdict": "reject", "reasons": ["dark: too dark"]}
    said = _held(table([*held, rejected], CLIPS))
    assert said is not None and sorted(said.split("; ")) == sorted(REASONS[code].words for code in HOLDING)
    assert _held(table([rejected], CLIPS)) is None
