"""The files of a dataset as the tools read and write them: index, description, plans, members, tars, and their digests.

What is read was perhaps made by a stranger: names are resolved by `configs.members`, small files are checked by
`configs.dataset_files`. What is written gets its digest while it is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from configs import dataset_files, members
from configs.dataset_description import Description
from configs.dataset_files import Damaged, Digests, FileDigest
from configs.dataset_schema import DATASET_FILE, DIGESTS_FILE, INDEX_FILE, PROMPTS_FILE
from configs.errors import EchoForgeError
from configs.paths import is_remote
from pipeline import storage
from pipeline.dataset import sample
from pipeline.dataset.index import Found, MemberEntry, scan
from pipeline.dataset.sample import PLAN
from pipeline.dataset.tar import ShardSample, write_tar

TARS = pa.schema([("path", pa.string()), ("size", pa.int64()), ("sha256", pa.string())])
"""What a ledger keeps of a tar: its name in the dataset and the digest of what was written."""
_CHUNK = 1 << 20


def fetcher(dataset: str) -> dataset_files.Fetch:
    """Reads small files of ``dataset`` whole."""

    def fetch(name: str, most: int) -> bytes:
        if not is_remote(dataset):
            return members.read(storage.local(dataset), name, most=most)
        url = storage.join(dataset, members.relative(name))
        if (size := storage.entry(url).size) > most:
            raise members.BadMember(f"'{name}' has {size} bytes; such a file has at most {most}.")
        return storage.read_bytes(url)

    return fetch


def read_digests(dataset: str, *, unfinished: Collection[str] = ()) -> Digests | None:
    """As `dataset_files.read_digests`."""
    with contextlib.suppress(NotADirectoryError, FileNotFoundError):
        return dataset_files.read_digests(fetcher(dataset), dataset, unfinished=unfinished)
    return None


def read_index(dataset: str, *, unfinished: Collection[str] = ()) -> pa.Table:
    """The index of a dataset; every row can be used.

    Args:
        unfinished: as in `dataset_files.read_digests`.

    Raises:
        EchoForgeError: there is none, it is damaged or of another version, or the dataset is unfinished.
    """
    table = dataset_files.read_index(fetcher(dataset), dataset, unfinished=unfinished)
    return dataset_files.check_rows(table, dataset)


def read_description(dataset: str, *, unfinished: Collection[str] = ()) -> Description:
    """`dataset.json`.

    Raises:
        EchoForgeError: there is none, or it is damaged.
    """
    data = read_small(dataset, DATASET_FILE, unfinished=unfinished)
    return Description.parse(data, dataset)


def read_prompts(dataset: str, *, unfinished: Collection[str] = ()) -> bytes:
    """`prompts.safetensors` as bytes that hold what training expects.

    Raises:
        EchoForgeError: there is none, or it is damaged.
    """
    data = read_small(dataset, PROMPTS_FILE, unfinished=unfinished)
    dataset_files.check_prompts(data, dataset)
    return data


def read_small(dataset: str, name: str, *, unfinished: Collection[str] = ()) -> bytes:
    """A small file of a dataset, compared with its digest where there are digests.

    Raises:
        EchoForgeError: there is none, or it is damaged.
    """
    try:
        return dataset_files.read_checked(fetcher(dataset), dataset, name, unfinished=unfinished)
    except FileNotFoundError as error:
        if not exists(dataset, INDEX_FILE):
            read_index(dataset)  # says what is there instead of a dataset
        raise Damaged(dataset, name, "it is not there") from error
    except OSError as error:
        raise Damaged(dataset, name, str(error)) from error


def read_table(dataset: str, name: str, schema: pa.Schema) -> pa.Table:
    """A table of a dataset that is neither its index nor a plan; an interrupted dataset may be read.

    Raises:
        Damaged: it is not what was written.
    """
    try:
        data = dataset_files.read_checked(fetcher(dataset), dataset, name, unfinished=dataset_files.COMMANDS)
    except OSError as error:
        raise Damaged(dataset, name, str(error)) from error
    return dataset_files.parse_table(data, dataset, name, schema)


def tars_of(table: pa.Table) -> list[str]:
    """Every tar that an index names, sorted."""
    columns = (pc.list_flatten(table[kind]).combine_chunks() for kind in ("tensors", "members"))
    return sorted({tar for items in columns for tar in pc.unique(items.field("tar")).to_pylist()})


def exists(dataset: str, name: str) -> bool:
    """Whether something lies at ``name``, be it a broken link."""
    if is_remote(dataset):
        return storage.exists(storage.join(dataset, name))
    return os.path.lexists(storage.local(dataset) / name)


def read_plans(dataset: str) -> dict[str, pa.Table]:
    """Generation → its plan (`sample.PLAN`), in order.

    Raises:
        Damaged: one is not what was written, or plans a tar outside the dataset.
    """
    digests = read_digests(dataset, unfinished=dataset_files.COMMANDS)
    plans: dict[str, pa.Table] = {}
    while exists(dataset, name := f"gen-{len(plans):03d}/plan.parquet"):
        try:
            data = fetcher(dataset)(name, dataset_files.MOST_BYTES)
        except (OSError, members.BadMember) as error:
            raise Damaged(dataset, name, str(error)) from error
        if digests is not None and name in digests.files:
            digests.check(dataset, name, data)
        plan = dataset_files.parse_table(data, dataset, name, PLAN)
        try:
            _check_plan(plan)
        except (ValueError, KeyError, TypeError, RecursionError, members.BadMember) as error:
            raise Damaged(dataset, name, f"a row cannot be used ({error})") from error
        plans[name.partition("/")[0]] = plan
    return plans


def _check_plan(plan: pa.Table) -> None:
    """Raise unless names are there and plain, and every sample is a mapping with what every reader takes from it."""
    if any(column.null_count for column in plan.columns):
        raise ValueError("a value is missing")
    if not isinstance(json.loads((plan.schema.metadata or {}).get(b"parameters", b"{}")), dict):
        raise ValueError("its parameters are no mapping")
    for tar in plan["tar"].unique().to_pylist():
        dataset_files.check_tar(tar)
    for sample_id, text in zip(plan["sample_id"].to_pylist(), plan["sample"].to_pylist(), strict=True):
        sample.check(text, sample_id)


@contextlib.contextmanager
def opened(dataset: str, name: str) -> Iterator[IO[bytes]]:
    """A tar of a dataset as a stream; of an object, a local copy.

    Raises:
        BadMember: the name leads out of the dataset, or to no regular file. FileNotFoundError: there is none.
    """
    if is_remote(dataset):
        with storage.local_copy(storage.join(dataset, members.relative(name))) as path, path.open("rb") as stream:
            yield stream
    else:
        with members.opened(storage.local(dataset), name) as stream:
            yield stream


def read_member(dataset: str, item: MemberEntry) -> bytes:
    """The bytes of one member, compared with its digest where the index has one.

    Raises:
        EchoForgeError: it leads out of the dataset, past the end of its tar, or its bytes are others.
    """
    tar, offset, length = item.tar, item.offset, item.length
    try:
        if is_remote(dataset):
            url = storage.join(dataset, members.relative(tar))
            members.check_range(tar, offset, length, storage.entry(url).size)
            data = storage.read_range(url, offset, length)
        else:
            data = members.read_range(storage.local(dataset), tar, offset, length)
    except OSError as error:
        raise EchoForgeError(f"the tar {tar} of '{dataset}' cannot be read ({error.strerror or error}).") from error
    if (digest := item.sha256) and hashlib.sha256(data).hexdigest()[:16] != digest:
        raise EchoForgeError(
            f"member '.{item.ext}' at byte {offset} of {tar} in '{dataset}' is not what was written (sha256 differs); "
            "`shards verify` names all that is damaged."
        )
    return data


class Hashing(io.BufferedWriter):
    """A new local file that counts and hashes what is written to it, from its first byte to its last."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self._sha256, self._size = hashlib.sha256(), 0

    def write(self, data: Any, /) -> int:
        """Append ``data``."""
        self._sha256.update(data)
        self._size += memoryview(data).nbytes
        return super().write(data)

    @property
    def digest(self) -> FileDigest:
        """Of everything written so far."""
        return FileDigest(self._size, self._sha256.hexdigest())


