"""Checkpoints: written whole or not at all, verified, read without unpickling."""
