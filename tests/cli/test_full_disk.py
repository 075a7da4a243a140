"""A full disk, a read-only one: one sentence with the file or the folder; with room the same command ends as it should.

Real small file systems, in a name space of their own (user_namespaces(7)).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import COMMANDS, ROOT

from configs.errors import EchoForgeError
from configs.runtime import disk

pytestmark = pytest.mark.timeout(900)
HERE = Path(__file__).resolve().parent

SCRIPT = """
import contextlib, io, json, subprocess, sys
from pathlib import Path
from commands import COMMANDS, command, here, prepared
from configs.runtime import disk
outputs, mount = Path(sys.argv[1]), Path(sys.argv[2])
real_check = disk.check_room

def shell(*words):
    subprocess.run(words, check=True)

def attempt(which, out):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = here(command(which, outputs, out))
    return code, [line for line in said.getvalue().splitlines() if "error:" in line or "Traceback" in line]

def used(folder):
    return sum(p.stat().st_size + 4096 for p in folder.rglob("*"))

for which in sys.argv[3:]:
    found = {"which": which}
    whole = prepared(which, outputs, Path(f"{mount}-{which}"))
    before = used(whole)
    assert attempt(which, whole)[0] == 0
    expected, after = COMMANDS[which].result(whole), used(whole)
    out = mount / "out"
    # full before the work: the check says so
    shell("mount", "-t", "tmpfs", "-o", f"size={before + 500_000}", "none", mount)
    prepared(which, outputs, out)
    found["early"] = attempt(which, out)
    # full in the middle
    disk.check_room = lambda *_: None
    found["late"] = []
    for share in (0.2, 0.8):
        shell("umount", "-l", mount)
        shell("mount", "-t", "tmpfs", "-o", f"size={max(4096, int(before + share * (after - before)))}", "none", mount)
        prepared(which, outputs, out)
        found["late"].append(attempt(which, out))
    left = [str(p) for p in out.rglob(".*") if p.suffix in (".tmp", ".part")]
    disk.check_room = real_check
    shell("mount", "-o", "remount,size=500m", mount)
    again = attempt(which, out)
    found |= {"left": left, "again": again, "same": again[0] == 0 and COMMANDS[which].result(out) == expected}
    shell("umount", "-l", mount)
    # read-only
    shell("mount", "-t", "tmpfs", "-o", "size=500m", "none", mount)
    prepared(which, outputs, out)
    shell("mount", "-o", "remount,ro", mount)
    found["read-only"] = attempt(which, out)
    shell("umount", "-l", mount)
    print("FOUND", json.dumps(found), flush=True)
"""


def attempts(outputs: Path, mount: Path, *names: str) -> list[dict[str, Any]]:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a file system of his own")
    mount.mkdir()
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
    words = ["unshare", "-rm", sys.executable, "-c", SCRIPT, str(outputs), str(mount), *names]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line.removeprefix("FOUND ")) for line in done.stdout.splitlines() if line.startswith("FOUND")]


def check(found: dict[str, Any]) -> None:
    first, second = found["late"]
    # What takes the place of as much needs no more room; what was kept of the first attempt may leave it enough.
    assert first[0] == 2 or found["which"] == "redecide", found
    for code, lines in (found["early"], *(late for late in (first, second) if late[0])):
        assert code == 2 and len(lines) == 1 and lines[0].startswith("error:"), found
        assert any(word in lines[0] for word in ("no space is left", "are free; make room")), found
    assert "are free; make room" in found["early"][1][0], found
    code, lines = found["read-only"]
    assert code == 2 and len(lines) == 1 and "read-only file system" in lines[0], found
    assert not found["left"] and found["same"], found


def test_commands_end_in_a_sentence_and_go_on_with_room(outputs: Path, tmp_path: Path) -> None:
    found = attempts(outputs, tmp_path / "mount", "train", "generate", "split")
    assert len(found) == 3
    for one in found:
        check(one)


@pytest.mark.slow
@pytest.mark.parametrize("which", sorted({*COMMANDS} - {"train", "generate", "split", "verify"}))
def test_every_command_ends_in_a_sentence_and_goes_on_with_room(which: str, outputs: Path, tmp_path: Path) -> None:
    check(attempts(outputs, tmp_path / "mount", which)[0])


def limited(code: str, folder: Path) -> str:
    """Run ``code`` where no file may grow above 64 KiB, which is what a full disk is to a library. What it printed."""
    head = (
        "import resource, torch, pyarrow as pa, pyarrow.parquet as pq, numpy as np; from configs.runtime import disk\n"
    )
    head += "from pathlib import Path; from safetensors.torch import save_file\n"
    head += "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)); numbers = np.random.default_rng(0).random(1 << 18)\n"
    done = subprocess.run(
        [sys.executable, "-c", head + code], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_libraries_say_of_a_full_disk_is_understood(tmp_path: Path) -> None:
    """Never of a device: safetensors and pyarrow replace or remove the file that they cannot write."""
    said = limited(
        "for write in (lambda p: p.write_bytes(numbers.tobytes()), lambda p: pq.write_table(pa.table({'x': numbers}), p),\n"
        "              lambda p: save_file({'x': torch.from_numpy(numbers)}, p)):\n"
        "    try:\n"
        "        with disk.replacing('big') as part: write(part)\n"
        "    except disk.Refused as error: print(error)\n",
        tmp_path,
    )
    assert said.count("'big' could not be written: it would be larger than files may be here") == 3, said
    assert not any(tmp_path.iterdir())
    with (
        pytest.raises(disk.Refused, match="no space is left; free some"),
        disk.refused("big"),
        Path("/dev/full").open("wb") as file,
    ):
        file.write(b"x" * 65536)
    with pytest.raises(ZeroDivisionError), disk.replacing(tmp_path / "new" / "file") as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert not any((tmp_path / "new").iterdir())
    disk.check_room("s3://bucket/anything", 10**18, "a lot")
    with pytest.raises(EchoForgeError, match=r"a lot needs about 1000000000\.0 GB at .*, where .* are free"):
        disk.check_room(tmp_path / "not" / "there", 10**18, "a lot")
