"""Typed configuration: the presets as package data, and the strict loader that turns them into dataclasses."""

from configs.runtime import unasked

unasked.forbid()
