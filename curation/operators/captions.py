"""Captions of a clip: sidecar files, a manifest's column, a vision-language model, or a plain template.

Each caption is {text, kind, source}: kind is ``overall`` or a part of the field's schema (hands, posture, face …),
source says who wrote it (``sidecar:name``, ``manifest``, ``vlm:model``, ``template``), so nothing made up passes for
something observed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from configs.errors import EchoForgeError, MissingWeights
from configs.runtime.devices import usable
from curation import sidecars
from curation.config import CaptionsConfig
from curation.media.container import utf8
from curation.operators.base import ClipContext, FrameNeed, Picture, Span

PARTS = ("hands", "posture", "face", "eyes", "head", "coverage", "clothing", "background", "overall")
"""What the field's captions say of a talking person; ``overall`` is the one that trains by default."""

PROMPT = (
    "These pictures are frames of one short video of a person talking, in order. Answer with one JSON object and "
    "nothing else, with exactly these keys, each a plain English sentence about what can be seen: "
    '"hands" (visible or not, gestures), "posture", "face" (expression and how it changes), "eyes" (gaze, blinks), '
    '"head" (movement), "coverage" (close-up, head and shoulders, half body, full body), "clothing", "background", '
    '"overall" (two sentences that describe the whole video). Do not guess who the person is.'
)

Caption = dict[str, str]


CAPTION_BYTES = 16 << 10
"""Of one caption: the text encoder reads 512 tokens, 3 kB of English; more is a transcript."""
CAPTIONS_BYTES = 64 << 10
"""Of all captions of a video: every clip has them in its row."""
CAPTIONS = 64
"""Captions of a video: every part of :data:`PARTS` in several wordings."""


def sidecar(uri: str, cfg: CaptionsConfig, root: str | None = None) -> list[Caption]:
    """Captions beside a local video: ``NAME.txt`` (paragraphs: several lengths), ``NAME.json``, or a row of
    ``captions.csv`` / ``captions.parquet`` in its folder (columns ``file`` and ``cfg.column``). None found: [].

    Args:
        root: real path of the folder that they must lie in (`sidecars.root_of`); None: anywhere.

    Raises:
        EchoForgeError: a sidecar that is there but cannot be read, or holds more than a caption may.
    """
    path = Path(uri)
    if "://" in uri or not path.name:
        return []
    for suffix, reader in ((".txt", _text), (".json", _json)):
        file = path.with_suffix(suffix)
        with _named(file):
            if file != path and (data := _read(file, root)) is not None:
                return _limited(reader(data, file), file)
    for name in ("captions.csv", "captions.parquet"):
        table = path.parent / name
        with _named(table):
            if (real := sidecars.find(table, root, sidecars.TABLE_BYTES)) is not None:
                text = _table(str(real), real.stat().st_mtime_ns, cfg.column).get(path.name)
                if text:
                    return _limited([_caption(text, f"sidecar:{name}")], table)
    return []


def facts(uri: str, root: str | None = None) -> dict[str, str]:
    """Speaker, licence and collection from ``NAME.json``, where there is one that can be read.

    Raises:
        EchoForgeError: one of them is no short text.
    """
    file = Path(uri).with_suffix(".json") if Path(uri).name else Path(uri)
    if "://" in uri or file == Path(uri):
        return {}
    try:
        data = _parsed(_read(file, root) or b"{}", file)
    except (EchoForgeError, OSError):
        return {}  # `sidecar` reports it
    said = {key: data.get(key) for key in ("speaker", "licence", "source")} if isinstance(data, dict) else {}
    return {
        key: sidecars.checked(str(value), sidecars.FACT_BYTES, f"the {key} in {file.name}")
        for key, value in said.items()
        if value
    }


def _read(file: Path, root: str | None) -> bytes | None:
    """A sidecar's bytes; None where there is none, or a video that was named so by mistake."""
    real = sidecars.find(file, root)
    if real is None:
        return None
    data = sidecars.read(real)
    # UTF-16 has zero bytes and is text, too: its reader says what to do
    if b"\0" not in data[:4096] or data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data
    if is_media(data[:12]):
        return None
    raise EchoForgeError(
        f"the caption file {file.name} is not text (it has zero bytes); save it as UTF-8 or remove it."
    )


