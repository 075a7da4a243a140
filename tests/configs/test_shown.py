"""What is printed cannot command a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from configs.runtime.shown import one_line, visible

ANY = st.text(st.characters(exclude_categories=()))  # lone surrogates, too: names that are not UTF-8 have them


@given(ANY)
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    categories = {unicodedata.category(c) for c in shown if c not in "\n\t"}
    assert not categories & {"Cc", "Cs", "Zl", "Zp"}
    assert not any(
        unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI") for c in shown
    )
    assert len(one_line(text).splitlines()) <= 1


@given(st.text(st.characters(categories=("L", "N", "P", "S", "M"))))
def test_writing_of_any_script_stays(text: str) -> None:
    assert visible(text) == text


def test_escapes_are_readable() -> None:
    assert one_line("a\x1b[31m\n\udc80\u202e") == "a\\x1b[31m\\n\\udc80\\u202e"
