"""What the small files of a dataset must be before anyone believes them: whole, of the right form, of a sane size.

`checksums.json` names size and sha256 of every file that the dataset consists of (tars, index, prompts, plans …) and ends
with a digest of itself. It is written last. While the others are replaced it says which command does so: a dataset that
was interrupted between two of its files is then refused by name instead of being read as a mix. Digests find damage and
mixed copies; whoever can write the dataset can write them, too. Datasets of earlier versions have none.

The card (`README.md`) is for people to edit: its digest is kept, and a difference is mentioned, not refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import SafetensorError, deserialize

from configs import folders, members
from configs.dataset_schema import DATASET_FILE, DIGESTS_FILE, INDEX_FILE, PROMPTS_FILE, as_index
from configs.errors import EchoForgeError
from configs.runtime.shown import one_line

Fetch = Callable[[str, int], bytes]
"""(name in the dataset, most bytes it may have) → its content. Raises FileNotFoundError where there is none."""

COMMANDS = ("shard", "shards add", "shards merge", "shards split")
"""What `checksums.json` may call unfinished."""
MOST_BYTES = 2**34
"""Of one small file. The index of 1,500 h has about 1 GB; what memory holds anyway is no reason to refuse a dataset."""
_RESTORE = "bring it back from a copy"
_REMEDIES = {
    INDEX_FILE: f"{_RESTORE}; where `shard` made the dataset, remove the file and run `shard` again",
    DATASET_FILE: f"{_RESTORE}; where `shard` made the dataset, remove the file and run `shard` again",
    PROMPTS_FILE: f"{_RESTORE}; where `shard` made the dataset, run `shard` again",
    DIGESTS_FILE: f"{_RESTORE}, or remove it (files are then read unchecked) and run `shard` again",
}
_PLAN_REMEDY = f"{_RESTORE}, or shard into another folder"


class Damaged(EchoForgeError):
    """A small file of a dataset is not what was written, or nothing that a dataset can hold."""

    def __init__(self, dataset: str, name: str, what: str):
        remedy = _REMEDIES.get(name, _PLAN_REMEDY)
        super().__init__(f"the file {name} of '{dataset}' cannot be used: {one_line(what).rstrip('.')}; {remedy}.")
        self.name = name


class Unfinished(EchoForgeError):
    """The files of a dataset are being replaced, or were when the command that did so was interrupted."""

    def __init__(self, dataset: str, command: str):
        super().__init__(
            f"dataset '{dataset}' is unfinished: `{one_line(command)}` is at work, or was interrupted while it replaced "
            "the index; if it is not running, run the same command again."
        )


@dataclass(frozen=True)
class FileDigest:
    """Size and sha256 (hex) of one file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> FileDigest:
        """The digest of ``data``."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Digests:
    """The content of `checksums.json`.

    Attributes:
        files: name in the dataset → digest.
        unfinished: the command that replaces files; '' when the dataset is whole.
    """

    files: Mapping[str, FileDigest]
    unfinished: str = ""

    def to_bytes(self) -> bytes:
        """The file: JSON whose last entry is the sha256 of the same JSON without it."""
        files = {name: asdict(digest) for name, digest in sorted(self.files.items())}
        body = {"files": files, "unfinished": self.unfinished}

        def encoded(**more: str) -> bytes:
            return (json.dumps(body | more, indent=1) + "\n").encode()

        return encoded(sha256=hashlib.sha256(encoded()).hexdigest())

    def check(self, dataset: str, name: str, data: bytes) -> None:
        """Raise :class:`Damaged` unless ``data`` is what was written as ``name``."""
        if name not in self.files:
            raise Damaged(dataset, name, f"{DIGESTS_FILE} does not name it")
        if self.files[name] != FileDigest.of(data):
            raise Damaged(dataset, name, "its bytes are not those that were written (sha256 differs)")


def parse_digests(data: bytes, dataset: str) -> Digests:
    """The content of `checksums.json`.

    Raises:
        Damaged: one bit of it is not as it was written.
    """
    try:
        body = json.loads(data)
        files = {members.relative(name): FileDigest(**item) for name, item in body["files"].items()}
        if not all(type(d.size) is int and isinstance(d.sha256, str) for d in files.values()):
            raise TypeError("a digest is not a number and a text")
        if not isinstance(body["unfinished"], str):
            raise TypeError("'unfinished' is not a text")
        digests = Digests(files, body["unfinished"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, members.BadMember) as error:
        raise Damaged(dataset, DIGESTS_FILE, f"it is not what was written ({error})") from error
    if digests.to_bytes() != data:
        raise Damaged(dataset, DIGESTS_FILE, "its bytes are not those that were written")
    return digests


def read_digests(fetch: Fetch, dataset: str, *, unfinished: Collection[str] = ()) -> Digests | None:
    """The digests of a dataset; None for one of an earlier version, which has none.

    Args:
        unfinished: commands whose half-done work may be read: those that go on with it.

    Raises:
        Damaged, Unfinished, OSError.
    """
    try:
        data = fetch(DIGESTS_FILE, MOST_BYTES)
    except FileNotFoundError:
        return None
    except members.BadMember as error:
        raise Damaged(dataset, DIGESTS_FILE, str(error)) from error
    digests = parse_digests(data, dataset)
    if digests.unfinished and digests.unfinished not in unfinished:
        raise Unfinished(dataset, digests.unfinished)
    return digests


def read_checked(fetch: Fetch, dataset: str, name: str, *, unfinished: Collection[str] = ()) -> bytes:
    """A small file of a dataset, compared with its digest where the dataset has digests.

    Raises:
        FileNotFoundError: there is none. Damaged, Unfinished, OSError.
    """
    digests = read_digests(fetch, dataset, unfinished=unfinished)
    try:
        data = fetch(name, MOST_BYTES)
    except members.BadMember as error:
        raise Damaged(dataset, name, str(error)) from error
    if digests is not None and not digests.unfinished:
        digests.check(dataset, name, data)
    return data


def read_index(fetch: Fetch, dataset: str, *, unfinished: Collection[str] = ()) -> pa.Table:
    """The index of a dataset, compared with its digest; see :func:`parse_index`.

    Raises:
        EchoForgeError: there is none, it is damaged or of another version, or the dataset is unfinished.
    """
    try:
        data = read_checked(fetch, dataset, INDEX_FILE, unfinished=unfinished)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = folders.found(dataset, "dataset")
        raise EchoForgeError(f"'{dataset}' holds no {INDEX_FILE}: {what}; `shard` makes a dataset.") from error
    except OSError as error:
        raise Damaged(dataset, INDEX_FILE, str(error)) from error
    return parse_index(data, dataset)


def parse_index(data: bytes, dataset: str) -> pa.Table:
    """The index (schema `INDEX`). Its rows may still say anything: see :func:`check_rows` and `train.data.index`.

    Raises:
        Damaged: not a Parquet file, not such a table, or one that unpacks to more than its bytes can mean.
        EchoForgeError: a column is missing.
    """
    table = parse_table(data, dataset, INDEX_FILE)
    try:
        return as_index(table, dataset)
    except pa.ArrowException as error:
        raise Damaged(dataset, INDEX_FILE, f"a column has another type ({error})") from error


def parse_table(data: bytes, dataset: str, name: str, schema: pa.Schema | None = None) -> pa.Table:
    """A Parquet file in memory, whole and valid, with the columns and types of ``schema``.

    Raises:
        Damaged: it is none.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            _check_claims(file.metadata, len(data))
            table = file.read()
        table.validate(full=True)  # texts are UTF-8, lists lie inside their values
        return table if schema is None else table.select(schema.names).cast(schema.with_metadata(table.schema.metadata))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise Damaged(dataset, name, f"it is not a readable table ({error})") from error