def is_media(head: bytes) -> bool:
    """Are these the first 12 bytes of a video container?"""
    return head[4:8] == b"ftyp" or (head[:4] in (b"\x1aE\xdf\xa3", b"RIFF") and head[8:12] not in (b"WAVE", b"WEBP"))


class Beside:
    """What lies beside local videos, so that a changed sidecar is noticed. A folder is listed once."""

    def __init__(self, cfg: CaptionsConfig, follow_links: bool = False) -> None:
        self._cfg, self._follow = cfg, follow_links
        self._folders: dict[tuple[str, str], dict[str, str]] = {}
        self._tables: dict[tuple[str, str], Path | None] = {}

    def tag(self, uri: str, root: str = "") -> str:
        """Changes when the sidecars of this video do; empty where there are none.

        Args:
            root: folder of sources that it was found in; empty: its own.
        """
        folder, name = os.path.split(uri)
        place = folder, root
        if place not in self._folders:
            real = sidecars.root_of(uri, root, self._follow)
            self._folders[place] = self._listed(folder or ".", real)
            self._tables[place] = self._table_of(folder, real)
        files, stem = self._folders[place], PurePosixPath(name).stem
        found = [files.get(stem + suffix, "") for suffix in (".txt", ".json") if stem + suffix != name]
        told = self._told(self._tables[place], name)
        return "\0".join((*found, told)) if told or any(found) else ""

    @staticmethod
    def same_but_time(a: str, b: str) -> bool:
        """Whether two tags differ in nothing but the times of the files."""
        first, second = ([*(mark.partition(":")[0] for mark in parts[:-1]), parts[-1]]
                         for parts in (a.split("\0"), b.split("\0")))  # fmt: skip
        return first == second

    @staticmethod
    def _listed(folder: str, root: str | None) -> dict[str, str]:
        outside = not sidecars.within(os.path.join(folder, "_"), root)  # noqa: PTH118 - a million of these
        found = {}
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith((".txt", ".json")) and entry.is_file():
                        stat = entry.stat()
                        refused = outside or (entry.is_symlink() and not sidecars.within(entry.path, root))
                        found[utf8(entry.name)] = f"{stat.st_size}:{stat.st_mtime_ns}{':refused' if refused else ''}"
        except (OSError, ValueError):  # the analysis says what is wrong
            return {}
        return found

    @staticmethod
    def _table_of(folder: str, root: str | None) -> Path | None:
        for name in ("captions.csv", "captions.parquet"):
            try:
                if (real := sidecars.find(Path(folder, name), root, sidecars.TABLE_BYTES)) is not None:
                    return real
            except EchoForgeError:  # the same
                return None
        return None

    def _told(self, table: Path | None, name: str) -> str:
        """Not kept: tables of many folders would add up."""
        if table is None:
            return ""
        try:
            return _table(str(table), table.stat().st_mtime_ns, self._cfg.column).get(name, "")
        except (OSError, ValueError, pa.ArrowException, EchoForgeError):  # the same
            return ""


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """What goes wrong with a sidecar is said of the sidecar."""
    try:
        yield
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"the caption file {file.name} cannot be read ({type(error).__name__}: {first}); mend or remove it."
        raise EchoForgeError(message) from error


def given(text: str | None) -> list[Caption]:
    """The caption that a manifest gave, if any."""
    return [_caption(text, "manifest")] if text and text.strip() else []


def _limited(found: list[Caption], file: Path) -> list[Caption]:
    """``found``, if rows can hold it.

    Raises:
        EchoForgeError: too many, too long, or no text.
    """
    if len(found) > CAPTIONS:
        raise EchoForgeError(f"{file.name} has {len(found)} captions, and at most {CAPTIONS} are taken; remove some.")
    for caption in found:
        sidecars.checked(caption["text"], CAPTION_BYTES, f"a caption in {file.name}")
    sidecars.checked("".join(c["text"] for c in found), CAPTIONS_BYTES, f"the text of all captions in {file.name}")
    return found


