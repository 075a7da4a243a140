"""Checks a dataset byte by byte and names what is wrong. Nothing in a tar is executed, followed or unpacked.

Every file that `checksums.json` names is compared with its digest, so that one changed bit anywhere is found: in a tensor,
in the headers and the padding of a tar, in the index. Then every tar is compared with the index, sample by sample.
Datasets of earlier versions have no digests of whole files; the report says what could not be checked there. The record
of work (``ledger/``) is the engine's own and is not part of a dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import IO

import numpy as np
import pyarrow as pa

from configs import dataset_files, members
from configs.dataset_description import Description
from configs.dataset_files import Damaged, Digests, FileDigest
from configs.dataset_schema import CARD_FILE, DATASET_FILE, DIGESTS_FILE, INDEX_FILE, PROMPTS_FILE
from configs.errors import EchoForgeError
from configs.runtime import stopping
from configs.runtime.shown import one_line
from pipeline import listing
from pipeline.dataset import files
from pipeline.dataset.index import Found, MemberEntry, TensorEntry, scan

MAX_MEMBER = 2**32
"""Bytes of one member; a real one has tens of megabytes."""
_CHUNK = 1 << 20
_SHOWN = 3
"""Names of strangers that a note gives."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. ``sample_id`` is empty when it concerns a whole file."""

    tar: str
    sample_id: str
    what: str

    def __str__(self) -> str:
        sample = f"sample {one_line(self.sample_id)}: " if self.sample_id else ""
        return f"{one_line(self.tar)}: {sample}{self.what}"


@dataclass
class VerifyReport:
    """The outcome of :func:`verify`. ``notes`` say what was not checked, and what is no damage."""

    dataset: str
    tars: int = 0
    samples: int = 0
    tensors: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def bad_samples(self) -> list[str]:
        """Ids for ``loader.keep.skip``."""
        return sorted({p.sample_id for p in self.problems if p.sample_id})

    def __str__(self) -> str:
        head = f"{self.dataset}: {self.tars} tars, {self.samples} samples, {self.tensors} tensors: "
        outcome = "all right" if self.ok else f"{len(self.problems)} problems"
        return "\n".join([head + outcome, *map(str, self.problems), *(f"note: {note}" for note in self.notes)])


@dataclass
class Expected:
    """What the index says of the part of a sample that lies in one tar."""

    sample_id: str
    bucket: str | None
    size: tuple[int | None, int | None, int | None]  # F, H, W
    tensors: dict[str, TensorEntry] = field(default_factory=dict)
    members: dict[str, MemberEntry] = field(default_factory=dict)


def verify(dataset: str) -> VerifyReport:
    """Compare every file with its digest, and every tar with the index: members, digests, shapes, finite values, JSON and
    text, splits.

    Raises:
        EchoForgeError: there is no index, or the dataset is unfinished.
    """
    if not files.exists(dataset, INDEX_FILE):
        files.read_index(dataset)  # says what is there instead
    report = VerifyReport(dataset)
    digests = _digests(dataset, report)
    _small_files(dataset, digests, report)
    rows = _index(dataset, digests, report)
    if rows is None:
        return report
    report.samples = rows.num_rows
    wanted = _by_tar(rows, report)
    report.tars = len(wanted)
    for tar, samples in sorted(wanted.items()):
        stopping.check()
        _tar(dataset, tar, samples, digests, report)
    _splits(rows, report)
    _strangers(dataset, set(wanted), digests, report)
    return report


def _digests(dataset: str, report: VerifyReport) -> Digests | None:
    try:
        digests = files.read_digests(dataset)
    except Damaged as error:
        report.problems.append(Problem(DIGESTS_FILE, "", str(error)))
        return None
    if digests is None:
        report.notes.append(
            f"an earlier version made this dataset, without {DIGESTS_FILE}: checked were tensors and what can be read; "
            "bytes of headers, padding, pictures, sounds and small files could not be compared with what was written"
        )
    return digests


def _index(dataset: str, digests: Digests | None, report: VerifyReport) -> pa.Table | None:
    try:
        data = files.fetcher(dataset)(INDEX_FILE, dataset_files.MOST_BYTES)
        if digests is not None:
            digests.check(dataset, INDEX_FILE, data)
        return dataset_files.parse_index(data, dataset)
    except (EchoForgeError, OSError) as error:
        report.problems.append(Problem(INDEX_FILE, "", str(error)))
        return None


