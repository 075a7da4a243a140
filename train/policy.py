"""After which steps of a stage a run logs, validates, commits and pauses: functions of step numbers alone."""

from __future__ import annotations

from dataclasses import dataclass

from train.config import TrainConfig


@dataclass(frozen=True)
class StagePolicy:
    """Every method is asked about the number of steps done.

    Attributes:
        last: steps done at the end of the stage. What happens there happens whatever the policy says.
        until: steps done where the run is to pause; ``last`` where it is not.
    """

    cfg: TrainConfig
    last: int
    until: int

    def logs(self, done: int) -> bool:
        """Is a line written?"""
        return done % self.cfg.log.every == 0 or done in (self.last, self.until)

    def validates(self, done: int) -> bool:
        """Is the held-out loss taken?"""
        every = self.cfg.log.validate_every
        return bool(every) and done % every == 0 and done < self.last

    def pauses(self, done: int, asked: bool) -> bool:
        """Does the run stop before the end of the stage? ``asked``: somebody wants it to."""
        return done < self.last and (done >= self.until or asked)

    def commits(self, done: int) -> bool:
        """Is an unpinned checkpoint written?"""
        every = self.cfg.checkpoint.every
        return bool(every) and done % every == 0 and done < self.last

    def harms(self, loss: float, before: float | None) -> str | None:
        """Why the stage should end because of its held-out loss, or None; ``before``: at its start, if it was taken."""
        limit = self.cfg.objective.negative.ratio_stop
        if before is not None and limit and loss > limit * before:
            return f"the held-out loss rose from {before:.4f} to {loss:.4f}"
        return None
