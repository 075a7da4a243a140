"""Is it text, and of what kind: decided from reading, place, shape and persistence of a line within a clip.

subtitle  a centred line in the low or top band, or one of several that take turns in the low band
ticker    a line whose text moves along its own row
watermark a line in a corner or along the two edges of one, or anywhere else off-centre in the low band, that stands still
logo      the same, of at most four letters
scene     text elsewhere: part of what was filmed
"""

from __future__ import annotations

import numpy as np

from curation.config import TextConfig
from curation.operators.text.follow import Line

_LOGO_LETTERS = 4
_TICKER_LINES = 3  # sightings of one row
_WANDERS = 0.08  # share of the width; subtitles stay centred
_FULL = 0.9  # share of the width; a ticker in full flow


def letters(text: str) -> int:
    """How many characters are letters or digits of any script."""
    return sum(ch.isalnum() for ch in text)


def confidence(line: Line, cfg: TextConfig) -> float:
    """0..1: how sure it is that a line is text. 0 for hair, folds and stars that the detector took for it."""
    text = line.text or ""
    if letters(text) >= cfg.min_letters and line.read_score >= cfg.read_score:
        return line.read_score
    aspect = line.patch.shape[1] / line.patch.shape[0]
    unread = letters(text) < cfg.min_letters and len(text) != 1  # hair, folds and stars read as one character
    short = unread and aspect >= cfg.unread_aspect and line.score >= cfg.unread_score and line.samples > 1
    wide = aspect >= cfg.wide_aspect and line.score >= cfg.wide_score and line.samples >= cfg.wide_looks
    return line.score if short or wide else 0.0


def kinds(lines: list[Line], cfg: TextConfig) -> list[str]:
    """One kind per line; lines of one clip are judged together."""
    tickers = _tickers(lines)
    return ["ticker" if id(line) in tickers else _still(line, lines, cfg) for line in lines]


def _still(line: Line, lines: list[Line], cfg: TextConfig) -> str:
    x, y = (line.box[0] + line.box[2]) / 2, (line.box[1] + line.box[3]) / 2
    banded = y > cfg.low_band or y < cfg.top_band
    turns = y > cfg.low_band and any(_same_row(line, o) and (o.first > line.last or line.first > o.last) for o in lines)
    if banded and (abs(x - 0.5) <= cfg.centre or turns):
        return "subtitle"
    cornered = min(x, 1 - x) < cfg.corner and min(y, 1 - y) < cfg.corner
    x0, y0, x1, y1 = line.box
    hugging = min(x0, 1 - x1) < cfg.edge and min(y0, 1 - y1) < cfg.edge  # a long one, whose middle is not in the corner
    if cornered or hugging or y > 1 - cfg.corner:
        return "logo" if letters(line.text or "") <= _LOGO_LETTERS else "watermark"
    return "scene"


def _tickers(lines: list[Line]) -> set[int]:
    """Short-lived lines of one row, one after the other, whose middle wanders or that fill the whole width."""
    found: set[int] = set()
    for line in lines:
        row = [o for o in lines if _same_row(line, o) and o.samples <= 2]
        middles = [(o.box[0] + o.box[2]) / 2 for o in row]
        wide = np.mean([o.box[2] - o.box[0] > _FULL for o in row]) > 0.5 if row else False
        if len({o.first for o in row}) >= _TICKER_LINES and (wide or max(middles) - min(middles) > _WANDERS):
            found |= {id(o) for o in row}
    return found


def _same_row(a: Line, b: Line) -> bool:
    shared = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    return bool(shared > 0.5 * min(a.box[3] - a.box[1], b.box[3] - b.box[1]))
