"""Every pretrained file that a preset can name: where it comes from, its licence, size and digest, and whether it is here.

Nothing is fetched behind the user's back: a command that lacks a file stops with one sentence (:func:`locate`), and
``python cli.py weights fetch`` is the only thing that downloads.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs.errors import EchoForgeError, MissingWeights
from configs.runtime import disk, stopping
from configs.runtime.locks import locked

FUN_INP = "alibaba-pai/Wan2.1-Fun-V1.1-1.3B-InP"
ECHOMIMIC = "BadToBest/EchoMimicV3"
VGG = "https://www.robots.ox.ac.uk/~vgg/software/lipsync/data"
_BLOCK = 1 << 20
_TIMEOUT_S = 60


@dataclass(frozen=True)
class WeightFile:
    """One pretrained file. ``bytes`` and ``sha256`` are None where no public figure could be found."""

    name: str
    what: str
    path: str  # below the weights folder: where `fetch` puts it and where the real preset looks
    licence: str
    repo: str | None = None  # hub repository …
    file: str | None = None  # … and file in it
    url: str | None = None  # or a plain address
    bytes: int | None = None
    sha256: str | None = None
    derived_bytes: int | None = None  # parameters times their width, where no size is published; shown, never checked
    beside: tuple[str, ...] = ()  # names of the files that its loader reads from the same folder

    @property
    def address(self) -> str:
        """Where it is downloaded from. ``$HF_ENDPOINT`` names another hub, as in huggingface_hub."""
        if self.url:
            return self.url
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{hub}/{self.repo}/resolve/main/{urllib.parse.quote(str(self.file))}"


REGISTRY: tuple[WeightFile, ...] = (
    WeightFile(
        "fun-inp-transformer",
        "Wan2.1-Fun 1.3B InP transformer: what training starts from",
        "Wan2.1-Fun-V1.1-1.3B-InP/diffusion_pytorch_model.safetensors",
        "Apache-2.0",
        FUN_INP,
        "diffusion_pytorch_model.safetensors",
        bytes=3_128_957_992,
        sha256="4ec199076538b946935ebcb3ba808d3c427e638f29519a3c3c98d31d821e5eed",
    ),
    WeightFile(
        "wan-vae",
        "Wan2.1 VAE: latents of the shards, decoding of generated video",
        "Wan2.1-Fun-V1.1-1.3B-InP/Wan2.1_VAE.pth",
        "Apache-2.0",
        FUN_INP,
        "Wan2.1_VAE.pth",
        bytes=507_609_880,
        sha256="38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981",
    ),
    WeightFile(
        "umt5-xxl",
        "umT5-xxl encoder: caption embeddings",
        "Wan2.1-Fun-V1.1-1.3B-InP/models_t5_umt5-xxl-enc-bf16.pth",
        "Apache-2.0",
        FUN_INP,
        "models_t5_umt5-xxl-enc-bf16.pth",
        bytes=11_361_920_418,
        sha256="7cace0da2b446bbbbc57d031ab6cf163a3d59b366da94e5afe36745b746fd81d",
    ),
    WeightFile(
        "umt5-tokenizer",
        "umT5 tokenizer",
        "Wan2.1-Fun-V1.1-1.3B-InP/google/umt5-xxl/tokenizer.json",
        "Apache-2.0",
        FUN_INP,
        "google/umt5-xxl/tokenizer.json",
        bytes=16_837_417,
        sha256="6e197b4d3dbd71da14b4eb255f4fa91c9c1f2068b20a2de2472967ca3d22602b",
    ),
    WeightFile(
        "clip-vit-h14",
        "CLIP ViT-H/14 visual tower: reference-image tokens",
        "Wan2.1-Fun-V1.1-1.3B-InP/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        "MIT",
        FUN_INP,
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
        bytes=4_772_359_047,
        sha256="628c9998b613391f193eb67ff68da9667d75f492911e4eb3decf23460a158c38",
    ),
    WeightFile(
        "whisper-tiny",
        "Whisper tiny encoder: audio features of the `whisper` variant (the paper's)",
        "whisper/tiny.pt",
        "MIT",
        url="https://openaipublic.azureedge.net/main/whisper/models/"
        "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9/tiny.pt",
        bytes=75_572_083,
        sha256="65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9",
    ),
    WeightFile(
        "echomimicv3-preview",
        "EchoMimicV3 preview transformer: generate with it, or fine-tune it",
        "EchoMimicV3/transformer/diffusion_pytorch_model.safetensors",
        "Apache-2.0",
        ECHOMIMIC,
        "transformer/diffusion_pytorch_model.safetensors",
        bytes=3_414_541_616,
        sha256="ba25a75c7511ba57a346480d50567b57270282c1f3ab121558c07b65a97adf1f",
    ),
    WeightFile(
        "wav2vec2-base-960h",
        "wav2vec2: audio features of the `preview` variant",
        "wav2vec2-base-960h/model.safetensors",
        "Apache-2.0",
        "facebook/wav2vec2-base-960h",
        "model.safetensors",
        bytes=377_607_901,
        sha256="8aa76ab2243c81747a1f832954586bc566090c83a0ac167df6f31f0fa917d74a",
        beside=("wav2vec2-base-960h-config",),
    ),
    WeightFile(
        "wav2vec2-base-960h-config",
        "its configuration",
        "wav2vec2-base-960h/config.json",
        "Apache-2.0",
        "facebook/wav2vec2-base-960h",
        "config.json",
        bytes=1_596,
        sha256="d3ec255c063d9f95057b553b19c20135b259875834a4fe9deb218a6be25b4cf3",
    ),
    WeightFile(
        "chinese-wav2vec2-base",
        "wav2vec2: audio features of the `flash` variant",
        "chinese-wav2vec2-base/pytorch_model.bin",
        "MIT",
        "TencentGameMate/chinese-wav2vec2-base",
        "pytorch_model.bin",
        bytes=380_261_837,
        sha256="be2da40c9e7ae26bfc904a3ed79ebb9e8f060bec6dba85d6a6ae86114bc38901",
        beside=("chinese-wav2vec2-base-config",),
    ),
    WeightFile(
        "chinese-wav2vec2-base-config",
        "its configuration",
        "chinese-wav2vec2-base/config.json",
        "MIT",
        "TencentGameMate/chinese-wav2vec2-base",
        "config.json",
        bytes=1_951,
        sha256="dc2cd2f989104b9510ce9e43a343a6f1fe55aa60baa1fcfca0c5908e6590b8b6",
    ),
    WeightFile(
        "syncnet-v2",
        "SyncNet v2: audio-visual sync confidence and offset",
        "syncnet/syncnet_v2.model",
        "see the VGG page",
        url=f"{VGG}/syncnet_v2.model",
        bytes=54_573_114,
        sha256="961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
    ),
    WeightFile(
        "s3fd",
        "S3FD face detector, the one SyncNet was evaluated with",
        "syncnet/sfd_face.pth",
        "see the VGG page",
        url=f"{VGG}/sfd_face.pth",
        bytes=89_844_381,
        sha256="d54a87c2b7543b64729c9a25eafd188da15fd3f6e02f0ecec76ae1b30d86c491",
    ),
    WeightFile(
        "yunet",
        "YuNet face detector (2023mar)",
        "yunet/face_detection_yunet_2023mar.onnx",
        "MIT",
        url="https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/face_detection_yunet_2023mar.onnx",
        bytes=232_589,
        sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    ),
    WeightFile(
        "clip-vit-l14",
        "OpenAI's CLIP ViT-L/14 as open_clip stores it: the optional aesthetic score",
        "aesthetic/open_clip_model.safetensors",
        "MIT",
        "timm/vit_large_patch14_clip_224.openai",
        "open_clip_model.safetensors",
        derived_bytes=1_710_466_052,  # 427,616,513 float32 parameters
    ),
    WeightFile(
        "aesthetic-head",
        "LAION's linear head: the optional aesthetic score",
        "aesthetic/sac+logos+ava1-l14-linearMSE.pth",
        "Apache-2.0",
        url="https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
        "sac%2Blogos%2Bava1-l14-linearMSE.pth",
        bytes=3_714_759,
        sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    ),
)
# Sizes and digests: the Git LFS pointers on the hub's file pages, and public lists that agree with them (2026-11). Of
# the two configurations of wav2vec2, of S3FD and of SyncNet: public lists only.

_BY_NAME = {file.name: file for file in REGISTRY}
_BY_PATH = {file.path: file for file in REGISTRY}


@dataclass(frozen=True)
class Key:
    """A configuration key that names a pretrained file.

    Attributes:
        what: it, in words, for messages.
        switch: the keys that decide whether the file is used; none: it is used when the key is not null.
        default: values of ``switch`` with which it is used → name of the file that null stands for ("": of none).
    """

    key: str
    what: str
    switch: tuple[str, ...] = ()
    default: Mapping[tuple[Any, ...], str] | None = None


KEYS: dict[str, Key] = {
    key.key: key
    for key in (
        Key("faces.weights", "the face detector", ("faces.detector",), {("yunet",): "yunet", ("s3fd",): "s3fd"}),
        Key("sync.weights", "SyncNet v2", ("sync.backend",), {("syncnet_v2",): "syncnet-v2"}),
        Key("sync.fitted", "the fitted SyncNet", ("sync.backend",), {("fitted",): ""}),
        Key("aesthetic.clip", "CLIP of the aesthetic score", ("aesthetic.enabled",), {(True,): "clip-vit-l14"}),
        Key("aesthetic.head", "the head of the aesthetic score", ("aesthetic.enabled",), {(True,): "aesthetic-head"}),
        Key("captions.model", "the captioning model", ("captions.kind",), {("vlm",): ""}),
        Key("codec.path", "the Wan VAE", ("codec.kind",), {("wan",): "wan-vae"}),
        Key("text_encoder.path", "the umT5 encoder", ("text_encoder.kind",), {("umt5",): "umt5-xxl"}),
        Key("text_encoder.tokenizer", "the umT5 tokenizer", ("text_encoder.kind",), {("umt5",): "umt5-tokenizer"}),
        Key("image_encoder.path", "the CLIP image encoder", ("image_encoder.kind",), {("clip",): "clip-vit-h14"}),
        Key(
            "audio_encoder.path",
            "the audio encoder",
            ("audio_encoder.kind", "audio_encoder.variant"),
            {
                ("whisper", "whisper"): "whisper-tiny",
                ("wav2vec2", "preview"): "wav2vec2-base-960h",
                ("wav2vec2", "flash"): "chinese-wav2vec2-base",
                # listed where somebody combines them all the same
                ("wav2vec2", "whisper"): "",
                ("whisper", "preview"): "",
                ("whisper", "flash"): "",
            },
        ),
        Key("checkpoint.init", "the weights to start from"),
    )
}
"""Every key of the configuration that names a pretrained file, and what null means there."""


@dataclass(frozen=True)
class Need:
    """A file that a configuration uses: ``key`` names it with ``configured``; ``known`` is our entry for it, if any."""

    key: str
    configured: str | None
    known: WeightFile | None
    path: Path | None  # None: in the hub's own cache, or nowhere yet

    @property
    def purpose(self) -> str:
        """What it is for."""
        return self.known.what if self.known else KEYS[self.key].what

    @property
    def state(self) -> str:
        """Where it stands, without reading it: 'present' | 'missing' | 'size differs' | 'hub' | 'not named'."""
        if self.path is None:
            return "hub" if self.configured else "not named"
        if not self.path.exists():
            return "missing"
        known = self.known
        differs = known and known.bytes and self.path.is_file() and self.path.stat().st_size != known.bytes
        return "size differs" if differs else "present"


def folder() -> Path:
    """The weights folder: ``$ECHOFORGE_WEIGHTS``, else ``weights`` in the current directory."""
    return Path(os.environ.get("ECHOFORGE_WEIGHTS", "weights"))


def resolve(configured: str) -> Path:
    """``weights:NAME/…`` → a path below :func:`folder`; anything else is a path as it stands."""
    prefix, sep, rest = configured.partition("weights:")
    return folder() / rest if sep and not prefix else Path(configured)


def needs(mapping: Mapping[str, Any]) -> list[Need]:
    """The files that a configuration (`schema.to_mapping`, or some of its sections) uses, in the order of :data:`KEYS`."""
    found: list[Need] = []
    for key in KEYS.values():
        if key.key.partition(".")[0] not in mapping:
            continue
        configured = _value(mapping, key.key)
        if key.default is None:
            name = None if configured is None else ""
        else:
            name = key.default.get(tuple(_value(mapping, part) for part in key.switch))
        if name is not None:
            found += _needed(key.key, configured or (f"weights:{_BY_NAME[name].path}" if name else None))
    return found


def _value(mapping: Mapping[str, Any], dotted: str) -> Any:
    node: Any = mapping
    for part in dotted.split("."):
        node = node[part]
    return node


def _needed(key: str, configured: str | None) -> list[Need]:
    """One need, or one for each known file of a folder and for each file that its loader reads beside it."""
    if configured is None or configured.startswith("hub:"):
        return [Need(key, configured, None, None)]
    path, rest = resolve(configured), configured.removeprefix("weights:")
    if rest == configured:  # the user's own
        return [Need(key, configured, None, path)]
    if rest in _BY_PATH:
        files = with_beside([_BY_PATH[rest]])
    else:
        files = [file for file in REGISTRY if file.path.startswith(rest.rstrip("/") + "/")]
    return [Need(key, configured, file, folder() / file.path) for file in files] or [Need(key, configured, None, path)]


def with_beside(files: Iterable[WeightFile]) -> list[WeightFile]:
    """The files and those that their loaders read beside them, each once."""
    return list(dict.fromkeys(part for file in files for part in (file, *(_BY_NAME[n] for n in file.beside))))


def named(names: Iterable[str]) -> list[WeightFile]:
    """Registry entries by name, with the files beside them.

    Raises:
        EchoForgeError: no such name; the sentence lists them.
    """
    names = list(names)
    if unknown := [name for name in names if name not in _BY_NAME]:
        raise EchoForgeError(f"no pretrained file is called '{unknown[0]}'; known: {', '.join(_BY_NAME)}.")
    return with_beside(_BY_NAME[name] for name in names)


def locate(key: str, configured: str | None, *kind: Any) -> Path:
    """The local file or folder that a configuration value names.

    Args:
        key: of :data:`KEYS`.
        configured: its value: a local path, ``weights:PATH`` for one below the weights folder, ``hub:ORG/NAME`` for a
            whole repository of the hub, ``hub:ORG/NAME/FILE`` for one file of it (downloaded into the hub's own
            cache), or null.
        kind: the values of the key's switch, which say what null stands for.

    Raises:
        MissingWeights: nothing configured, or nothing there; the sentence says which command gets it.
    """
    entry = KEYS[key]
    name = (entry.default or {}).get(kind, "")
    if not configured and not name:
        raise MissingWeights(f"{entry.what} is wanted, but {key} names no file; set it with --set {key}=PATH.")
    configured = configured or f"weights:{_BY_NAME[name].path}"
    if configured.startswith("hub:"):
        return _from_hub(f"{entry.what} ({key})", configured.removeprefix("hub:"))
    path = resolve(configured)
    if path.exists():
        return path
    known = next((need.known for need in _needed(key, configured) if need.known), None)
    if known:
        remedy = f"get it with `weights fetch {known.name}`, or set {key} to the path of yours"
    elif name:
        place = f"set {key}=weights:{_BY_NAME[name].path} and get it with `weights fetch {name}`"
        remedy = f"correct the path, or {place}"
    else:
        remedy = f"correct the path in {key}"
    raise MissingWeights(f"{entry.what} ({key}) is not at {path.absolute()}; {remedy}.")


def require(mapping: Mapping[str, Any]) -> None:
    """Look for all files of some sections at once, before the first one is loaded, which may take minutes.

    Raises:
        MissingWeights: some are not here; the sentence names all of them and the command that gets them.
    """
    lacking = [need for need in needs(mapping) if need.path is not None and not need.path.exists()]
    known = list(dict.fromkeys(need.known.name for need in lacking if need.known))
    if len(lacking) > 1 and len(known) == len(lacking):
        places = ", ".join(need.known.path for need in lacking if need.known)
        raise MissingWeights(
            f"{len(lacking)} files are not in {folder().absolute()}: {places}; get them with "
            f"`weights fetch {' '.join(known)}`, or point their keys at yours (`weights list` names them)."
        )
    for need in lacking:
        key = KEYS[need.key]
        locate(need.key, need.configured, *(_value(mapping, part) for part in key.switch))


def _from_hub(what: str, name: str) -> Path:
    """A repository or a file of it, through huggingface_hub's cache."""
    from huggingface_hub import hf_hub_download, snapshot_download

    parts = name.split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise EchoForgeError(f"{what}: 'hub:{name}' is not of the form hub:ORG/NAME or hub:ORG/NAME/FILE.")
    repo = "/".join(parts[:2])
    try:
        return Path(hf_hub_download(repo, parts[2]) if len(parts) == 3 else snapshot_download(repo))
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise MissingWeights(
            f"{what} could not be had from the hub ({repo}: {reason}); download it by hand and configure its local path."
        ) from error