def save_tar(dataset: str, tar: str, samples: Iterable[ShardSample]) -> tuple[dict[str, Found], pa.Table]:
    """Write one tar of a dataset; it is there whole or not at all.

    Returns:
        (what `index.scan` finds in it, its row of :data:`TARS`).
    """
    check_target(dataset, tar)
    with storage.writing(storage.join(dataset, tar)) as path:
        with Hashing(path) as stream:
            write_tar(stream, samples)
        with path.open("rb") as written:
            found = scan(written, tar)
    digest = stream.digest
    return found, pa.table([[tar], [digest.size], [digest.sha256]], schema=TARS)


def copy_tar(source: str, tar: str, target: str, as_tar: str, known: FileDigest | None) -> FileDigest:
    """Copy a tar from one dataset to another and take its digest on the way.

    Args:
        known: its digest, where the first dataset has one.

    Raises:
        EchoForgeError: it is not there, no regular file, or not what was written; nothing is left of the copy then.
    """
    check_target(target, as_tar)
    try:
        with opened(source, tar) as stream, storage.writing(storage.join(target, as_tar)) as path:
            with Hashing(path) as copy:
                while data := stream.read(_CHUNK):
                    copy.write(data)
            if known is not None and copy.digest != known:
                raise EchoForgeError(
                    f"{tar} of '{source}' is not what was written (sha256 differs); `shards verify` says which samples "
                    "are damaged: bring the tar back from a copy."
                )
    except FileNotFoundError as error:
        raise EchoForgeError(f"{tar} of '{source}' is missing; bring it back from a copy.") from error
    return copy.digest


