"""Captions of a clip: sidecar files, a manifest's column, a vision-language model, or a plain template.

Each caption is {text, kind, source}: kind is ``overall`` or a part of the field's schema (hands, posture, face …),
source says who wrote it (``sidecar:name``, ``manifest``, ``vlm:model``, ``template``), so nothing made up passes for
something observed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from configs.devices import usable
from configs.errors import EchoForgeError, MissingWeights
from curation.config import CaptionsConfig
from curation.media import utf8
from curation.operators import ClipContext, FrameNeed, Picture, Span

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


def sidecar(uri: str, cfg: CaptionsConfig) -> list[Caption]:
    """Captions beside a local video: ``NAME.txt`` (paragraphs: several lengths), ``NAME.json``, or a row of
    ``captions.csv`` / ``captions.parquet`` in its folder (columns ``file`` and ``cfg.column``). None found: [].

    Raises:
        EchoForgeError: a sidecar that is there but cannot be read.
    """
    path = Path(uri)
    if "://" in uri or not path.parent.is_dir():
        return []
    for suffix, reader in ((".txt", _text), (".json", _json)):
        file = path.with_suffix(suffix)
        with _named(file):
            if file != path and _is_file(file) and is_text(file):
                return reader(file)
    for name in ("captions.csv", "captions.parquet"):
        table = path.parent / name
        with _named(table):
            if _is_file(table) and (text := _table(str(table), table.stat().st_mtime_ns, cfg.column).get(path.name)):
                return [_caption(text, f"sidecar:{name}")]
    return []


class Beside:
    """What lies beside local videos, so that a changed sidecar is noticed. A folder is listed once."""

    def __init__(self, cfg: CaptionsConfig) -> None:
        self._cfg = cfg
        self._folders: dict[str, dict[str, str]] = {}
        self._tables: dict[str, dict[str, str]] = {}

    def tag(self, uri: str) -> str:
        """Changes when the sidecars of this video do; empty where there are none."""
        folder, name = os.path.split(uri)
        if folder not in self._folders:
            self._folders[folder] = self._listed(folder or ".")
            self._tables[folder] = self._captions(folder)
        files, stem = self._folders[folder], PurePosixPath(name).stem
        found = [files.get(stem + suffix, "") for suffix in (".txt", ".json") if stem + suffix != name]
        told = self._tables[folder].get(name, "")
        return "\0".join((*found, told)) if told or any(found) else ""

    @staticmethod
    def same_but_time(a: str, b: str) -> bool:
        """Whether two tags differ in nothing but the times of the files."""
        first, second = ([*(mark.partition(":")[0] for mark in parts[:-1]), parts[-1]]
                         for parts in (a.split("\0"), b.split("\0")))  # fmt: skip
        return first == second

    @staticmethod
    def _listed(folder: str) -> dict[str, str]:
        try:
            with os.scandir(folder) as entries:
                stats = {e.name: e.stat() for e in entries if e.name.endswith((".txt", ".json")) and e.is_file()}
        except OSError:  # the analysis says what is wrong
            return {}
        return {utf8(name): f"{s.st_size}:{s.st_mtime_ns}" for name, s in stats.items()}

    def _captions(self, folder: str) -> dict[str, str]:
        for name in ("captions.csv", "captions.parquet"):
            file = Path(folder, name)
            try:
                if file.is_file():
                    return _table(str(file), file.stat().st_mtime_ns, self._cfg.column)
            except (OSError, pa.ArrowException, EchoForgeError):  # the same
                return {"": ""}
        return {}


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """What goes wrong with a sidecar is said of the sidecar."""
    try:
        yield
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"the caption file {file.name} cannot be read ({type(error).__name__}: {first}); mend or remove it."
        raise EchoForgeError(message) from error


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name too long for another suffix
        return False


def is_text(file: Path) -> bool:
    """No zero byte near the start: a video that was named ``.txt`` by mistake is no caption. UTF-16 is text, too."""
    with file.open("rb") as stream:
        head = stream.read(4096)
    return b"\0" not in head or head[:2] in (b"\xff\xfe", b"\xfe\xff")


def given(text: str | None) -> list[Caption]:
    """The caption that a manifest gave, if any."""
    return [_caption(text, "manifest")] if text and text.strip() else []


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
        """See :class:`curation.operators.FrameOperator`."""
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


def written(uri: str, cfg: CaptionsConfig, manifest: str | None = None) -> list[Caption]:
    """What people wrote of a video: its sidecar's captions, else the manifest's; none: []."""
    return sidecar(uri, cfg) or given(manifest)


def captions(row: Mapping[str, Any], said: list[Caption], cfg: CaptionsConfig) -> list[Caption]:
    """Captions of one clip: those ``said`` of its video (:func:`written`), else the model's in ``row``, else a template's."""
    return said or list(row.get("captions") or []) or (template(row) if cfg.kind == "template" else [])


def _text(file: Path) -> list[Caption]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EchoForgeError(f"the caption {file} is not UTF-8 text; save it again as UTF-8.") from error
    return [_caption(p, f"sidecar:{file.name}") for p in text.split("\n\n") if p.strip()]


def _json(file: Path) -> list[Caption]:
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise EchoForgeError(f"the caption {file} is not valid JSON ({error}); mend or remove it.") from error
    source = f"sidecar:{file.name}"
    if isinstance(data, str):
        return [_caption(data, source)]
    if isinstance(data, dict):
        nested = data.get("captions")
        if isinstance(nested, Sequence) and not isinstance(nested, str):
            return [_caption(str(c["text"] if isinstance(c, dict) else c), source) for c in nested]
        named = [_caption(str(data[k]), source, k) for k in PARTS if isinstance(data.get(k), str)]
        plain = [_caption(str(data[k]), source) for k in ("caption", "text", "prompt") if isinstance(data.get(k), str)]
        return plain + named
    return []


@lru_cache(maxsize=16)
def _table(file: str, mtime: int, column: str) -> dict[str, str]:
    del mtime  # part of the key: a changed file is read again
    table = pyarrow.csv.read_csv(file) if file.endswith(".csv") else pq.read_table(file)
    if "file" not in table.column_names or column not in table.column_names:
        raise EchoForgeError(f"{file} needs the columns 'file' and '{column}' (captions.column).")
    return {
        Path(str(f)).name: str(t)
        for f, t in zip(table["file"].to_pylist(), table[column].to_pylist(), strict=True)
        if t
    }


def _caption(text: str, source: str, kind: str = "overall") -> Caption:
    return {"text": " ".join(text.split()), "kind": kind, "source": source}
