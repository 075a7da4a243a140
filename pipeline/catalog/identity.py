"""Whether a source is still the file that was curated.

A clip of a catalog names frames of certain bytes (`video_id` is their hash). Between `curate` and a later command the
file may have been replaced under the same name. Size and modification time (of an object its tag) are looked at first,
which reads nothing; only when one of them cannot say is the content hashed. So a touched or copied file is recognised,
at the cost of reading it once per process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from configs.errors import EchoForgeError
from configs.paths import is_remote
from curation import schema
from pipeline import storage

CHANGED = "changed since it was curated; run `curate` again"
GONE = "is not there; bring it back, or say where it is with `catalog relocate`, and run again"
UNREACHABLE = "could not be looked at"
CAUSES = (CHANGED, GONE, UNREACHABLE)
"""How the causes begin with which a source is left out; all of them can pass, so its samples are planned again."""
COLUMNS = ("source_bytes", "source_tag")
"""What :func:`attach` adds to clips and a planned sample carries; null where the catalog does not know."""


@dataclass(frozen=True)
class CuratedSource:
    """A file as it was when it was curated; size (bytes) and tag are None where the catalog does not know."""

    uri: str
    video_id: str
    bytes: int | None
    tag: str | None


class WrongSource(EchoForgeError):
    """The file that the catalog describes cannot be had. The sentence begins with one of :data:`CAUSES`."""


def attach(clips: pa.Table, videos: pa.Table) -> pa.Table:
    """``clips`` with size and tag of their sources as they were when they were curated (:data:`COLUMNS`).

    Args:
        clips: with ``video_id`` and ``source_uri``.
        videos: schema `VIDEOS`.
    """
    videos = videos.combine_chunks()
    row = pc.index_in(clips["source_uri"], value_set=videos["source_uri"].combine_chunks())
    same = pc.fill_null(pc.equal(videos["video_id"].take(row), clips["video_id"]), False)
    for name, source in zip(COLUMNS, ("bytes", "source_tag"), strict=True):
        values = videos[source].take(row)
        clips = clips.append_column(name, pc.if_else(same, values, pa.scalar(None, values.type)))
    return clips


def check(source: CuratedSource) -> None:
    """Compare the source of a clip or planned sample with what the catalog says of it.

    Raises:
        WrongSource: the file has other content, is gone, or its place does not answer.
    """
    try:
        same = _same(source.uri, source.bytes, source.tag, source.video_id)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WrongSource(GONE) from error
    except (storage.StoreError, OSError) as error:
        raise WrongSource(f"{UNREACHABLE} ({str(error).rstrip('.')}); run again") from error
    if not same:
        raise WrongSource(CHANGED)


def _same(uri: str, size: int | None, tag: str | None, video: str) -> bool:
    if not is_remote(uri) and storage.local(uri).exists() and not storage.local(uri).is_file():
        raise OSError("it is not a regular file")  # a device has no end, a pipe no beginning
    there = storage.entry(uri)
    if size is not None and there.size and there.size != size:  # 0: a server that does not say
        return False
    if size is not None and there.size == size and tag and there.tag == tag:
        return True
    return _content(uri, there.size, there.tag) == video


def intact(source: CuratedSource) -> bool:
    """Whether :func:`check` has nothing against it."""
    try:
        check(source)
    except EchoForgeError:
        return False
    return True


@lru_cache(maxsize=1 << 17)  # videos of a worker; samples come in any order
def _content(uri: str, size: int, tag: str) -> str:
    """The `video_id` of what lies at ``uri`` now; a file of another size or tag is hashed again."""
    with storage.local_copy(uri) as path:
        return schema.video_id(path)