Checked = Literal["missing", "size differs", "digest differs", "ok", "present (no digest known)", "present (a folder)"]


def check(file: WeightFile, path: Path) -> Checked:
    """Compare what is at ``path`` with the published size and digest; reads the whole file."""
    if not path.is_file():
        return "present (a folder)" if path.is_dir() else "missing"
    if file.bytes is not None and path.stat().st_size != file.bytes:
        return "size differs"
    if file.sha256 is None:
        return "present (no digest known)"
    with path.open("rb") as stream:
        return "ok" if hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256 else "digest differs"


def fetch(file: WeightFile, report: Callable[[int, int], None] | None = None) -> Path:
    """Download one file to its place below the weights folder; whole or not at all.

    What an interrupted download left (``….part``) is continued where the server can.

    Args:
        report: called with (bytes so far, bytes in all or 0).

    Raises:
        Locked: another process fetches into the same folder.
        Refused: the disk is too small, full or read-only; what came is kept.
        EchoForgeError: the source cannot be reached, or what came has another size or digest.
    """
    target = folder() / file.path
    with locked(target.parent, "weights folder", "weights fetch"):
        _fetch(file, target, report)
    return target


def _fetch(file: WeightFile, target: Path, report: Callable[[int, int], None] | None) -> None:
    part = target.with_name(target.name + ".part")
    by_hand = f"get {file.address} by hand and put it at {target.absolute()}"
    try:
        have = part.stat().st_size if part.exists() else 0
        what = f"{file.name} in the weights folder ($ECHOFORGE_WEIGHTS)"
        disk.check_room(target.parent, (file.bytes or 0) - have, what)
        if not (file.bytes and have == file.bytes):
            _download(file.address, part, have, report)
    except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
        raise EchoForgeError(f"{file.name} could not be fetched ({_reason(error)}); {by_hand}.") from error
    if (state := check(file, part)) in ("size differs", "digest differs"):
        part.unlink()
        raise EchoForgeError(
            f"{file.name} came damaged, or its publisher changed it ({state}); nothing was kept: try again, or {by_hand}."
        )
    part.replace(target)


