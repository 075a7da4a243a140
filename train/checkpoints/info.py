"""``run.json`` of a checkpoint: the run that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from configs import difference, strict
from configs.errors import EchoForgeError
from model.config import TransformerConfig
from train.checkpoints.files import REMEDY, Damaged

RUN_FILE = "run.json"


@dataclass(frozen=True)
class CheckpointInfo:
    """The run that made a checkpoint. What an older version did not write is None, or empty.

    Attributes:
        model, train: the configuration as it was saved.
        dataset_digest: of the samples that the run trains on.
        revision: of the code.
        digests: of the exported weights of a pinned checkpoint, by their kind.
    """

    model: Mapping[str, object] = field(default_factory=dict)
    train: Mapping[str, object] = field(default_factory=dict)
    preset: str | None = None
    seed: int | None = None
    dataset: str | None = None
    dataset_digest: str | None = None
    revision: str | None = None
    torch: str | None = None
    world_size: int | None = None
    device: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps(vars(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CheckpointInfo:
        """What the file says; entries of other versions are left out.

        Raises:
            Damaged: an entry has another form.
        """
        for name, what in (("model", "configuration"), ("train", "configuration"), ("digests", "digests")):
            if not isinstance(data.get(name, {}), dict):
                raise Damaged(f"{RUN_FILE} holds no {what} under '{name}'")
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})

    def check_transformer(self, cfg: TransformerConfig, what: str, preset: str | None) -> None:
        """Compare the network of the checkpoint with a configuration, before either is loaded.

        Args:
            what: begins the message.
            preset: where ``cfg`` comes from.

        Raises:
            EchoForgeError: another network; names the keys with both values, and the preset that made the checkpoint.
        """
        before, now = self.model.get("transformer"), strict.to_dict(cfg)
        if not isinstance(before, dict):
            raise EchoForgeError(f"{what}: its {RUN_FILE} does not say of which network it is; {REMEDY}.")
        if changes := difference.differences(before, now, "transformer"):
            why = difference.summary(changes, self.preset, preset)
            raise EchoForgeError(f"{what}: its network is another one ({why}); use --preset and --set of that run.")

    def check_same_run(self, now: CheckpointInfo, cfg: TransformerConfig, run: Path) -> None:
        """Raise EchoForgeError when the run was made with another network, seed or selection of samples than ``now``."""
        what = f"the run in {run} cannot continue"
        self.check_transformer(cfg, what, now.preset)
        remedy = "use what the run was made with, or give another --out"
        if self.seed != now.seed:
            raise EchoForgeError(f"{what}: its seed {self.seed} → {now.seed}; {remedy}.")
        if self.dataset_digest != now.dataset_digest:
            raise EchoForgeError(
                f"{what}: the samples that it trains on changed "
                f"(it began with dataset {self.dataset}; this is {now.dataset}); {remedy}."
            )
