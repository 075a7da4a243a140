"""What is derived from the operators: digests in the ledger, what runs again, which keys only decide."""

from __future__ import annotations

from collections import Counter

import pytest

from configs.schema import load
from curation.analysis.stages import OPERATORS, STAGES, parameters
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
