"""Download pretrained files: `weights fetch` alone does so, and every file appears whole or not at all."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

from configs.errors import EchoForgeError
from configs.runtime import disk, stopping
from configs.runtime.locks import locked
from configs.weights.places import folder
from configs.weights.registry import WeightFile

_BLOCK = 1 << 20
_TIMEOUT_S = 60


def fetch(file: WeightFile, report: Callable[[int, int], None] | None = None) -> Path:
    """Download one file to its place below the weights folder; whole or not at all.

    What an interrupted download left (``….part``) is continued where the server can.

    Args:
        report: called with (bytes so far, bytes in all or 0).

    Raises:
        Locked: another process fetches into the same folder.
        Refused: the disk is too small, full or read-only; what came is kept.
        EchoForgeError: the source cannot be reached, or what came has another size or digest.
    """
    target = folder() / file.path
    with locked(target.parent, "weights folder", "weights fetch"):
        _fetch(file, target, report)
    return target


def _fetch(file: WeightFile, target: Path, report: Callable[[int, int], None] | None) -> None:
    part = target.with_name(target.name + ".part")
    by_hand = f"get {file.address} by hand and put it at {target.absolute()}"
    try:
        have = part.stat().st_size if part.exists() else 0
        what = f"{file.name} in the weights folder ($ECHOFORGE_WEIGHTS)"
        disk.check_room(target.parent, (file.bytes or 0) - have, what)
        if not (file.bytes and have == file.bytes):
            _download(file.address, part, have, report)
    except (OSError, ValueError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
        raise EchoForgeError(f"{file.name} could not be fetched ({_reason(error)}); {by_hand}.") from error
    if (state := file.check(part)) in ("size differs", "digest differs"):
        part.unlink()
        raise EchoForgeError(
            f"{file.name} came damaged, or its publisher changed it ({state}); nothing was kept: try again, or {by_hand}."
        )
    part.replace(target)


def _download(address: str, part: Path, have: int, report: Callable[[int, int], None] | None) -> None:
    """Bring ``part``, of which ``have`` bytes are there, to its full length."""
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if not (have and error.code == 416):  # the part is not the beginning of what the server has
            raise
        have, response = 0, urllib.request.urlopen(address, timeout=_TIMEOUT_S)
    with response, disk.refused(part):
        done = have if getattr(response, "status", None) == 206 else 0
        rest = int(response.headers.get("Content-Length") or 0)
        total = done + rest if rest else 0
        with part.open("ab" if done else "wb") as out:
            while block := response.read(_BLOCK):
                stopping.check("what came of the download is kept")
                out.write(block)
                done += len(block)
                if report:
                    report(done, total)
    if total and done != total:
        raise OSError(f"the connection ended after {done} of {total} bytes")


def fetch_all(files: Iterable[WeightFile], begin: Callable[[WeightFile], Callable[[int, int], None]]) -> list[Path]:
    """Fetch every file; one that fails does not keep the others from coming, and a dead host is asked once.

    Args:
        begin: called before each file; gives what :func:`fetch` reports to.

    Raises:
        EchoForgeError: some did not come; the sentence says which, why, and what to do.
    """
    came: list[Path] = []
    failed: list[tuple[WeightFile, EchoForgeError]] = []
    dead: dict[str, EchoForgeError] = {}
    for file in files:
        host = urllib.parse.urlsplit(file.address).netloc
        if host in dead:
            failed.append((file, dead[host]))
            continue
        try:
            came.append(fetch(file, begin(file)))
        except EchoForgeError as error:
            failed.append((file, error))
            if _unreachable(error.__cause__):
                dead[host] = error
    if len(failed) == 1:
        raise failed[0][1]
    if failed:
        names = ", ".join(file.name for file, _ in failed)
        cause = failed[0][1].__cause__
        reason = _reason(cause) if cause else str(failed[0][1]).rstrip(".")
        raise EchoForgeError(
            f"{len(failed)} files could not be fetched: {names} (the first: {reason}); run the same command again to go "
            "on, or get them elsewhere: `weights list --urls` gives their addresses and places."
        )
    return came


def _unreachable(error: BaseException | None) -> bool:
    """Did the host not answer at all?"""
    return isinstance(error, (urllib.error.URLError, TimeoutError)) and not isinstance(error, urllib.error.HTTPError)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{urllib.parse.urlsplit(error.url).netloc} answers {error.code} {error.reason}"
    inner = getattr(error, "reason", None) or error
    return str(getattr(inner, "strerror", None) or inner)
