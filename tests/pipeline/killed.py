"""Kills a command with SIGKILL before its first change of a file, before its second, … and notes what is there then.

Run as a program in a process of its own: it forks once per moment, so that the imports are paid once::

    python killed.py redecide|curate|relocate FOLDER EVERY

``FOLDER/before`` is a catalog as the command finds it; ``FOLDER/<n>`` gets what is left after the n-th kill, and
``FOLDER/first`` what an undisturbed run gives. EVERY: only each so-many-th change. Prints how many kills there were.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pyarrow as pa

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from configs import schema  # noqa: E402
from curation.schema import CLIPS, VIDEOS  # noqa: E402
from pipeline.catalog import queries, tables, writer  # noqa: E402
from pipeline.catalog.run_record import RunRecord  # noqa: E402
from pipeline.catalog.summary import describing  # noqa: E402

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


def redecide(root: str) -> None:
    """Another threshold."""
    queries.redecide(root, schema.load("tiny", ["decide.min_sharpness=0.3"]))


def curate(root: str) -> None:
    """The rows of the catalog, fewer to a file and with another threshold."""
    config = schema.load("tiny", ["decide.min_sharpness=0.3"])
    videos = tables.read(root, "videos", VIDEOS)
    clips = tables.read(root, "clips", CLIPS)

    def pieces(columns: list[str]) -> list[pa.Table]:
        return [clips.select(columns)]

    writer.write(
        root, videos, lambda columns: iter(pieces(columns)), config.curation, 1, describing(config, RunRecord())
    )


def relocate(root: str) -> None:
    """The files are elsewhere."""
    queries.relocate(root, "/old", str(Path(root).parent / "media"))


def _die_at(moment: int) -> None:
    counted = 0

    def look(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal counted
        if event in CHANGES or (event == "open" and str(arguments[1]) in ("w", "wb", "r+b", "xb")):
            counted += 1
            if counted == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def main(command: str, folder: Path, every: int) -> int:
    """How many kills there were until the command came to its end."""
    shutil.copytree(folder / "before", folder / "first")
    globals()[command](str(folder / "first"))  # imports
    for number in range(1, 1000):
        root = folder / str(number)
        shutil.copytree(folder / "before", root)
        child = os.fork()
        if not child:
            _die_at(1 + every * (number - 1))
            globals()[command](str(root))
            os._exit(0)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            return number - 1
    raise AssertionError("it never came to its end")


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
