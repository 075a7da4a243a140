"""Which steps are safe to take: a non-finite or exploding gradient skips the step, too many in a row stop the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from configs.errors import EchoForgeError
from train.config import OptimConfig

_MEMORY = 0.98  # of the running mean of the gradient norm: about the last fifty steps
_SETTLE = 20  # steps before the mean is trusted


@dataclass
class Guard:
    """Running gradient norm and skips in a row. Part of the checkpoint, so that a resumed run decides the same.

    The norm is the global one, equal on all ranks, so all ranks decide alike without another collective.
    """

    cfg: OptimConfig
    mean: float = 0.0
    seen: int = 0
    skipped_in_row: int = 0
    skipped: int = 0

    def admit(self, grad_norm: float, step: int) -> bool:
        """May the optimizer take this step?

        Raises:
            EchoForgeError: ``max_skips`` steps in a row were refused.
        """
        reason = self._refuse(grad_norm)
        if reason is None:
            self.mean = grad_norm if not self.seen else _MEMORY * self.mean + (1 - _MEMORY) * grad_norm
            self.seen += 1
            self.skipped_in_row = 0
            return True
        self.skipped += 1
        self.skipped_in_row += 1
        if self.skipped_in_row >= self.cfg.max_skips:
            raise EchoForgeError(
                f"training stopped at step {step}: {self.skipped_in_row} steps in a row had {reason}; "
                "lower optim.lr, or look at the samples of these steps."
            )
        return False

    def _refuse(self, grad_norm: float) -> str | None:
        if not math.isfinite(grad_norm):
            return "a gradient that is not finite"
        if self.cfg.skip_factor and self.seen >= _SETTLE and grad_norm > self.cfg.skip_factor * self.mean:
            return f"a gradient norm over {self.cfg.skip_factor:g} times its mean"
        return None

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"mean": self.mean, "seen": self.seen, "in_row": self.skipped_in_row, "skipped": self.skipped}

    def load(self, state: dict[str, float]) -> None:
        """Continue from :meth:`state`.

        Raises:
            EchoForgeError: a number is missing, or is none.
        """
        try:
            self.mean, self.seen = float(state["mean"]), int(state["seen"])
            self.skipped_in_row, self.skipped = int(state["in_row"]), int(state["skipped"])
        except (KeyError, ValueError, OverflowError) as error:
            raise EchoForgeError(
                f"progress.json of the checkpoint has no usable 'guard' ({error}); delete this checkpoint, or copy it anew."
            ) from error
