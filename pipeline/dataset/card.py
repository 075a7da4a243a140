"""The dataset card: what a stranger must know before using a dataset, with figures and not adjectives."""

from __future__ import annotations

import io
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from configs.dataset_description import Curation, Description, EncoderName
from configs.runtime.shown import one_line
from curation.schema import FPS
from pipeline.dataset.files import read_member
from pipeline.dataset.index import members_of
from pipeline.dataset.stats import Histogram, Totals

if TYPE_CHECKING:
    from PIL import Image

SHEET_FILE = "samples.jpg"
MOST_PIXELS = 2**25
"""Of a first frame; a real one has the size of its bucket, at most 0.6 million."""
_BARS = " ▁▂▃▄▅▆▇█"


def curation(clips: pa.Table, videos: pa.Table, used: set[str]) -> Curation:
    """What the card says of the catalog; it travels in `dataset.json`, so that adding a field, merging and splitting
    keep it.

    Args:
        used: ids of the videos that the dataset has samples of.
    """
    columns = (clips[name].to_pylist() for name in ("verdict", "reasons", "start_frame", "end_frame"))
    verdicts: defaultdict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for verdict, reasons, start, end in zip(*columns, strict=True):
        rule = str((reasons or ["no reason"])[0]).split(":")[0]
        label = str(verdict) if verdict == "keep" else f"{verdict}: {rule}"
        count, hours = verdicts[label]
        verdicts[label] = count + 1, hours + ((end or 0) - (start or 0)) / FPS / 3600
    ids, sources, licences = (videos[name].to_pylist() for name in ("video_id", "source", "licence"))
    origins = {
        video: (source or "unknown", licence or "unknown")
        for video, source, licence in zip(ids, sources, licences, strict=True)
        if video in used
    }
    return Curation(_most_first(verdicts), origins)


def together(parts: Sequence[Curation | None]) -> Curation:
    """:func:`curation` of several datasets in one; a catalog that two of them come from counts once."""
    verdicts: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0, 0.0))
    origins: dict[str, tuple[str, str]] = {}
    for number, part in enumerate(parts):
        if part is None or part in parts[:number]:
            continue
        for label, (count, hours) in part.verdicts.items():
            verdicts[label] = verdicts[label][0] + count, verdicts[label][1] + hours
        origins |= part.origins
    return Curation(_most_first(verdicts), origins)


