"""Learning from shards: order, loader, objectives, stages, EMA, checkpoints. No video, no Ray."""