def check_target(dataset: str, name: str) -> None:
    """Raise BadMember when ``name`` cannot be written inside a dataset: it leads out of it, or through a link."""
    if is_remote(dataset):
        members.relative(name)
    else:
        members.check(storage.local(dataset), name)


def tar_digests(tables: Iterable[pa.Table]) -> dict[str, FileDigest]:
    """Tables of the form :data:`TARS` as a mapping."""
    return {row["path"]: FileDigest(row["size"], row["sha256"]) for table in tables for row in table.to_pylist()}


def table_bytes(table: pa.Table) -> bytes:
    """A Parquet file (zstd)."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def replace(dataset: str, files: Mapping[str, bytes], tars: Mapping[str, FileDigest], keep: Collection[str],
            command: str) -> None:  # fmt: skip
    """Give a dataset new small files, so that readers see the old ones, the new ones, or an unfinished dataset.

    Args:
        files: name → content, written in this order.
        tars: digests of tars made or copied now.
        keep: names of the other files that belong to the dataset. Their digests are the ones that were known before;
            a tar without one (an earlier version made it) stays without; of another file it is taken now.
        command: what to run again when this is interrupted.
    """
    old = read_digests(dataset, unfinished=dataset_files.COMMANDS)
    known = {**(old.files if old else {}), **tars}
    for name in (name for name in keep if name not in known and not name.endswith(".tar")):
        with contextlib.suppress(FileNotFoundError):
            known[name] = FileDigest.of(fetcher(dataset)(name, dataset_files.MOST_BYTES))
    digests = {name: known[name] for name in {*keep, *tars} if name in known}
    digests |= {name: FileDigest.of(data) for name, data in files.items()}
    mark(dataset, command, old)
    for name, data in files.items():
        check_target(dataset, name)
        storage.write_bytes(storage.join(dataset, name), data)
    storage.write_bytes(storage.join(dataset, DIGESTS_FILE), Digests(digests).to_bytes())


def mark(dataset: str, command: str, old: Digests | None) -> None:
    """Say that ``command`` replaces files of the dataset from here on; ``old`` digests are kept for its next try."""
    marked = Digests(old.files if old else {}, unfinished=command)
    storage.write_bytes(storage.join(dataset, DIGESTS_FILE), marked.to_bytes())
