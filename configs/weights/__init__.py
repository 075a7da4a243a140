"""Every pretrained file that a preset can name: where it comes from, and whether it is here.

Nothing is fetched behind the user's back: a command that lacks a file stops with one sentence (:func:`locate`), and
``python cli.py weights fetch`` is the only thing that downloads (:mod:`configs.weights.download`).
"""

from configs.weights.keys import KEYS
from configs.weights.places import Need, folder, locate, needs, require, resolve

__all__ = ["KEYS", "Need", "folder", "locate", "needs", "require", "resolve"]
