"""Decodes one sample back to what a person can look at: a video with its sound, and one picture of everything else."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from configs import folders
from configs.errors import EchoForgeError
from configs.runtime.shown import one_line
from curation.media.clip_writer import write_video
from model import conditions, masks, pixels
from model.codecs import Codec, load_codec
from model.config import ModelConfig
from pipeline import storage
from pipeline.dataset.files import read_index, read_member
from pipeline.dataset.index import TensorEntry, members_of

COLUMNS = 6
"""Frames shown in a row of the picture."""


@dataclass(frozen=True)
class Inspection:
    """Where the two files are, and the sample's facts."""

    video: Path
    picture: Path
    facts: dict[str, str | None]

    def __str__(self) -> str:
        return "\n".join([f"{self.video}\n{self.picture}", *(f"{key}: {value}" for key, value in self.facts.items())])


def inspect(dataset: str, sample_id: str, out: str, model: ModelConfig) -> Inspection:
    """Write ``out/<id>.mp4`` (latents decoded, stored sound) and ``out/<id>.png``.

    Rows of the picture: decoded video, decoded I2V and lip-sync conditions, face (green) and mouth (red) boxes.

    Raises:
        EchoForgeError: no such sample (the start of an id is enough, if only one has it), or it cannot be decoded.
    """
    row = _find(dataset, sample_id)
    folders.check_out_folder(out)
    ((found, members),) = members_of(row)
    files = {member.ext: read_member(dataset, member) for member in members}
    codec = load_codec(model.codec)
    shown = ("sample_id", "clip_id", "video_id", "bucket", "split", "tier", "verdict")
    facts: dict[str, str | None] = {name: row[name][0].as_py() for name in shown}
    try:
        rows = _pictures(load_safetensors(files["safetensors"]), codec)
        sound = _sound(files)
        facts |= {"caption": files["txt"].decode(), "source": json.loads(files["json"]).get("source_uri")}
    except _UNREADABLE as error:
        raise EchoForgeError(
            f"sample {found} of '{dataset}' cannot be decoded ({type(error).__name__}: {one_line(error)}); "
            "`shards verify` says what is damaged."
        ) from error
    tensors = (TensorEntry(**item) for item in row["tensors"][0].as_py())
    facts |= {tensor.name: f"{tensor.dtype} {list(tensor.shape)}" for tensor in tensors}
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    video, picture = folder / f"{found}.mp4", folder / f"{found}.png"
    write_video(video, rows[0], sound)
    storage.write_bytes(str(picture), _png(rows))
    return Inspection(video, picture, facts)


_UNREADABLE = (SafetensorError, KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError)
"""What decoding raises when a sample holds something else than `shard` writes (RecursionError is a RuntimeError)."""


def _pictures(tensors: dict[str, torch.Tensor], codec: Codec) -> list[np.ndarray]:
    """What the rows of the picture show, uint8 [F, H, W, 3] each; the decoded video first."""
    latents = tensors["latents"].float()
    frames = _decode(codec, latents)
    rows = [frames]
    mask4 = torch.zeros(4, *latents.shape[1:])
    if "cond_i2v" in tensors:
        rows.append(
            _decode(codec, conditions.condition("i2v", latents, i2v=tensors["cond_i2v"].float(), mask4=mask4)[4:])
        )
    if "cond_lip" in tensors:
        rows.append(_decode(codec, tensors["cond_lip"].float()))
    return [*rows, _with_boxes(frames, tensors)]


def _find(dataset: str, sample_id: str) -> pa.Table:
    """The one row of the index whose id begins so."""
    table = read_index(dataset)
    found = table.filter(pc.starts_with(table["sample_id"], sample_id))
    if found.num_rows != 1:
        many = f"{found.num_rows} samples start" if found.num_rows else "no sample starts"
        raise EchoForgeError(f"{many} with '{sample_id}' in '{dataset}'; ids are in the column sample_id of its index.")
    return found


def _decode(codec: Codec, latents: torch.Tensor) -> np.ndarray:
    return pixels.to_bytes(codec.decode(latents[None])[0])


def _with_boxes(frames: np.ndarray, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    marked = frames.copy()
    for name, colour in (("face_boxes", (0, 255, 0)), ("mouth_boxes", (255, 0, 0))):
        grid = masks.box_grid(tensors[name], len(frames), *frames.shape[1:3])
        area = masks.grid_to_pixels(grid, *frames.shape[1:3]).numpy()
        marked[area] = (0.7 * marked[area] + 0.3 * np.array(colour)).astype(np.uint8)
    return marked


def _sound(files: dict[str, bytes]) -> np.ndarray | None:
    import soundfile

    return soundfile.read(io.BytesIO(files["flac"]), dtype="float32")[0] if "flac" in files else None


def _png(rows: list[np.ndarray]) -> bytes:
    from PIL import Image

    chosen = np.linspace(0, len(rows[0]) - 1, COLUMNS).round().astype(int)
    picture = np.concatenate([np.concatenate(list(row[chosen]), axis=1) for row in rows], axis=0)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()
