"""What people get wrong, as they type it: one sentence that says what is wrong and what to do, and nothing left behind."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

import cli
from configs import schema
from curation import puppets
from curation.media.clip_reader import read_clip
from curation.media.clip_writer import write_video
from curation.review.tables import EDITABLE
from pipeline.catalog.curate import curate
from pipeline.dataset.shard import shard
from workflows.cycle import run_cycle

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "transformer.dim=48", "transformer.ffn_dim=64", "transformer.num_heads=2", "transformer.num_layers=2",
    "loader.global_batch=2", "optim.micro_batch=2", "optim.threads=1", "sampler.steps=2", "log.validate_every=0",
    "log.validation_samples=0", "gather.quantile=0.5", "gather.margin=0.0",
    "stages=[{name: s, kind: sft, steps: 1}, {name: n, kind: negatives, samples: 1}]",
]  # fmt: skip
"""What the run of these tests was made with."""
NOWHERE = "http://127.0.0.1:9"
"""The discard port: nothing answers there."""


@dataclass(frozen=True)
class Mistake:
    """A command line in the folder of :func:`world`; ``{small}`` stands for the options of SMALL, ``{port}`` for a taken port."""

    line: str
    words: tuple[str, ...]
    code: int = 2
    env: dict[str, str] = field(default_factory=dict)


def _rows(*rows: tuple[str, ...], code: int = 2, env: dict[str, str] | None = None) -> list[Mistake]:
    return [Mistake(line, words, code, env or {}) for line, *rest in rows for words in [tuple(rest)]]


GENERATE = "generate run {small} --out new.mp4"
FACE = f"{GENERATE} --audio voice.wav --image face.png"
MISTAKES = [
    # ---- generate
    *_rows(
        (f"{GENERATE} --image face.png --audio missing.wav", "--audio missing.wav does not exist", "give the voice"),
        (f"{GENERATE} --image face.png --audio notes.txt", "notes.txt", "cannot be opened|not a video", "with the voice"),
        (f"{GENERATE} --image face.png --audio mute.mp4", "mute.mp4 has no sound", "with the voice"),
        (f"{GENERATE} --image face.png --audio empty", "--audio empty is not a file"),
        (f"{GENERATE} --audio voice.wav", "needs --image"),
        (f"{GENERATE} --audio voice.wav --image missing.png", "--image missing.png does not exist", "give a picture"),
        (f"{GENERATE} --audio voice.wav --image notes.txt", "notes.txt", "give a picture or a video"),
        (f"{GENERATE} --audio voice.wav --image voice.wav", "voice.wav", "no video stream", "give a picture or a video"),
        (f"{GENERATE} --audio voice.wav --task lip_sync", "task lip_sync needs --video"),
        (f"{GENERATE} --audio voice.wav --task lip_sync --video missing.mp4", "--video missing.mp4 does not exist"),
        (f"{GENERATE} --audio voice.wav --task lip_sync --video notes.txt", "notes.txt", "give the video"),
        (f"{GENERATE} --audio voice.wav --task lip_sync --video face.png", "face.png", "not a video", "give the video"),
        (f"{FACE} --task dance", "task 'dance' is unknown", "i2v, lip_sync, avatar_sync"),
        (f"{FACE} --seconds -3", "--seconds -3", "at least 0.2"),
        (f"{FACE} --seconds 0", "--seconds 0", "at least 0.2"),
        (f"{FACE} --seconds nan", "--seconds nan", "at least 0.2"),
        (f"{FACE} --seconds inf", "--seconds inf", "at least 0.2"),
        (f"{FACE} --seconds 600000", "600000 s of video do not fit", "memory", "GiB", "shorter --seconds"),
        (f"{FACE} --seconds 60", "--seconds 60", "s of voice.wav", "leave --seconds out"),
        (f"{FACE} --out new.avi", "--out new.avi", ".mp4"),
        (f"{FACE} --out catalog", "--out catalog is a folder", ".mp4"),
        (f"{FACE} --out notes.txt/new.mp4", "'notes.txt' is a file", "give another --out"),
        (f"{FACE} --audio clip.mp4 --out ./clip.mp4", "--out clip.mp4 is also an input", "another name"),
        ("generate catalog --audio voice.wav --image face.png --out new.mp4", "it is a catalog, which `shard`", "`train`"),
        ("generate dataset --audio voice.wav --image face.png --out new.mp4", "it is a dataset, which `train`"),
        ("generate nowhere --audio voice.wav --image face.png --out new.mp4", "'nowhere'", "does not exist"),
        ("generate notes.txt --audio voice.wav --image face.png --out new.mp4", "'notes.txt' is not a plain file of weights"),
        ("generate fake.safetensors --audio voice.wav --image face.png --out new.mp4", "'fake.safetensors' cannot be read"),
        ("generate run --audio voice.wav --image face.png --out new.mp4", "made with preset 'small', not 'tiny'",
         "transformer.dim 48 → 320", "--preset"),
    ),
    # ---- curate
    *_rows(
        ("curate missing --out new", "/missing' does not exist", "give a folder"),
        ("curate empty --out new", "'empty' holds no videos: it is an empty folder"),
        ("curate texts --out new", "'texts' holds no videos", "give a folder"),
        ("curate notes.txt --out new", "/notes.txt' is not a video", ".csv"),
        ("curate 'videos/*.webm' --out new", "'videos/*.webm' holds no videos"),
        ("curate catalog --out new", "'catalog' holds no videos: it is a catalog, which `shard`"),
        ("curate dataset --out new", "/dataset' holds no videos", "it is a dataset, which `train`"),
        ("curate run --out new", "/run' holds no videos", "it is a run, which `generate`"),
        ("curate videos --out notes.txt", "--out notes.txt is a file", "give a folder for the catalog"),
        ("curate videos --out /dev/null/new", "'/dev/null/new' cannot be made", "'null' is a file"),
        ("curate videos --out dataset", "--out dataset holds a dataset", "a folder of its own"),
        ("curate videos --out videos", "--out videos is also the input", "a folder of its own"),
        ("curate videos --out new --set nonsense", "'nonsense' is not of the form key=value"),
        ("curate videos --out new --set =3", "'=3' is not of the form key=value"),
        ("curate videos --out new --set seed=abc", "'seed' must be int"),
        ("curate videos --out new --set sync_min_conf=4", "did you mean 'decide.sync_min_conf'"),
        ("curate videos --out new --preset invalid.yaml", "'invalid.yaml' is not valid YAML", "line"),
        ("curate videos --out new --preset flat.yaml", "'flat.yaml'", "extends: tiny"),
        ("curate videos --out new --set decide=3", "'decide' must be a mapping"),
        ("curate videos --out new --set 'decide.min_fps=[1'", "decide.min_fps=[1", "not valid YAML"),
        ("curate videos --out new --set decide.min_fps=fast", "'decide.min_fps' must be float, got 'fast'"),
        ("curate videos --out new --preset list.yaml", "'list.yaml'", "mapping"),
        ("curate videos --out new --preset missing.yaml", "'missing.yaml' is neither a file nor one of: tiny"),
        ("curate videos --out new --limit 0", "'--limit'", "greater than or equal to 1"),
        ("curate --out new", "Missing argument 'source'"),
        ("curate videos", "Missing option '--out'"),
        ("curate names.csv --out new", "names.csv has no column that names the videos", "'uri' or 'path'"),
        ("curate cp1252.csv --out new", "cp1252.csv is not in UTF-8 (line 2)", "CSV UTF-8"),
        ("curate ragged.csv --out new", "ragged.csv line 2 has more cells than columns", "quote"),
        ("curate broken.parquet --out new", "/broken.parquet' is not a readable Parquet file"),
        ("curate gopher://x/y --out new", "'gopher://x/y' cannot be opened", "check the address"),
        ("curate videos --out new --set sync.backend=fitted", "sync.fitted names no file", "`sync fit`"),
        ("curate videos --out new --set sync.backend=fitted --set sync.fitted=notes.txt", "notes.txt is not a fitted SyncNet",
         "sync fit"),
    ),
    *_rows(
        ("curate videos --out new --ray-address nonsense", "'nonsense' is not of the form HOST:PORT"),
        ("curate videos --out new --ray-address 127.0.0.1:9", "no Ray cluster answers at '127.0.0.1:9'", "ray start --head"),
        code=4,
    ),
    # ---- object stores, without credentials
    *_rows(
        ("curate s3://bucket/videos --out new", "credentials", "AWS_"),
        ("curate videos --out s3://bucket/catalog", "s3://bucket/catalog", "credentials", "AWS_"),
        ("shard s3://bucket/catalog --out new", "s3://bucket/catalog", "credentials"),
        ("train s3://bucket/dataset --out new", "s3://bucket/dataset", "credentials"),
    ),
    # ---- shard
    *_rows(
        ("shard 'x[/b]' --out new", "'x[/b]' holds no catalog"),
        ("shard 'no[x]' --out new", "'no[x]' holds no catalog"),
        ("shard nowhere --out new", "'nowhere' holds no catalog", "it does not exist", "`curate` makes a catalog"),
        ("shard videos --out new", "'videos'", "it is a folder of videos, which `curate` takes"),
        ("shard dataset --out new", "'dataset' holds no catalog", "it is a dataset, which `train`"),
        ("shard run --out new", "'run' holds no catalog", "it is a run, which `generate`"),
        ("shard notes.txt --out new", "'notes.txt' holds no catalog", "it is a file"),
        ("shard catalog --out catalog", "--out catalog holds a catalog", "give the dataset a folder of its own"),
        ("shard catalog --out notes.txt", "--out notes.txt is a file"),
        ("shard catalog --out dataset --inline --set text_encoder.dim=32 --set sync.required=false",
         "'dataset' was made with other settings", "preset 'small', not 'tiny'", "text_encoder.dim 64 → 32", "another --out"),
        ("shard catalog --out dataset --inline --preset wan2.1-fun-1.3b",
         "made with preset 'small', not 'wan2.1-fun-1.3b'", "codec.kind dct → wan"),
        ("shard catalog --out new --inline --set buckets.lengths=[9999]", "buckets.lengths holds 9999", "4k+1"),
    ),
    # ---- train
    *_rows(
        ("train nowhere --out new", "'nowhere' holds no index.parquet", "it does not exist", "`shard` makes a dataset"),
        ("train catalog --out new", "'catalog' holds no index.parquet", "it is a catalog, which `shard`"),
        ("train run --out new", "'run' holds no index.parquet", "it is a run, which `generate`"),
        ("train notes.txt --out new", "'notes.txt' holds no index.parquet", "it is a file"),
        ("train dataset --out notes.txt", "--out notes.txt is a file", "folder"),
        ("train dataset --out dataset", "--out dataset holds a dataset", "give the run a folder of its own"),
        ("train dataset --out catalog", "--out catalog holds a catalog"),
        ("train dataset --out new --steps 0", "'--steps'", "greater than or equal to 1"),
        ("train dataset --out new --set stages=[]", "'stages' is empty"),
        ("train dataset --out new --set optim.micro_batch=0", "'optim.micro_batch' is 0", "at least 1"),
        ("train dataset --out new --preset wan2.1-fun-1.3b", "'dataset', made with preset 'small', holds", "width",
         "transformer.text_dim is 4096", "the preset that made it"),
        ("train dataset --out run", "the run in run cannot continue", "preset 'small', not 'tiny'",
         "transformer.dim 48 → 320", "transformer.num_layers 2 → 3"),
        ("train dataset --out run {small} --set seed=5", "the run in run cannot continue", "seed 0 → 5", "another --out"),
        ("train dataset --out run {small} --set loader.keep.tiers=[strict]", "dataset 'dataset' has no sample left", "loader.keep"),
        ("train-plan catalog", "it is a catalog, which `shard`"),
    ),
    *_rows(("train dataset --out new {small}", "RANK is set, but WORLD_SIZE is not", "torchrun"), env={"RANK": "0"}),
    *_rows(
        ("train dataset --out new {small}", "RANK is 'first', not a number", "torchrun"),
        env={"RANK": "first", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
    ),
    *_rows(("train dataset --out new {small}", "WORLD_SIZE is 2, but RANK is not set", "torchrun"), env={"WORLD_SIZE": "2"}),
    # ---- catalog
    *_rows(
        ("catalog status nowhere", "'nowhere' holds no catalog", "it does not exist"),
        ("catalog status dataset", "'dataset' holds no catalog", "it is a dataset"),
        ("catalog explain catalog zzzz", "no clip's id begins with 'zzzz'", "clip_id"),
        ("catalog explain catalog ''", "'' begins 4 ids", "clip_id"),
        ("catalog redecide run", "'run' holds no catalog", "it is a run"),
        ("catalog report dataset", "'dataset' holds no catalog", "it is a dataset"),
        ("catalog report catalog --out empty", "--out empty is a folder", ".html"),
        ("catalog report catalog --out notes.txt/x.html", "'notes.txt' is a file"),
    ),
    # ---- shards
    *_rows(
        ("shards verify catalog", "it is a catalog, which `shard`"),
        ("shards stats nowhere", "'nowhere' holds no index.parquet", "does not exist"),
        ("shards inspect dataset zzzz --out new", "no sample starts with 'zzzz'", "sample_id"),
        ("shards inspect dataset '' --out new", "4 samples start with ''"),
        ("shards inspect dataset {sample} --out notes.txt", "--out notes.txt is a file"),
        ("shards add dataset cond_nose", "'cond_nose' cannot be added", "cond_lip"),
        ("shards merge dataset --out new", "at least two datasets"),
        ("shards merge dataset dataset --out new", "at least two datasets", "named once"),
        ("shards merge dataset catalog --out new", "'catalog' holds no index.parquet", "it is a catalog"),
        ("shards merge dataset otherset --out new", "'otherset' and 'dataset' were made with other encoders (text)", "shard one of them"),
        ("shards merge dataset otherset --out notes.txt", "--out notes.txt is a file"),
        ("shards split dataset --out new --bucket 1x1x1", "no sample with bucket 1x1x1", "its buckets: 96x96x33"),
        ("shards split dataset --out new --split dance", "no sample with split dance", "its splits: negatives, test"),
        ("shards split dataset --out otherset --split train", "holds a dataset already", "another --out"),
        ("shards split dataset --out catalog --split train", "--out catalog holds a catalog"),
        ("shards dance", "No such command 'dance'"),
    ),
    # ---- negatives
    *_rows(
        ("negatives stats nowhere", "'nowhere' has no gathered negatives", "does not exist", "negatives gather"),
        ("negatives export catalog --out new.csv", "'catalog' has no gathered negatives", "it is a catalog"),
        ("negatives review dataset", "'dataset' has no gathered negatives", "it is a dataset"),
        ("negatives stats run --stage zzz", "zzz", "negatives gather"),
        ("negatives stats run --stage ../../run/negatives/n", "stage '../../run/negatives/n' cannot be called so"),
        ("negatives gather run dataset --stage ../n", "no negatives stage '../n'", "negatives-1"),
        ("negatives export run --out empty", "--out empty is a folder", ".csv"),
        ("negatives gather nowhere dataset", "'nowhere' has none: it does not exist", "train first"),
        ("negatives gather catalog dataset", "'catalog' has none: it is a catalog"),
        ("negatives gather run dataset", "step 1200", "the last one in 'run' is step-000001", "train first"),
        ("negatives gather run catalog {small} --stage n", "it is a catalog"),
        ("negatives gather run dataset --stage zzz", "no negatives stage 'zzz'", "negatives-1"),
        ("negatives review run --port {port}", "port {port} cannot be used", "another with --port"),
        ("negatives import run missing.csv", "missing.csv does not exist"),
        ("negatives import run sheet.parquet", "sheet.parquet is a Parquet file, not a CSV"),
        ("negatives import run cp1252_sheet.csv", "cp1252_sheet.csv is not in UTF-8 (line 2)", "CSV UTF-8"),
        ("negatives import run no_verdict.csv", "no_verdict.csv has no column 'verdict'", "negatives export"),
        ("negatives import run blank.csv", "blank.csv has no column", "negatives export"),
        ("negatives import run unknown_id.csv", "unknown_id.csv", "(nope)", "no such sample was gathered"),
        ("negatives import run unknown_verdict.csv", "unknown_verdict.csv", "'bad' is not one of negative, fine, skip"),
        ("negatives import run unknown_issue.csv", "unknown_issue.csv", "'nose' is not one of identity"),
        ("negatives import run no_frame.csv", "no_frame.csv line 2", "'first' is not a frame number"),
        ("negatives import run nobody.csv", "nobody.csv line 2 names no reviewer", "--reviewer"),
        ("negatives merge run nowhere", "nowhere is not a folder of negatives", "RUN/negatives/STAGE"),
        ("negatives merge run run", "run is not a folder of negatives", "RUN/negatives/STAGE"),
    ),
    # ---- sync, evaluation, the rest
    *_rows(
        ("sync fit catalog --out new.safetensors", "at least 10 videos", "got 4", "sync.fit.min_sources"),
        ("sync fit catalog --out new.bin", "--out new.bin", ".safetensors"),
        ("sync fit dataset --out new.safetensors", "'dataset' holds no catalog", "it is a dataset"),
        ("sync score clip.mp4", "no sync backend", "sync.backend=fitted"),
        ("sync score clip.mp4 --set sync.backend=fitted --set sync.fitted=fake.safetensors", "not a fitted SyncNet"),
        ("eval missing.mp4", "missing.mp4", "give a video"),
        ("eval notes.txt", "notes.txt", "not a video", "give a video"),
        ("eval voice.wav", "voice.wav", "no video stream"),
        ("eval clip.mp4 --reference missing.mp4", "missing.mp4", "give a video"),
        ("eval clip.mp4 --out new.txt", "--out new.txt", ".csv or .parquet"),
        ("eval clip.mp4 --out empty", "--out empty is a folder"),
        ("eval clip.mp4 --set evaluation.metrics=[beauty]", "'beauty'", "psnr"),
        ("play nowhere", "'nowhere' does not exist"),
        ("play notes.txt", "'notes.txt' is a file", "give a folder"),
        ("play videos --port {port}", "port {port} cannot be used", "another with --port"),
        ("play videos --port 99999", "port 99999 cannot be used", "0 to 65535"),
        ("weights fetch nonsense", "'nonsense'", "syncnet-v2"),
        ("demo --out notes.txt", "--out notes.txt is a file"),
        ("demo --out catalog", "--out catalog holds a catalog"),
        ("demo --puppets 3", "'--puppets'", "greater than or equal to 24"),
        ("dance", "No such command 'dance'"),
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything: videos, catalog, dataset, run with negatives, and files of the wrong kinds."""
    root = tmp_path_factory.mktemp("mistakes")
    config = replace(schema.load("tiny", ["sync.required=false", *SMALL]), preset="small")
    puppets.make(root / "videos", 4, 3, config.curation.puppets, faults=[])
    curate([str(root / "videos")], str(root / "catalog"), config, inline=True, quiet=True)
    shard(str(root / "catalog"), str(root / "dataset"), config, inline=True)
    other = schema.load("tiny", ["text_encoder.dim=32"])
    shard(str(root / "catalog"), str(root / "otherset"), other, inline=True, limit=1)
    run_cycle(str(root / "dataset"), root / "run", config)
    _media(root)
    _tables(root)
    for name, text in {
        "invalid.yaml": "extends: tiny\ndecide: {min_fps: [1\n", "flat.yaml": "decide: {min_fps: 10.0}\n",
        "notes.txt": "just text\n" * 50, "texts/a.txt": "x", "texts/b.json": "{}", "list.yaml": "- a\n- b\n",
        "broken.parquet": "PAR1 no", "fake.safetensors": "not weights", "empty/x": "",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    (root / "empty" / "x").unlink()
    return root


def _media(root: Path) -> None:
    video = min((root / "videos").glob("*.mp4"))
    shutil.copy(video, root / "clip.mp4")
    clip = read_clip(str(video), 0, 33, width=96, height=96)
    Image.fromarray(clip.frames[0]).resize((192, 192)).save(root / "face.png")
    Image.fromarray(np.full((192, 192, 3), 128, np.uint8)).save(root / "wall.png")
    soundfile.write(root / "voice.wav", clip.pcm, 16000)
    write_video(root / "mute.mp4", clip.frames, None)


def _tables(root: Path) -> None:
    gathered = root / "run" / "negatives" / "n" / "samples.parquet"
    shutil.copy(gathered, root / "sheet.parquet")
    name = pq.read_table(gathered)["negative_id"][0].as_py()
    head = ",".join(EDITABLE)
    sheets = {
        "cp1252_sheet": f"{head}\n{name},negative,hands,,,José,\n",
        "no_verdict": f"negative_id,note\n{name},x\n",
        "unknown_id": f"{head}\nnope,negative,hands,,,ann,\n",
        "unknown_verdict": f"{head}\n{name},bad,hands,,,ann,\n",
        "unknown_issue": f"{head}\n{name},negative,nose,,,ann,\n",
        "no_frame": f"{head}\n{name},negative,hands,first,,ann,\n",
        "nobody": f"{head}\n{name},negative,hands,,,,\n",
        "blank": "",
        "good": f"{head}\n{name},negative,hands,,,ann,zähe Hände\n".replace(",", ";"),
        "names": "name,licence\nclip.mp4,CC\n",
        "cp1252": "path,speaker\nclip.mp4,José\n",
        "ragged": "path,caption\nclip.mp4,a person, speaking\n",
        "semicolons": "path;speaker\nclip.mp4;José\n",
    }
    for sheet, text in sheets.items():
        (root / f"{sheet}.csv").write_bytes(text.encode("cp1252" if "cp1252" in sheet else "utf-8"))


@pytest.fixture(scope="module")
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store that is not there, and nobody to ask for credentials: no test looks up a host."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": NOWHERE, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_CONFIG_FILE": os.devnull, "COLUMNS": "200",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def snapshot(root: Path) -> dict[str, tuple[int, int] | None]:
    """Everything in a folder: sizes and times of files, names of folders."""
    found: dict[str, tuple[int, int] | None] = {}
    for path in root.rglob("*"):
        state = path.stat()
        found[str(path.relative_to(root))] = None if path.is_dir() else (state.st_size, state.st_mtime_ns)
    return found


def run(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """A command line in this process: exit code, output, errors. Anything but an exit is a traceback and is raised."""
    capsys.readouterr()
    before, sys.argv = sys.argv, ["cli.py", *shlex.split(line)]
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    return code, *capsys.readouterr()


def fill(text: str, world: Path, port: int) -> str:
    sample = pq.read_table(world / "dataset" / "index.parquet", columns=["sample_id"])["sample_id"][0].as_py()
    small = " ".join(f"--set {shlex.quote(item)}" for item in SMALL)
    return text.replace("{small}", small).replace("{port}", str(port)).replace("{sample}", sample)


def sentence(errors: str) -> str:
    """The one sentence of an error, or of a usage error the text in its box."""
    if "Usage:" in errors:
        return " ".join(errors.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and errors.rstrip().endswith(lines[0]), errors
    return lines[0]


@pytest.mark.timeout(60)  # seconds are usual; this is for a hang
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: " ".join([*(f"{k}={v}" for k, v in m.env.items()), m.line]))
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    mistake: Mistake,
    world: Path,
    taken_port: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(world)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in mistake.env.items():
        monkeypatch.setenv(name, value)
    before = snapshot(world)
    code, _, errors = run(fill(mistake.line, world, taken_port), capsys)
    after = snapshot(world)
    said = sentence(errors)
    assert code == mistake.code, said
    for words in mistake.words:
        assert any(part in said for part in fill(words, world, taken_port).split("|")), f"{words!r} is not in: {said}"
    assert after == before, sorted(set(after) ^ set(before))


def test_the_table_is_long() -> None:
    lines = [(m.line, *m.env.items()) for m in MISTAKES]
    assert len(lines) == len(set(lines)) >= 60


def test_a_picture_without_a_face_is_used_and_said(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    given = fill("generate run {small} --audio voice.wav --seconds 0.2 --image ", world, 0)
    for picture, warned in (("wall.png", True), ("face.png", False)):
        code, said, _ = run(f"{given} {picture} --out {tmp_path / picture}.mp4", capsys)
        assert code == 0 and (tmp_path / f"{picture}.mp4").is_file()
        warning = "warning: no face was found in wall.png"
        assert (warning in said and "face mask is off" in said) == warned, said


def test_semicolons_are_read_where_a_spreadsheet_writes_them(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    shutil.copytree("run/negatives", tmp_path / "run" / "negatives")
    for expected in ("1 reviews added", "0 reviews added"):
        assert expected in run(f"negatives import {tmp_path / 'run'} good.csv", capsys)[1]
    assert run(f"curate semicolons.csv --out {tmp_path / 'catalog'} --inline", capsys)[0] == 0
    assert pq.read_table(tmp_path / "catalog" / "clips", columns=["speaker"])["speaker"].to_pylist() == ["José"]


def test_a_folder_without_permission_is_named_before_any_work(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    monkeypatch.chdir(world)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    for line in (
        f"curate videos --out {locked}/new",
        f"shard catalog --out {locked}/new",
        f"train dataset --out {locked}",
        f"generate run {{small}} --audio voice.wav --image face.png --out {locked}/new.mp4",
    ):
        code, _, errors = run(fill(line, world, 0), capsys)
        assert code == 2 and "may not be written" in sentence(errors)


@pytest.mark.parametrize("line", ["train catalog --out new", "curate empty --out new"])
def test_a_real_process_says_the_same(line: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(world)
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *shlex.split(line)],
        capture_output=True, text=True, check=False, cwd=world, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2 and sentence(done.stderr).endswith(".") and not done.stdout
    assert snapshot(world) == before


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C counts. What a shell starts in the background ignores it, and so would the processes of a test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


LONG_RUN = "--set log.every=1 --set 'stages=[{name: s, kind: sft, steps: 1000000}]'"


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("line", [f"train dataset {{small}} {LONG_RUN} --out", "demo --out"])
def test_ctrl_c_ends_a_command_without_a_traceback(line: str, world: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    command = [sys.executable, str(ROOT / "cli.py"), *shlex.split(fill(line, world, 0)), str(new)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=world,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        while not any(new.rglob("*.*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = "".join(process.communicate(timeout=60))
    assert process.returncode == 130, said
    assert "Traceback" not in said