def _download(address: str, part: Path, have: int, report: Callable[[int, int], None] | None) -> None:
    """Bring ``part``, of which ``have`` bytes are there, to its full length."""
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if not (have and error.code == 416):  # the part is not the beginning of what the server has
            raise
        have, response = 0, urllib.request.urlopen(address, timeout=_TIMEOUT_S)
    with response, disk.refused(part):
        done = have if getattr(response, "status", None) == 206 else 0
        rest = int(response.headers.get("Content-Length") or 0)
        total = done + rest if rest else 0
        with part.open("ab" if done else "wb") as out:
            while block := response.read(_BLOCK):
                stopping.check("what came of the download is kept")
                out.write(block)
                done += len(block)
                if report:
                    report(done, total)
    if total and done != total:
        raise OSError(f"the connection ended after {done} of {total} bytes")


def fetch_all(files: Iterable[WeightFile], begin: Callable[[WeightFile], Callable[[int, int], None]]) -> list[Path]:
    """Fetch every file; one that fails does not keep the others from coming, and a dead host is asked once.

    Args:
        begin: called before each file; gives what :func:`fetch` reports to.

    Raises:
        EchoForgeError: some did not come; the sentence says which, why, and what to do.
    """
    came: list[Path] = []
    failed: list[tuple[WeightFile, EchoForgeError]] = []
    dead: dict[str, EchoForgeError] = {}
    for file in files:
        host = urllib.parse.urlsplit(file.address).netloc
        if host in dead:
            failed.append((file, dead[host]))
            continue
        try:
            came.append(fetch(file, begin(file)))
        except EchoForgeError as error:
            failed.append((file, error))
            if _unreachable(error.__cause__):
                dead[host] = error
    if len(failed) == 1:
        raise failed[0][1]
    if failed:
        names = ", ".join(file.name for file, _ in failed)
        cause = failed[0][1].__cause__
        reason = _reason(cause) if cause else str(failed[0][1]).rstrip(".")
        raise EchoForgeError(
            f"{len(failed)} files could not be fetched: {names} (the first: {reason}); run the same command again to go "
            "on, or get them elsewhere: `weights list --urls` gives their addresses and places."
        )
    return came


def _unreachable(error: BaseException | None) -> bool:
    """Did the host not answer at all?"""
    return isinstance(error, (urllib.error.URLError, TimeoutError)) and not isinstance(error, urllib.error.HTTPError)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{urllib.parse.urlsplit(error.url).netloc} answers {error.code} {error.reason}"
    inner = getattr(error, "reason", None) or error
    return str(getattr(inner, "strerror", None) or inner)