def template(row: Mapping[str, Any]) -> list[Caption]:
    """Says only what was measured: one person, how much of the picture the face fills, whether it speaks."""
    faces = row.get("n_faces") or 0
    size = (row.get("face_px") or 0) / max(1, min(row.get("width") or 1, row.get("height") or 1))
    who = "A person" if faces == 1 else f"{faces} people" if faces else "A scene without a visible face"
    frame = "in close-up" if size > 0.45 else "from the chest up" if size > 0.2 else "at a distance"
    speaks = (row.get("speech_frac") or 0) > 0.2
    text = f"{who} {frame}, {'talking' if speaks else 'not talking'}." if faces else f"{who}."
    return [_caption(text, "template")]


class VisionCaptioner:
    """A vision-language model through `transformers` (any image-text-to-text model with a chat template)."""

    def __init__(self, cfg: CaptionsConfig) -> None:
        """Loads the model once per worker.

        Raises:
            MissingWeights: no model is configured, or it is not on this machine.
        """
        if not cfg.model:
            raise MissingWeights("captions.kind is vlm but captions.model names none; give a local folder or hub id.")
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._cfg = cfg
        usable(cfg.device, "captions.device")
        try:
            self._processor: Any = AutoProcessor.from_pretrained(cfg.model, trust_remote_code=False)
            dtype = torch.bfloat16 if cfg.device.startswith("cuda") else torch.float32
            model: Any = AutoModelForImageTextToText.from_pretrained(cfg.model, dtype=dtype, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise MissingWeights(
                f"the captioning model '{cfg.model}' could not be loaded ({error}); set captions.model to its folder."
            ) from error
        self._model: Any = model.to(cfg.device).eval()
        self._source = f"vlm:{Path(cfg.model).name if Path(cfg.model).is_dir() else cfg.model}"

    def describe(self, frames: np.ndarray) -> list[Caption]:
        """Captions of uint8 [F, H, W, 3] RGB: one per part that the model answered."""
        import torch
        from PIL import Image

        picks = np.linspace(0, len(frames) - 1, min(self._cfg.frames, len(frames))).round().astype(int)
        images = [Image.fromarray(frames[i]) for i in picks]
        content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": PROMPT}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._model.device)
        with torch.inference_mode():
            out = self._model.generate(**inputs, max_new_tokens=self._cfg.max_tokens, do_sample=False)
        answer = self._processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        return parse_answer(answer, self._source)

    def operator(self) -> CaptionOperator:
        """What watches one video for this model."""
        return CaptionOperator(self._cfg, self)


class CaptionOperator:
    """Keeps a few pictures a second and shows those of a clip with a face to the model. Serves one video."""

    name = "captions"
    version = 1
    columns: tuple[str, ...] = ("captions",)

    def __init__(self, cfg: CaptionsConfig, model: VisionCaptioner) -> None:
        self.needs = FrameNeed(rate=cfg.rate, side=cfg.side)
        self._model = model
        self._kept: list[tuple[int, np.ndarray]] = []

    def frame(self, picture: Picture) -> None:
        """See one picture, uint8 [h, w, 3] RGB."""
        self._kept.append((picture.index, picture.image))

    def clip(self, span: Span, context: ClipContext) -> dict[str, Any]:
        """The model's captions; none for a clip without a face, which is never kept."""
        seen = [image for index, image in self._kept if span.start <= index < span.end]
        return {"captions": self._model.describe(np.stack(seen)) if seen and context.tracks else []}

    def forget(self, before: int) -> None:
        """See :class:`curation.operators.base.FrameOperator`."""
        self._kept = [k for k in self._kept if k[0] >= before]


def parse_answer(answer: str, source: str) -> list[Caption]:
    """A model's answer → captions; prose around the JSON is dropped, prose without JSON becomes ``overall``."""
    begin, end = answer.find("{"), answer.rfind("}")
    try:
        data = json.loads(answer[begin : end + 1]) if 0 <= begin < end else None
    except json.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        return [_caption(answer, source)] if answer.strip() else []
    return [_caption(str(data[part]), source, part) for part in reversed(PARTS) if str(data.get(part) or "").strip()]


def written(uri: str, cfg: CaptionsConfig, manifest: str | None = None, root: str | None = None) -> list[Caption]:
    """What people wrote of a video: its sidecar's captions (see :func:`sidecar`), else the manifest's; none: []."""
    return sidecar(uri, cfg, root) or given(manifest)


def captions(row: Mapping[str, Any], said: list[Caption], cfg: CaptionsConfig) -> list[Caption]:
    """Captions of one clip: those ``said`` of its video (:func:`written`), else the model's in ``row``, else a template's."""
    return said or list(row.get("captions") or []) or (template(row) if cfg.kind == "template" else [])


def _decoded(data: bytes, file: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EchoForgeError(f"the caption {file.name} is not UTF-8 text; save it again as UTF-8.") from error


def _parsed(data: bytes, file: Path) -> Any:
    text = _decoded(data, file)
    try:
        return json.loads(text)
    except ValueError as error:
        raise EchoForgeError(f"the caption {file.name} is not valid JSON ({error}); mend or remove it.") from error
    except RecursionError as error:
        raise EchoForgeError(f"the caption {file.name} is JSON nested too deeply; mend or remove it.") from error


def _text(data: bytes, file: Path) -> list[Caption]:
    return [_caption(p, f"sidecar:{file.name}") for p in _decoded(data, file).split("\n\n") if p.strip()]


def _json(data: bytes, file: Path) -> list[Caption]:
    found, source = _parsed(data, file), f"sidecar:{file.name}"
    if isinstance(found, str):
        return [_caption(found, source)]
    if isinstance(found, dict):
        nested = found.get("captions")
        if isinstance(nested, list):
            return [_caption(_said(c), source) for c in nested]
        named = [_caption(found[k], source, k) for k in PARTS if isinstance(found.get(k), str)]
        plain = [_caption(found[k], source) for k in ("caption", "text", "prompt") if isinstance(found.get(k), str)]
        return plain + named
    return []


def _said(caption: Any) -> str:
    text = caption["text"] if isinstance(caption, dict) else caption
    if not isinstance(text, str):
        raise TypeError(f"a caption is {type(text).__name__}, not text")
    return text


@lru_cache(maxsize=4)  # folders come in order; a table may be large
def _table(file: str, mtime: int, column: str) -> dict[str, str]:
    del mtime  # part of the key: a changed file is read again
    found: dict[str, str] = {}
    size = 0
    for batch in _batches(file, column):
        for name, text in zip(batch[0].to_pylist(), batch[1].to_pylist(), strict=True):
            if text is not None and name is not None and (text := str(text)):
                found[Path(str(name)).name] = text
                size += len(text)
                if size > sidecars.TABLE_BYTES:  # a few bytes of Parquet can say a text a million times
                    raise ValueError(f"it holds more than {sidecars.TABLE_BYTES >> 20} MB of text")
    return found


def _batches(file: str, column: str) -> Iterator[pa.RecordBatch]:
    """Batches of two columns: the names of the files, and their captions."""
    names = ["file", column]
    if file.endswith(".csv"):
        types = pyarrow.csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.string()))
        try:
            yield from pyarrow.csv.read_csv(file, convert_options=types).to_batches(max_chunksize=1024)
        except KeyError as error:
            raise EchoForgeError(_without(file, column)) from error
        return
    with pq.ParquetFile(file, read_dictionary=[column]) as table:
        if not set(names) <= set(table.schema_arrow.names):
            raise EchoForgeError(_without(file, column))
        groups = (table.metadata.row_group(i) for i in range(table.num_row_groups))
        if sum(group.total_byte_size for group in groups) > sidecars.TABLE_BYTES:
            raise ValueError(f"it unpacks to more than {sidecars.TABLE_BYTES >> 20} MB")
        for batch in table.iter_batches(batch_size=1024, columns=names):
            yield batch.select(names)


def _without(file: str, column: str) -> str:
    return f"{Path(file).name} needs the columns 'file' and '{column}' (captions.column)."


def _caption(text: str, source: str, kind: str = "overall") -> Caption:
    return {"text": " ".join(text.split()), "kind": kind, "source": source}