def _small_files(dataset: str, digests: Digests | None, report: VerifyReport) -> None:
    """Compare what `checksums.json` names beside tars; the index is compared when it is read."""
    for name in sorted(digests.files if digests else ()):
        if name.endswith(".tar") or name == INDEX_FILE:
            continue
        try:
            digests.check(dataset, name, files.fetcher(dataset)(name, dataset_files.MOST_BYTES))  # type: ignore[union-attr]
        except FileNotFoundError:
            report.problems.append(Problem(name, "", "the file is missing"))
        except (Damaged, members.BadMember, OSError) as error:
            if name == CARD_FILE:
                report.notes.append(f"{name} is not as it was written; people may edit it")
            else:
                report.problems.append(Problem(name, "", str(error)))
    parsers = ((DATASET_FILE, Description.parse), (PROMPTS_FILE, dataset_files.check_prompts))
    for name, parse in parsers:  # a digest may be right and the content wrong all the same
        if any(problem.tar == name for problem in report.problems):
            continue
        try:
            parse(files.fetcher(dataset)(name, dataset_files.MOST_BYTES), dataset)
        except FileNotFoundError:
            report.notes.append(f"there is no {name}")
        except (EchoForgeError, OSError) as error:
            report.problems.append(Problem(name, "", str(error)))


def _tar(dataset: str, tar: str, samples: dict[str, Expected], digests: Digests | None, report: VerifyReport) -> None:
    """Compare one tar with its digest and with the index."""
    known = digests.files.get(tar) if digests else None
    before = len(report.problems)
    whole = True
    try:
        with files.opened(dataset, tar) as stream:
            whole = known is None or _digest(stream) == known
            trusted = known is not None and whole
            found = scan(stream, tar, sha256=not trusted)
            shared = {tensor.offset: tensor for one in found.values() for tensor in one.tensors}
            for sample, expected in samples.items():
                for what in _sample(stream, found.get(sample), shared, expected, report):
                    report.problems.append(Problem(tar, sample, what))
    except FileNotFoundError:
        report.problems += [Problem(tar, sample, "the tar is missing") for sample in samples]
    except (EchoForgeError, OSError) as error:
        report.problems += [Problem(tar, sample, one_line(error)) for sample in samples]
    if not whole and len(report.problems) == before:
        what = (
            "its bytes are not those that were written (sha256 differs); no sample is touched: headers or padding are"
        )
        report.problems.append(Problem(tar, "", what))


def _digest(stream: IO[bytes]) -> FileDigest:
    sha256, size = hashlib.sha256(), 0
    while data := stream.read(_CHUNK):
        sha256.update(data)
        size += len(data)
    return FileDigest(size, sha256.hexdigest())


def _strangers(dataset: str, tars: set[str], digests: Digests | None, report: VerifyReport) -> None:
    """Note tars without a digest and files that are no part of the dataset."""
    if digests is None:
        return
    if bare := sorted(tars - set(digests.files)):
        report.notes.append(
            f"an earlier version made {len(bare)} tars, of which no digest is known ({bare[0]} …): only their tensors and "
            "what can be read were checked"
        )
    known = {*digests.files, DIGESTS_FILE}
    strange = [name for name in listing.names_below(dataset, skip=("ledger",)) if name not in known]
    if strange := [name for name in strange if not name.rpartition("/")[2].startswith(".") and name not in tars]:
        more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
        shown = ", ".join(one_line(name) for name in strange[:_SHOWN])
        report.notes.append(f"no part of the dataset: {shown}{more}")


def _by_tar(rows: pa.Table, report: VerifyReport) -> dict[str, dict[str, Expected]]:
    """Tar → sample id → what the index says lies there."""
    wanted: dict[str, dict[str, Expected]] = defaultdict(dict)
    columns = (rows[name].to_pylist() for name in ("sample_id", "bucket", "F", "H", "W", "tensors", "members"))
    for name, bucket, frames, height, width, tensors, held in zip(*columns, strict=True):
        blank = Expected(str(name), bucket, (frames, height, width))
        if not tensors:
            report.problems.append(Problem(INDEX_FILE, blank.sample_id, "its row names no tensors"))
        for item in tensors or ():
            if expected := _at((item or {}).get("tar"), wanted, blank, report):
                expected.tensors[item["name"]] = TensorEntry(**item)
        for item in held or ():
            if expected := _at((item or {}).get("tar"), wanted, blank, report):
                expected.members[item["ext"]] = MemberEntry(**item)
    return wanted


def _at(tar: object, wanted: dict[str, dict[str, Expected]], blank: Expected, report: VerifyReport) -> Expected | None:
    """The part of a sample in ``tar``; None, with a problem, where that can be no tar of a dataset."""
    try:
        samples = wanted[dataset_files.check_tar(tar)]
    except members.BadMember:
        what = "the tar lies outside the dataset, or is no tar"
        report.problems.append(Problem(str(tar), blank.sample_id, what))
        return None
    return samples.setdefault(blank.sample_id, replace(blank, tensors={}, members={}))


