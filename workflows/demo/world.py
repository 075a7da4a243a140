"""The puppet videos of the demo, and what is true of each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from configs.dataset_schema import INDEX_FILE
from configs.schema import Config
from curation import puppets
from curation.media.clip_reader import read_clip
from curation.puppets import PuppetFile
from curation.schema import VIDEOS
from pipeline.catalog.tables import read as read_catalog

_UNREADABLE = ("truncated", "damaged")


@dataclass(frozen=True)
class World:
    """A folder of puppet videos.

    Attributes:
        puppets: name of the file → what the generator knows of it.
    """

    folder: Path
    puppets: Mapping[str, PuppetFile]

    def path(self, name: str) -> Path:
        """Where the video ``name`` is."""
        return self.folder / name

    def clean(self, dataset: str, catalog: str, splits: Sequence[str]) -> list[str]:
        """Puppets without a fault in the given splits of a dataset, in their order."""
        index = pq.read_table(Path(dataset) / INDEX_FILE, columns=["video_id", "split"]).to_pandas()
        names = read_catalog(catalog, "videos", VIDEOS, ["video_id", "source_uri"]).to_pandas()
        names["file"] = names["source_uri"].map(lambda uri: Path(uri).name)
        joined = index.drop_duplicates("video_id").merge(names, on="video_id")
        chosen = [
            str(file)
            for split in splits
            for file in sorted(joined[joined["split"] == split]["file"])
            if file in self.puppets and not self.puppets[file].fault
        ]
        return list(dict.fromkeys(chosen))

    def first_frames(self, length: int, size: int) -> dict[str, np.ndarray]:
        """The first ``length`` frames, uint8 [F, size, size, 3], of every puppet that is long enough and whole."""
        return {
            name: read_clip(str(self.path(name)), 0, length, width=size, height=size).frames
            for name, puppet in self.puppets.items()
            if puppet.frames >= length and puppet.fault not in _UNREADABLE
        }


def draw_world(folder: Path, count: int, config: Config) -> World:
    """``count`` puppets in ``folder``: those that are there, or new ones."""
    files = puppets.read_manifest(folder) if (folder / "manifest.parquet").is_file() else []
    if len(files) != count:
        files = puppets.make(folder, count, config.seed, config.curation.puppets)
    return World(folder, {file.file: file for file in files})