def _check_claims(metadata: pq.FileMetaData, size: int) -> None:
    """Refuse a table that repeats itself more often than any real one: a few bytes can unpack to terabytes.

    A row of an index or a plan holds an id, a tensor a digest; such values do not compress, so that no column has more
    values than the file has bytes.
    """
    for group in range(metadata.num_row_groups):
        columns = (metadata.row_group(group).column(c) for c in range(metadata.row_group(group).num_columns))
        if any(column.num_values > size for column in columns):
            raise ValueError(f"it claims more values than its {size} bytes can hold")
    if metadata.num_rows > size:
        raise ValueError(f"it claims {metadata.num_rows} rows in {size} bytes")


_SAMPLE_ID = r"^[0-9A-Za-z_-]{1,64}$"
_NEEDED = ("sample_id", "clip_id", "video_id", "bucket", "split", "generation", "F", "H", "W", "tensors", "members")
_NEEDED_OF = {
    "tensors": ("name", "tar", "offset", "length", "dtype", "shape"),
    "members": ("ext", "tar", "offset", "length"),
}


def check_present(table: pa.Table, dataset: str, columns: Collection[str]) -> pa.Table:
    """``table`` itself, when every row of an index has a value in each of ``columns``.

    Raises:
        Damaged: one has not; `shards verify` names all.
    """
    for name in columns:
        if table[name].null_count:
            raise _bad_row(dataset, f"a row has no {name}")
    return table


