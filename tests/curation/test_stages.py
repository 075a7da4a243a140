"""What is derived from the operators: digests in the ledger, what runs again, which keys only decide."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from configs.schema import load
from curation import operators
from curation.analysis import stages
from curation.analysis.stages import OPERATORS, STAGES, parameters
from curation.analysis.video_pass import KnownClips
from curation.clip import Clip
from curation.media.clock import Tick
from curation.media.frames import Frame
from curation.schema import CLIPS

SAME = {
    "video": "dacfd1cc85b4a201.1",
    "shots": "2088293c261fe9de.1",
    "clips": "ba774b5c36b4d3cb.1",
    "text": "e5a726dd251dea09.2",
    "quality": "45fbb56d7057b781.2",
    "sound": "39a46a9e4efd0d04.1",
    "captions": "1c52fcbf17a94386.1",
    "detail": "ed4cd3497db7774c.1",
    "dedup": "c25fae6b6c9ccf5a.1",
    "voices": "44136fa355b3678a.1",
}
OWN = {
    "tiny": {
        "faces": "1afcfcbd8bb1804f.1",
        "sync": "04f8a58962c9a0ac.2",
        "aesthetic": "fca8be132550f798.1",
    },
    "wan2.1-fun-1.3b": {
        "faces": "b0b309d8e69b6f6b.1",
        "sync": "048d71e91471876c.2",
        "aesthetic": "06e73bbaf36391a1.1",
    },
}


@pytest.mark.parametrize("preset", OWN)
def test_the_digests_of_unchanged_settings_are_those_of_earlier_catalogs(preset: str) -> None:
    """Another digest here analyses every catalog again: raise a version where numbers changed, and only there."""
    on = parameters(load(preset, ["aesthetic.enabled=true"]).curation)
    assert on == SAME | OWN[preset]
    assert parameters(load(preset).curation) == {name: digest for name, digest in on.items() if name != "aesthetic"}


def test_every_operator_writes_columns_of_its_own_and_requires_what_there_is() -> None:
    writers = Counter(column for operator in OPERATORS.values() for column in operator.columns)
    assert set(writers) <= set(CLIPS.names) and set(writers.values()) == {1}
    assert all(set(stage.requires) <= set(STAGES) for stage in STAGES.values())
    cfg = load("tiny").curation
    for stage in STAGES.values():
        known = vars(getattr(cfg, stage.section)) if stage.section else {}
        assert {*(stage.keys or ()), *filter(None, [stage.switch])} <= set(known), stage.name


WHOLE = """
    name, version, columns, needs = "{name}", 1, ("x",), FrameNeed(1.0, 8)
    def look(self, picture): return 1.0
    def {method}(self, seen, context): return {{}}
"""


@pytest.mark.parametrize(
    ("name", "method", "words"),
    [
        ("new", "scores", "lacks score"),
        ("quality", "score", "'quality' already"),
        ("faces", "score", "'faces' already"),
    ],
)
def test_an_operator_that_would_never_run_is_an_error(
    name: str, method: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "from curation.operators.base import FrameNeed, PictureOperator\nclass New(PictureOperator):"
    module = f"zz_{name}_{method}"
    (tmp_path / f"{module}.py").write_text(head + WHOLE.format(name=name, method=method))
    monkeypatch.setattr(operators, "__path__", [*operators.__path__, str(tmp_path)])
    with pytest.raises(TypeError, match=words):
        stages._found()


def test_what_lies_between_known_clips_is_not_kept() -> None:
    clips = [Clip(str(start), "v", "v.mp4", start, start + 25, 64, 64) for start in (0, 5000)]
    known = KnownClips(clips)
    for index in range(5000):
        list(known.tick(Tick(index, Frame(index / 25, 0.04, False), False)))
        assert abs(index - known.oldest) < 25
