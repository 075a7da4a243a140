"""Text from outside, made safe to print: names of files, messages of libraries, captions, tables of strangers.

A terminal obeys control characters (colours, cursor, title, clipboard), and some letters change how others are read
(right-to-left overrides). All of them are shown as escapes instead.
"""

from __future__ import annotations

import re

# C0 and C1 controls but tab and newline; lone surrogates; marks of direction (UAX 9), the zero-width
# space, line separators, the byte order mark, tags, interlinear marks. Joiners stay: Persian and emoji need them.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def visible(text: object) -> str:
    """``text`` with everything that a terminal would obey written as an escape (``\\x1b``, ``\\u202e``, ``\\udc80``).

    Newlines and tabs stay; :func:`one_line` takes them, too.
    """
    return _UNSAFE.sub(_escape, str(text))


def one_line(text: object) -> str:
    """:func:`visible` in one line, for a cell of a table or a name inside a sentence."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
