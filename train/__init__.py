"""Learning from shards: order, loader, objectives, stages, EMA, checkpoints. No video, no Ray."""

import configs  # noqa: F401 - first of all, so that nothing imported later reports or looks anything up unasked
