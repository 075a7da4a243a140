"""Datasets of shards: planned, encoded, indexed, edited, verified."""
