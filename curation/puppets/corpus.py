"""The corpus: every puppet video is a pure function of (seed, index, configuration), so workers may share the work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs.errors import EchoForgeError
from configs.runtime import disk, stopping
from curation.config import PuppetsConfig
from curation.media.clip_writer import write_video
from curation.puppets import faults as bad
from curation.puppets import identity as who
from curation.puppets.draw import Rendered, backdrop_picture, render
from curation.puppets.voice import Speech, speak
from curation.schema import FPS

_BOXES = pa.list_(pa.list_(pa.float32(), 4))
MANIFEST = pa.schema(
    [
        ("name", pa.string()),
        ("file", pa.string()),
        ("fault", pa.string()),  # null: none
        ("expected_verdict", pa.string()),  # keep | fixable | reject | uncertain
        ("expected_reasons", pa.list_(pa.string())),
        ("speaker", pa.string()),
        ("index", pa.int32()),
        ("frames", pa.int32()),
        ("size", pa.int32()),
        ("audio_shift_ms", pa.int32()),  # > 0: the sound is late
        ("duplicate_of", pa.string()),
        ("caption", pa.string()),
        ("identity", pa.string()),  # JSON
        ("mouth_px", pa.list_(pa.float32())),  # gap between the lips per frame, pixels
        ("face_boxes", _BOXES),
        ("mouth_boxes", _BOXES),
    ]
)
NAME = "manifest.parquet"


@dataclass(frozen=True, eq=False)
class PuppetFile:
    """A row of the manifest (schema :data:`MANIFEST`): a video file, and what is true of it."""

    name: str
    file: str
    fault: str | None
    expected_verdict: str
    expected_reasons: Sequence[str]
    speaker: str
    index: int
    frames: int
    size: int
    audio_shift_ms: int
    duplicate_of: str | None
    caption: str
    identity: str  # JSON
    mouth_px: np.ndarray  # float32 [F]
    face_boxes: np.ndarray  # float32 [F, 4]
    mouth_boxes: np.ndarray  # float32 [F, 4]


@dataclass(frozen=True)
class Puppet:
    """One video in memory: ``frames`` uint8 [F, S, S, 3] and ``pcm`` float32 [F · 640], with what is true of it."""

    frames: np.ndarray
    pcm: np.ndarray
    truth: Rendered
    identity: who.Identity
    backdrop: who.Backdrop
    audio_shift_ms: int


def sample(seed: int, index: int, cfg: PuppetsConfig, fault: str | None = None, frames: int | None = None) -> Puppet:
    """Render puppet number ``index`` of the corpus ``seed``, with ``fault`` (see `faults.FAULTS`) or without.

    The same (seed, index) is the same person before the same background whatever the fault. ``frames`` replaces the
    length drawn from the configuration.
    """
    person = np.random.default_rng([seed, index, 0])
    identity, backdrop = who.draw_identity(person), who.draw_backdrop(person)
    zoom = float(person.uniform(*cfg.zoom))
    rng = np.random.default_rng([seed, index, 1])
    length = frames or _length(cfg, rng)
    late = bad.shift_frames(fault, rng)
    speech = speak(identity.voice, length + abs(late), rng)
    pcm, seen = bad.shifted(speech.pcm, late, length)
    if fault == "foreign_audio":
        pcm = speak(who.draw_voice(rng), length, rng).pcm
    drawn = Speech(speech.pcm, speech.opening[seen], speech.width[seen])
    background = backdrop_picture(backdrop, cfg.size)
    motion = who.draw_motion(length, drawn.opening, rng, cfg.sway)
    if fault == "no_face":
        empty = np.zeros((0, 4), np.float32)
        truth = Rendered(bad.empty_scene(background, length, rng), empty, empty, np.zeros(0, np.float32))
    elif fault == "two_puppets":
        truth = _pair(identity, background, drawn, motion, rng, cfg)
    else:
        truth = render(identity, background, drawn, motion, zoom=zoom)
    picture = bad.spoil_picture(truth.frames, fault, rng)
    return Puppet(picture, bad.spoil_sound(pcm, fault, rng), truth, identity, backdrop, late * 1000 // FPS)


def _length(cfg: PuppetsConfig, rng: np.random.Generator) -> int:
    seconds = cfg.long_s if rng.uniform() < cfg.long_share else rng.uniform(cfg.min_s, cfg.max_s)
    return max(round(seconds * FPS), 1)


def _pair(
    identity: who.Identity,
    background: np.ndarray,
    speech: Speech,
    motion: who.Motion,
    rng: np.random.Generator,
    cfg: PuppetsConfig,
) -> Rendered:
    """Two puppets side by side: the left one speaks, the right one listens."""
    length = len(speech.opening)
    quiet = Speech(speech.pcm, np.zeros(length, np.float32), np.zeros(length, np.float32))
    listener = render(
        who.draw_identity(rng),
        background,
        quiet,
        who.draw_motion(length, quiet.opening, rng, cfg.sway),
        centre=71.0,
        zoom=0.8,
    )
    return render(identity, listener.frames, speech, motion, centre=25.0, zoom=0.8)


def _joined(first: Puppet, second: Puppet) -> Puppet:
    """A hard cut from one puppet to another."""
    a, b = first.truth, second.truth
    truth = Rendered(
        *(
            np.concatenate(pair)
            for pair in (
                (a.frames, b.frames),
                (a.face_boxes, b.face_boxes),
                (a.mouth_boxes, b.mouth_boxes),
                (a.mouth_px, b.mouth_px),
            )
        )
    )
    return Puppet(
        np.concatenate([first.frames, second.frames]),
        np.concatenate([first.pcm, second.pcm]),
        truth,
        first.identity,
        first.backdrop,
        0,
    )


@dataclass(frozen=True)
class Plan:
    """What stands at one place of the corpus. ``source``: the index whose puppet is shown (others for duplicates)."""

    index: int
    fault: str | None
    source: int

    @property
    def name(self) -> str:
        """Name of the video without its extension."""
        return f"puppet-{self.index:04d}" + (f"-{self.fault}" if self.fault else "")


def plan(n: int, seed: int, cfg: PuppetsConfig, faults: bool | Iterable[str] = True) -> list[Plan]:
    """Which fault each of ``n`` videos gets: ``fault_share`` of them, every kind in turn; at least one stays clean.

    Args:
        faults: True for all kinds, False for none, or the names of the kinds to use.

    Raises:
        EchoForgeError: an unknown kind.
    """
    kinds = list(bad.FAULTS) if faults is True else list(faults or ())
    if unknown := [k for k in kinds if k not in bad.FAULTS]:
        raise EchoForgeError(f"puppet fault '{unknown[0]}' is unknown; known: {', '.join(bad.FAULTS)}.")
    count = min(round(n * cfg.fault_share), n - 1) if kinds else 0
    places = np.sort(np.random.default_rng([seed, n]).permutation(np.arange(1, n))[:count])
    chosen = dict(zip(places.tolist(), (kinds[i % len(kinds)] for i in range(count)), strict=True))
    clean = [i for i in range(n) if i not in chosen]
    originals = iter(clean * (count + 1))
    return [
        Plan(i, chosen.get(i), next(originals) if str(chosen.get(i)).startswith("duplicate") else i) for i in range(n)
    ]


def make_one(out_dir: str | Path, spot: Plan, seed: int, cfg: PuppetsConfig) -> PuppetFile:
    """Write one video with its sidecars (``.txt``: the caption; ``.json``: all captions, speaker); what is true of it."""
    out = Path(out_dir)
    path = out / f"{spot.name}.mp4"
    fault = spot.fault
    puppet = sample(seed, spot.source, cfg, None if fault and fault.startswith("duplicate") else fault)
    if fault == "cut":
        puppet = _joined(puppet, sample(seed, spot.index + 100_000, cfg))
    write_video(path, puppet.frames, puppet.pcm, crf=cfg.crf + 10 if fault == "duplicate_reencoded" else cfg.crf)
    if fault in ("truncated", "damaged"):
        rng = np.random.default_rng([seed, spot.index, 2])
        _replace(path, bad.spoil_file(path.read_bytes(), fault, rng))
    short, fields = who.captions(puppet.identity, puppet.backdrop)
    speaker = f"puppet-{spot.source:04d}"
    if fault == "no_face":
        short, fields = f"A ball rolls over {fields['background']}.", {"background": fields["background"]}
    _replace(path.with_suffix(".txt"), (short + "\n").encode())
    kinds = [("short", short), ("fields", "; ".join(f"{key}: {text}" for key, text in fields.items()))]
    told = [{"text": text, "kind": kind} for kind, text in kinds]
    side = {"captions": told, "speaker": speaker, "licence": "CC0-1.0", "source": "puppets"}
    _replace(path.with_suffix(".json"), (json.dumps(side, indent=1) + "\n").encode())
    return _described(spot, path.name, puppet, short, speaker)


def _described(spot: Plan, file: str, puppet: Puppet, caption: str, speaker: str) -> PuppetFile:
    fault = bad.FAULTS[spot.fault] if spot.fault else bad.Fault("", "keep", ())
    return PuppetFile(
        name=spot.name,
        file=file,
        fault=spot.fault,
        expected_verdict=fault.verdict,
        expected_reasons=tuple(fault.reasons),
        speaker=speaker,
        index=spot.index,
        frames=len(puppet.frames),
        size=puppet.frames.shape[1],
        audio_shift_ms=puppet.audio_shift_ms,
        duplicate_of=f"puppet-{spot.source:04d}" if spot.source != spot.index else None,
        caption=caption,
        identity=json.dumps(asdict(puppet.identity)),
        mouth_px=puppet.truth.mouth_px,
        face_boxes=puppet.truth.face_boxes,
        mouth_boxes=puppet.truth.mouth_boxes,
    )


def make(
    out_dir: str | Path, n: int, seed: int, cfg: PuppetsConfig, faults: bool | Iterable[str] = True
) -> list[PuppetFile]:
    """Write ``n`` talking-puppet videos with sidecars into ``out_dir``, and ``manifest.parquet`` with the truth.

    Returns:
        The rows of the manifest (schema :data:`MANIFEST`), in order.

    Raises:
        EchoForgeError: ``n`` < 1, an unknown fault, or the folder cannot be written.
    """
    if n < 1:
        raise EchoForgeError(f"a puppet corpus needs at least one puppet, got n = {n}.")
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EchoForgeError(f"the folder {out} cannot be made: {error}.") from error
    files = []
    for spot in plan(n, seed, cfg, faults):
        stopping.check()
        files.append(make_one(out, spot, seed, cfg))
    with disk.replacing(out / NAME) as part:
        pq.write_table(_table(files), part)
    return files


def read_manifest(out_dir: str | Path) -> list[PuppetFile]:
    """The rows that :func:`make` wrote.

    Raises:
        EchoForgeError: the folder holds no puppet manifest.
    """
    path = Path(out_dir) / NAME
    if not path.is_file():
        raise EchoForgeError(f"{out_dir} holds no {NAME}: it was not made by the puppet generator.")
    tracks = ("mouth_px", "face_boxes", "mouth_boxes")
    return [
        PuppetFile(**(row | {name: np.asarray(row[name], np.float32) for name in tracks}))
        for row in pq.read_table(path).to_pylist()
    ]


def _table(files: Iterable[PuppetFile]) -> pa.Table:
    """Schema :data:`MANIFEST`."""
    rows = [vars(file) for file in files]
    plain = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in rows]
    return pa.Table.from_pylist(plain, schema=MANIFEST)


def _replace(path: Path, data: bytes) -> None:
    with disk.replacing(path) as part:
        part.write_bytes(data)
