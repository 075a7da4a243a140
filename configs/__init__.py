"""Typed configuration: the presets as package data, and the strict loader that turns them into dataclasses."""

from configs import unasked

unasked.forbid()
