"""Processes are told apart, also when an id is given again."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

from configs.runtime import processes


def test_a_process_lives_until_it_ends_and_another_with_its_id_is_another() -> None:
    me = processes.current()
    assert processes.lives(me) is True
    assert processes.lives(dataclasses.replace(me, started=me.started + 1)) is False
    child = subprocess.Popen(
        [sys.executable, "-c", "from configs.runtime.processes import current as c; print(vars(c())); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    other = processes.Process(**eval(child.stdout.readline()))
    assert other != me
    assert processes.lives(other) is True
    child.communicate("\n")
    assert processes.lives(other) is False


def test_of_other_machines_and_containers_nothing_is_known() -> None:
    me = processes.current()
    assert processes.lives(dataclasses.replace(me, host="elsewhere")) is None
    assert processes.lives(dataclasses.replace(me, space="another container")) is None