def _sample(
    stream: IO[bytes], found: Found | None, shared: dict[int, TensorEntry], expected: Expected, report: VerifyReport
) -> Iterator[str]:
    """``found``: what the tar holds under the sample's id; ``shared``: all its tensors by place (texts have other ids)."""
    borrowed = found is None and not expected.members and all(map(_is_text, expected.tensors))
    if found is None and not borrowed:
        yield "it is not in the tar"
        return
    tensors = {tensor.name: tensor for tensor in found.tensors} if found else {}
    for name, tensor in expected.tensors.items():
        report.tensors += 1
        here = tensors.get(name)
        if borrowed and (at := shared.get(tensor.offset)) is not None:
            here = replace(at, name=name)
        if here is None:
            yield f"tensor '{name}' is not in the tar"
        elif keys := _differing(here, tensor):
            yield f"tensor '{name}' differs from the index in {', '.join(keys)}"
        elif not name.endswith("_boxes") and not _finite(stream, tensor):
            yield f"tensor '{name}' holds NaN or infinite values"
    yield from _members(stream, found, expected)
    yield from _shapes(expected)


def _members(stream: IO[bytes], found: Found | None, expected: Expected) -> Iterator[str]:
    there = {member.ext: member for member in found.members} if found else {}
    for ext, member in expected.members.items():
        here = there.get(ext)
        if here is None or ((keys := _differing(here, member)) and keys != ["sha256"]):
            yield f"member '.{ext}' is not where the index says"
        elif keys:
            yield f"member '.{ext}' differs from the index in sha256"
        elif member.length > MAX_MEMBER:
            yield f"member '.{ext}' has {member.length} bytes"
        elif ext in ("json", "txt"):
            yield from _text(stream, member, expected.sample_id)


def _differing(here: TensorEntry | MemberEntry, there: TensorEntry | MemberEntry) -> list[str]:
    """In what an entry of the index differs from what the tar holds; digests that either lacks are not compared."""
    names = [item.name for item in fields(there)]
    lacking = {
        name for name in names if name in ("sha256", "xxh3") and not (getattr(here, name) and getattr(there, name))
    }
    return [name for name in names if name not in lacking and getattr(here, name) != getattr(there, name)]


def _is_text(name: object) -> bool:
    """Captions are stored once for all samples that share them, in tars of their own."""
    return str(name).startswith("text.")


def _text(stream: IO[bytes], member: MemberEntry, sample: str) -> Iterator[str]:
    stream.seek(member.offset)
    try:
        text = stream.read(member.length).decode("utf-8")
        if member.ext == "json" and json.loads(text).get("sample_id") != sample:
            yield "its .json is about another sample"
    except (ValueError, AttributeError, RecursionError):
        yield f"its .{member.ext} cannot be read"


def _shapes(expected: Expected) -> Iterator[str]:
    frames, height, width = expected.size
    if frames is None or height is None or width is None:
        yield "its size is missing in the index"
        return
    t, h, w = 1 + (frames - 1) // 4, height // 8, width // 8
    want = {"latents": (t, h, w), "cond_i2v": (t - 1, h, w), "cond_flf2v_last": (1, h, w), "cond_lip": (t, h, w),
            "cond_avatar": (t, h, w)}  # fmt: skip
    for name, shape in want.items():
        tensor = expected.tensors.get(name)
        if tensor is not None and tensor.shape[1:] != shape:
            yield f"tensor '{name}' is {list(tensor.shape)}, but its bucket {expected.bucket} wants {[16, *shape]}"


def _finite(stream: IO[bytes], tensor: TensorEntry) -> bool:
    stream.seek(tensor.offset)
    data = stream.read(tensor.length)
    if tensor.dtype == "BF16":
        return bool(((np.frombuffer(data, "<u2") & 0x7F80) != 0x7F80).all())  # an exponent of ones: NaN or infinite
    if kind := {"F16": "<f2", "F32": "<f4", "F64": "<f8"}.get(tensor.dtype):
        return bool(np.isfinite(np.frombuffer(data, kind)).all())
    return True


def _splits(rows: pa.Table, report: VerifyReport) -> None:
    seen: dict[str, str] = {}
    for sample, video, split in zip(*(rows[n].to_pylist() for n in ("sample_id", "video_id", "split")), strict=True):
        if seen.setdefault(video, split) != split:
            report.problems.append(
                Problem("index", sample, f"video {video} is in the splits {seen[video]} and {split}")
            )
