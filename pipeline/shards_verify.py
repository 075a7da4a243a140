"""Checks a dataset byte by byte and names what is wrong. Nothing in a tar is executed, followed or unpacked."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa

from configs import stopping
from configs.errors import EchoForgeError
from pipeline import store
from pipeline.index_writer import scan
from pipeline.shards_stats import read_index

MAX_MEMBER = 2**32
"""Bytes of one member; a real one has tens of megabytes."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. ``sample_id`` is empty when it concerns a whole tar."""

    tar: str
    sample_id: str
    what: str

    def __str__(self) -> str:
        return f"{self.tar}: {f'sample {self.sample_id}: ' if self.sample_id else ''}{self.what}"


@dataclass
class VerifyReport:
    """The outcome of :func:`verify`."""

    dataset: str
    tars: int = 0
    samples: int = 0
    tensors: int = 0
    problems: list[Problem] = field(default_factory=list)

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
        return "\n".join(
            [head + ("all right" if self.ok else f"{len(self.problems)} problems"), *map(str, self.problems)]
        )


def verify(dataset: str) -> VerifyReport:
    """Compare every tar with the index: members, digests, shapes, finite values, JSON and text, splits.

    Raises:
        EchoForgeError: there is no index.
    """
    rows = read_index(dataset)
    report = VerifyReport(dataset, samples=rows.num_rows)
    wanted = _by_tar(rows, report)
    report.tars = len(wanted)
    for tar, samples in sorted(wanted.items()):
        stopping.check()
        try:
            with store.local_copy(store.join(dataset, tar)) as path:
                if not path.exists() and not path.is_symlink():
                    raise FileNotFoundError(tar)
                if path.is_symlink() or not path.is_file():
                    raise EchoForgeError("it is not a regular file")
                with path.open("rb") as stream:
                    found = scan(stream, tar)
                    shared = {t["offset"]: t for one in found.values() for t in one["tensors"]}
                    for sample, expected in samples.items():
                        for what in _sample(stream, found.get(sample), shared, expected, report):
                            report.problems.append(Problem(tar, sample, what))
        except FileNotFoundError:
            report.problems += [Problem(tar, sample, "the tar is missing") for sample in samples]
        except EchoForgeError as error:
            report.problems += [Problem(tar, sample, str(error)) for sample in samples]
    _splits(rows, report)
    return report


def _by_tar(rows: pa.Table, report: VerifyReport) -> dict[str, dict[str, dict[str, Any]]]:
    wanted: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in rows.to_pylist():
        for kind in ("tensors", "members"):
            for item in row[kind]:
                if item["tar"].startswith("/") or ".." in item["tar"].split("/") or "://" in item["tar"]:
                    report.problems.append(Problem(item["tar"], row["sample_id"], "the tar lies outside the dataset"))
                    continue
                entry = wanted[item["tar"]].setdefault(row["sample_id"], {"tensors": {}, "members": {}, "row": row})
                entry[kind][item["name" if kind == "tensors" else "ext"]] = item
    return wanted


def _sample(
    stream: IO[bytes],
    found: dict[str, Any] | None,
    shared: dict[int, dict[str, Any]],
    expected: dict[str, Any],
    report: VerifyReport,
) -> Iterator[str]:
    """``found``: what the tar holds under the sample's id; ``shared``: all its tensors by place (texts have other ids)."""
    borrowed = found is None and not expected["members"] and all(_is_text(name) for name in expected["tensors"])
    if found is None and not borrowed:
        yield "it is not in the tar"
        return
    tensors = {item["name"]: item for item in found["tensors"]} if found else {}
    for name, item in expected["tensors"].items():
        report.tensors += 1
        here = tensors.get(name)
        if borrowed and (there := shared.get(item["offset"])) is not None:
            here = there | {"name": name}
        if here is None:
            yield f"tensor '{name}' is not in the tar"
        elif here != item:
            keys = [key for key in item if here[key] != item[key]]
            yield f"tensor '{name}' differs from the index in {', '.join(keys)}"
        elif not name.endswith("_boxes") and not _finite(stream, item):
            yield f"tensor '{name}' holds NaN or infinite values"
    members = {item["ext"]: item for item in found["members"]} if found else {}
    for ext, item in expected["members"].items():
        if members.get(ext) != item:
            yield f"member '.{ext}' is not where the index says"
        elif item["length"] > MAX_MEMBER:
            yield f"member '.{ext}' has {item['length']} bytes"
        elif ext in ("json", "txt"):
            yield from _text(stream, ext, item, expected["row"]["sample_id"])
    yield from _shapes(expected)


def _is_text(name: str) -> bool:
    """Captions are stored once for all samples that share them, in tars of their own."""
    return name.startswith("text.")


def _text(stream: IO[bytes], ext: str, item: dict[str, Any], sample: str) -> Iterator[str]:
    stream.seek(item["offset"])
    try:
        text = stream.read(item["length"]).decode("utf-8")
        if ext == "json" and json.loads(text).get("sample_id") != sample:
            yield "its .json is about another sample"
    except (ValueError, AttributeError, RecursionError):
        yield f"its .{ext} cannot be read"


def _shapes(expected: dict[str, Any]) -> Iterator[str]:
    row = expected["row"]
    t, h, w = 1 + (row["F"] - 1) // 4, row["H"] // 8, row["W"] // 8
    want = {"latents": (t, h, w), "cond_i2v": (t - 1, h, w), "cond_flf2v_last": (1, h, w), "cond_lip": (t, h, w),
            "cond_avatar": (t, h, w)}  # fmt: skip
    for name, shape in want.items():
        item = expected["tensors"].get(name)
        if item is not None and tuple(item["shape"][1:]) != shape:
            yield f"tensor '{name}' is {item['shape']}, but its bucket {row['bucket']} wants {[16, *shape]}"


def _finite(stream: IO[bytes], item: dict[str, Any]) -> bool:
    stream.seek(item["offset"])
    data = stream.read(item["length"])
    if item["dtype"] == "BF16":
        return bool(((np.frombuffer(data, "<u2") & 0x7F80) != 0x7F80).all())  # an exponent of ones: NaN or infinite
    if item["dtype"] in ("F16", "F32", "F64"):
        return bool(np.isfinite(np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[item["dtype"]])).all())
    return True


def _splits(rows: pa.Table, report: VerifyReport) -> None:
    seen: dict[str, str] = {}
    for sample, video, split in zip(*(rows[n].to_pylist() for n in ("sample_id", "video_id", "split")), strict=True):
        if seen.setdefault(video, split) != split:
            report.problems.append(
                Problem("index", sample, f"video {video} is in the splits {seen[video]} and {split}")
            )
