"""The one exception a user is meant to read."""

from __future__ import annotations


class EchoForgeError(Exception):
    """Something a user can mend. The message is one sentence: what, where, and what to do about it.

    The command line prints it without a traceback and exits with :attr:`exit_code`: 2, as for a wrong command line, 3 for
    missing pretrained files, 4 for workers and Ray (``pipeline.engine.schedule.EngineError``).
    """

    exit_code = 2


class ConfigError(EchoForgeError):
    """A configuration key or value that the presets do not know."""


class MissingWeights(EchoForgeError):
    """A pretrained file that the chosen configuration needs is not on this machine."""

    exit_code = 3