def _most_first(verdicts: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    return dict(sorted(verdicts.items(), key=lambda item: -item[1][0]))


def dataset_card(table: pa.Table, description: Description, totals: Totals, made_by: str) -> str:
    """Markdown with the front matter that the hub reads.

    Args:
        table: the index. made_by: version of the program.
    """
    curated = description.curation or Curation()
    parts = [
        "---\ntask_categories: [text-to-video, image-to-video]\ntags: [webdataset, talking-human, echomimicv3]\n---",
        "# Talking-human training shards",
        f"{totals.samples} samples, {totals.hours:.2f} h, from {totals.videos} videos; {totals.tars} tars, "
        f"{totals.bytes / 1e9:.3f} GB. Made by EchoForge {_text(made_by)}.",
        _encoders(description.encoders or {}),
        _reading(),
        "## Samples\n\n" + _table(("split", "samples"), totals.samples_by_split.items())
        + "\n\n" + _table(("bucket (width x height x frames)", "samples"), totals.samples_by_bucket.items()),
        _storage(totals),
        _rejections(curated.verdicts),
        _licences(table, curated.origins),
        _scores(totals.scores),
        _examples(table),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _encoders(encoders: Mapping[str, EncoderName]) -> str:
    rows = [(kind, item.name, _code(item.digest)) for kind, item in encoders.items()]
    text = "## What made the tensors\n\n" + _table(("", "network", "digest"), rows)
    if any("stand-in" in item.name for item in encoders.values()):
        text += (
            "\n\n**Some of these are stand-ins without weights: good for trying the toolkit, not for a real model.**"
        )
    return text


def _reading() -> str:
    return (
        "## Reading\n\n"
        "Every tar is a plain WebDataset: `<sample_id>.safetensors .json .txt .jpg .flac` (and `.mp4` "
        "when asked for). `index.parquet` has one row per sample with the place, type, shape and sha256 of every tensor. "
        "Caption embeddings lie in `texts/*.tar`, each once, under the `text_keys` of a sample's `.json`. "
        "There is no pickle anywhere. Splits are by source video, and by speaker where known."
    )


def _storage(totals: Totals) -> str:
    samples = max(totals.samples, 1)
    rows = [
        (_code(name), f"{size / 1e6:.3f}", f"{size / samples / 1e3:.1f}")
        for name, size in totals.bytes_by_field.items()
    ]
    return (
        "## Bytes\n\n" + _table(("field", "MB", "kB per sample"), rows)
        + f"\n\nAt this rate 1,500 h take {totals.terabytes_per_1500_hours:.3f} TB. "
        "The I2V condition is stored without "
        "its first latent (the codec is causal, so it is the video's), FLF2V as its last latent only, T2V not at all; "
        "each caption once, at its true length; masks as bits on the 16-pixel grid. Latents are bf16 as they are: split into byte "
        "planes, zstd would take a third off (0.68 of the bytes of normal noise), but then nobody could read a tensor at "
        "its offset, and a core decodes 2 GB/s, as much as the disk gives."
    )  # fmt: skip


def _rejections(verdicts: Mapping[str, tuple[float, float]]) -> str:
    rows = [(label, int(count), f"{hours:.3f}") for label, (count, hours) in verdicts.items()]
    return "## What curation kept and why not\n\n" + _table(("verdict: first reason", "clips", "hours"), rows)


def _licences(table: pa.Table, origins: Mapping[str, tuple[str, str]]) -> str:
    hours: defaultdict[tuple[str, str], float] = defaultdict(float)
    for video, frames in zip(table["video_id"].to_pylist(), table["F"].to_pylist(), strict=True):
        source, licence = origins.get(video, ("unknown", "unknown"))
        hours[source, licence] += frames / FPS / 3600
    rows = [(source, licence, f"{h:.3f}") for (source, licence), h in sorted(hours.items())]
    return "## Licences by source\n\n" + _table(("source", "licence", "hours"), rows)


def _scores(scores: Mapping[str, Histogram]) -> str:
    rows: list[tuple[Any, ...]] = []
    for name, item in scores.items():
        if item.counts:
            top = max(item.counts)
            bars = "".join(_BARS[-(-8 * c // top)] for c in item.counts)
            rows.append((name, item.measured, f"{item.min:.3g}", f"{item.median:.3g}", f"{item.max:.3g}", _code(bars)))
        else:
            rows.append((name, 0, "", "", "", "not measured"))
    return "## Scores\n\n" + _table(("score", "samples", "min", "median", "max", "min … max"), rows)


def _examples(table: pa.Table) -> str:
    names = ("sample_id", "bucket", "split", "tier", "n_captions")
    rows = list(zip(*(table.slice(0, 5)[name].to_pylist() for name in names), strict=True))
    return (
        f"## Examples\n\n![first frames of samples, drawn at random]({SHEET_FILE})\n\n"
        + _table(names, rows)
        + "\n\n`shards inspect ID` shows one as a video and a picture."
    )


def contact_sheet(dataset: str, table: pa.Table) -> bytes:
    """First frames of up to 24 samples, every n-th by id (ids are hashes, so drawn at random), as one JPEG."""
    from PIL import Image

    rows = table.take(np.unique(np.linspace(0, table.num_rows - 1, 24).astype(int)))
    places = [member for _, members in members_of(rows) for member in members if member.ext == "jpg"]
    side, columns = 160, 8
    sheet = Image.new("RGB", (columns * side, -(-max(len(places), 1) // columns) * side), "white")
    for number, place in enumerate(places):
        if (picture := _thumbnail(read_member(dataset, place), side - 4)) is None:
            continue
        corner = (
            number % columns * side + (side - picture.width) // 2,
            number // columns * side + (side - picture.height) // 2,
        )
        sheet.paste(picture, corner)
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _thumbnail(data: bytes, side: int) -> Image.Image | None:
    """A JPEG, made to fit a square. None: it is damaged or huge, and leaves its place white; `shards verify` names it."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=["JPEG"])
        if picture.width * picture.height > MOST_PIXELS:
            return None
        picture.thumbnail((side, side))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError):
        return None
    return picture


def _table(head: tuple[str, ...], rows: Any) -> str:
    """A table of Markdown; cells are text, unless they are `Markup`."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(_text, row)) + " |" for row in rows])


def _text(value: object) -> str:
    """Text as Markdown that shows it: names of sources and licences are other people's, and no HTML, link or cell."""
    return str(value) if isinstance(value, Markup) else re.sub(r"([\\`*<>\[\]|&])", r"\\\1", one_line(value))


def _code(value: object) -> Markup:
    """Text in the letters of code. A backtick in it would end it."""
    return Markup("`" + one_line(value).replace("`", "'").replace("|", "\\|") + "`")
