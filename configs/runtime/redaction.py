"""Credentials are taken out of what is printed, logged or saved. Linear in the length of the text."""

from __future__ import annotations

import os
import re
from functools import cache

HIDDEN = "***"

# Every pattern begins where a word begins and never gives back what it took (possessive), so none is tried twice on
# the same characters: a long hostile text costs as much as a long harmless one.
_URL = re.compile(r"(?<![\w+.-])[A-Za-z][A-Za-z0-9+.-]{0,40}://[^\s'\"<>]++")
_PORT = re.compile(r"[^/:@?#]*:\d{0,5}(?:[/?#]|$)|\[")  # or the address of an IPv6 host
_KEY = re.compile(r"(?<![\w.%-])(?P<key>[\w.%-]++)(?P<sep>['\"]?\s{0,8}+(?:=|:(?!//))\s{0,8}+)")
_VALUE = re.compile(
    r"(?P<scheme>(?:Bearer|Basic|Digest|Token)\s{1,8}+)?(?:(?P<quote>[\"'])(?:\\.|(?!(?P=quote)).)*+(?P=quote)?|[^\s'\",;&}\])]++)",
    re.IGNORECASE | re.DOTALL,
)
_BEARER = re.compile(r"(?<!\w)(?P<scheme>Bearer|Basic)\s{1,8}+[\w.~+/=-]{8,}+", re.IGNORECASE)
_SHAPES = re.compile(
    r"(?<![\w-])(?:(?:AKIA|ASIA)[A-Z0-9]{12,}+"  # ids of AWS keys
    r"|eyJ[\w-]*+\.[\w-]++\.[\w-]*+"  # JSON web tokens
    r"|(?:hf|ghp|gho|ghs|ghu|github_pat|glpat|sk|xox[abprs])[_-][A-Za-z0-9_-]{16,}+)"  # Hugging Face, GitHub, …
)
_LONG = re.compile(
    r"secret|token(?!s)|passw|passphrase|pwd|jwt|credential|signature|apikey|accesskey|accountkey|privatekey"
    r"|connectionstring|authorization|sessionid|accessid"
)
"""In the name of a key, small letters without ``-_.``: its value is a secret, after ``=`` or ``:``."""
_SHORT = re.compile(r"(?:^|[^a-z])(?:key|code|sig|sas|auth|pass|pw|cookie)$")
"""The last word of a key whose value is one after ``=`` or as a quoted key: in prose ``key: value`` is ordinary."""
_SECRET_NAME = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|ACCESS_KEY|ACCOUNT_KEY|API_KEY|CONNECTION_STRING|^FSSPEC_\w+_KEY$", re.IGNORECASE
)
"""Names of environment variables whose values are secrets."""


def redact(text: str) -> str:
    """``text`` without credentials, for messages.

    Taken out: user and password of URLs, values of keys that name a secret (in queries, assignments, dictionaries and
    headers), what looks like a token of AWS, Hugging Face or GitHub or a JSON web token, and the values of environment
    variables whose names say that they are secret.
    """
    text = _URL.sub(lambda match: _without_user(match.group()), text)
    text = _without_values(text)
    text = _BEARER.sub(rf"\g<scheme> {HIDDEN}", text)
    text = _SHAPES.sub(HIDDEN, text)
    for value in _secrets(tuple(os.environ.items())):
        text = text.replace(value, HIDDEN)
    return text


def redact_urls(text: str) -> str:
    """``text`` with the URLs in it as :func:`redact_address` leaves them; for results, whose ``KEY=…`` are commands."""
    return _URL.sub(lambda match: redact_address(match.group()), text)


def redact_address(address: str) -> str:
    """The name of a source or file without credentials: of a URL the user and the secrets of its query.

    Paths keep every character, those below a URL too, because files are found by them (``s3://bucket/key=3/a.mp4``).
    """
    if "://" not in address:
        return address
    address = _without_user(address)
    path, mark, query = address.partition("?")
    return path + mark + _without_values(query)


def _without_user(url: str) -> str:
    """A URL without user and password. A password may hold ``/``, and a path ``@``: what tells them apart is the port."""
    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    at = authority.rfind("@")
    if at < 0 and ":" in authority and not _PORT.match(rest):  # a password with / ? or # in it
        at = rest.find("@")
    return url if at < 0 else f"{scheme}://{HIDDEN}@{rest[at + 1 :]}"


def _without_values(text: str) -> str:
    """``text`` with the values of secret keys hidden; a value that is none is looked through for keys of its own."""
    parts, done = [], 0
    for found in _KEY.finditer(text):
        if found.start() < done or not _is_secret(found["key"], found["sep"]):
            continue
        if value := _VALUE.match(text, found.end()):
            quote = value["quote"] or ""
            parts += [text[done : found.end()], value["scheme"] or "", quote, HIDDEN, quote]
            done = value.end()
    return "".join([*parts, text[done:]])


def _is_secret(key: str, sep: str) -> bool:
    if _LONG.search(re.sub(r"[-_.%]", "", key).lower()):
        return True
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()
    return ("=" in sep or sep[0] in "'\"") and bool(_SHORT.search(words))


@cache
def _secrets(variables: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    values = {value for name, value in variables if len(value) >= 8 and _SECRET_NAME.search(name)}
    return tuple(sorted(values, key=len, reverse=True))