def _bad_row(dataset: str, what: str) -> Damaged:
    return Damaged(dataset, INDEX_FILE, f"{what} (`shards verify` names every row)")


def check_rows(table: pa.Table, dataset: str) -> pa.Table:
    """``table`` itself, when every row can be used: ids that are names, nothing missing, tars inside the dataset.

    Raises:
        Damaged: one cannot; `shards verify` names all.
    """
    check_present(table, dataset, _NEEDED)
    if not pc.all(pc.match_substring_regex(table["sample_id"], _SAMPLE_ID), min_count=0).as_py():
        raise _bad_row(dataset, "a sample_id is not a plain name")
    tars: set[str] = set()
    for kind, needed in _NEEDED_OF.items():
        items = pc.list_flatten(table[kind]).combine_chunks()
        if items.null_count or any(items.field(name).null_count for name in needed):
            raise _bad_row(dataset, f"an entry of {kind} is incomplete")
        for name in ("offset", "length"):
            if (pc.min(items.field(name)).as_py() or 0) < 0:
                raise _bad_row(dataset, f"an entry of {kind} has a negative {name}")
        tars.update(pc.unique(items.field("tar")).to_pylist())
    for tar in tars:
        try:
            check_tar(tar)
        except members.BadMember as error:
            raise _bad_row(dataset, str(error)) from error
    return table


def check_tar(name: object) -> str:
    """``name`` itself, when it can be the name of a tar of a dataset.

    Raises:
        BadMember: it leads elsewhere.
    """
    if not members.relative(name).endswith(".tar") or "/" not in str(name):
        raise members.BadMember(f"'{one_line(name)[:80]}' is not the name of a tar of a dataset.")
    return str(name)


def check_prompts(data: bytes, dataset: str) -> None:
    """Raise :class:`Damaged` unless `prompts.safetensors` holds the null prompt, and only rows [L, D] of one width D."""
    try:
        found = dict(deserialize(data))
    except (SafetensorError, ValueError) as error:
        raise Damaged(dataset, PROMPTS_FILE, f"it is not a safetensors file ({error})") from error
    shapes = [tuple(item["shape"]) for item in found.values()]
    if "null" not in found or any(len(shape) != 2 or not shape[0] or shape[1] != shapes[0][1] for shape in shapes):
        raise Damaged(dataset, PROMPTS_FILE, "it does not hold the embeddings that `shard` writes")
    if any(item["dtype"] not in ("BF16", "F16", "F32") for item in found.values()):
        raise Damaged(dataset, PROMPTS_FILE, "it holds something else than embeddings")
