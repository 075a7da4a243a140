"""Names that lead out of a folder are refused, whatever they are made of; what is inside is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import members
from configs.members import BadMember

NAMES = ["..", ".", "", "a", "b", "link", "out", "pipe", "/", "\\", ":", "\x00", "\udc80", "é", "%2e%2e", "x" * 300]
PIECES = st.sampled_from(NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("members")
    (base / "secret").write_bytes(b"secret")
    root = base / "root"
    (root / "a").mkdir(parents=True)
    for path in (root / "b", root / "a" / "b"):
        path.write_bytes(b"inside")
    os.mkfifo(root / "pipe")
    (root / "link").symlink_to(base)
    (root / "out").symlink_to(base / "secret")
    (root / "a" / "link").symlink_to("/dev/zero")
    (base / "way").symlink_to(root)  # the folder itself may be reached through a link
    return base / "way"


@given(name=st.lists(PIECES, min_size=1, max_size=5).map("/".join) | st.lists(PIECES, max_size=4).map("".join))
def test_only_what_is_inside_is_read(folder: Path, name: str) -> None:
    try:
        data = members.read(folder, name, most=100)
    except (BadMember, FileNotFoundError) as error:
        assert "\n" not in str(error) and "\udc80" not in str(error)
    else:
        assert data == b"inside" and members.check(folder, name).read_bytes() == data


@given(offset=st.integers(-(2**65), 2**65), length=st.integers(-(2**65), 2**65))
def test_a_range_is_inside_the_file_or_refused(folder: Path, offset: int, length: int) -> None:
    if 0 <= offset <= offset + length <= 6 and length >= 0:
        assert members.read_range(folder, "b", offset, length) == b"inside"[offset : offset + length]
    else:
        with pytest.raises(BadMember):
            members.read_range(folder, "b", offset, length)


@pytest.mark.parametrize("name", [None, 5, b"b", "", "a/", "/b", "a//b", "a/./b", "C:b", "s3://x/b", "b?x", "b#x"])
def test_what_is_no_plain_relative_path_is_refused(folder: Path, name: object) -> None:
    for use in (lambda: members.read(folder, name, most=9), lambda: members.check(folder, name)):
        with pytest.raises(BadMember, match="relative"):
            use()
    with pytest.raises(BadMember, match="at most 3"):
        members.read(folder, "b", most=3)
