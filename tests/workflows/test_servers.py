"""What every server of pages must do, asked from outside over sockets: the page of `negatives review` and of `play`.

A server is started by its command (one line in `COMMANDS`) and prints one address. Below that address lie the page (''),
the videos (``videos/NAME``) and, for the review, ``reviews``, where rows are posted as a JSON list. Nothing else is
assumed, so that another server can be put in the place of these.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import reviews
from configs.dataset_schema import NEGATIVES
from train.data import negatives

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"review": ["negatives", "review", "{run}"], "play": ["play", "{negatives}/videos"]}
VIDEO = bytes(range(256)) * 512  # 128 KiB: its bytes do not matter, its ranges do
LARGE = 64 << 20  # more than the buffers of a connection hold
SECRET = b"outside of the folder"
ROW = {"negative_id": "n0", "verdict": "fine", "reviewer": "ann"}


@dataclass(frozen=True)
class Service:
    name: str
    folder: Path
    host: str
    port: int
    root: str  # path of the page

    @property
    def own(self) -> dict[str, str]:
        return {"Host": f"{self.host}:{self.port}"}

    def connect(self, seconds: float = 30) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=seconds)

    def ask(self, name: str = "", method: str = "GET", *, path: str | None = None, body: bytes | None = None,
            **headers: str | None) -> Answer:  # fmt: skip
        """One request; headers with None are left out, those with _ for - replace the right ones."""
        given = {key.replace("_", "-"): value for key, value in headers.items()}
        lines = self.own | ({} if body is None else {"Content-Length": str(len(body))}) | given
        head = "".join(f"{key}: {value}\r\n" for key, value in lines.items() if value is not None)
        first = f"{method} {self.root + name if path is None else path} HTTP/1.1\r\n"
        return self.send((first + head + "\r\n").encode("latin-1") + (body or b""), method)

    def send(self, data: bytes, method: str = "GET") -> Answer:
        """Bytes as they are, and what is answered."""
        with closing(self.connect()) as connection:
            connection.sendall(data)
            return answer(connection, method)

    def post(self, rows: Any, **headers: str | None) -> Answer:
        body = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
        return self.ask("reviews", "POST", body=body, **({"Content_Type": "application/json"} | headers))


@dataclass(frozen=True)
class Answer:
    status: int  # 0: the connection was closed without an answer
    headers: http.client.HTTPMessage | dict[str, str]
    body: bytes


def answer(connection: socket.socket, method: str = "GET") -> Answer:
    response = http.client.HTTPResponse(connection, method=method)
    try:
        response.begin()
        return Answer(response.status, response.headers, response.read())
    except (http.client.BadStatusLine, ConnectionError):
        return Answer(0, {}, b"")


def gathered(run: Path) -> Path:
    """A run whose samples are traps but for the first."""
    folder = negatives.folder(run, "stage")
    (folder / "videos" / "deep").mkdir(parents=True)
    (folder / "videos" / "n0.mp4").write_bytes(VIDEO)
    (folder / "videos" / "deep" / "ü n.mp4").write_bytes(VIDEO)
    with (folder / "videos" / "large.mp4").open("wb") as file:
        file.truncate(LARGE)
    outside = run / "outside.mp4"
    outside.write_bytes(SECRET)
    (folder / "videos" / "link.mp4").symlink_to(outside)
    (folder / "linked").symlink_to(run)
    os.mkfifo(folder / "videos" / "pipe.mp4")
    places = [
        "videos/n0.mp4", "videos/deep/ü n.mp4", "videos/large.mp4", "videos/link.mp4", "videos/pipe.mp4",
        "linked/outside.mp4", "../../outside.mp4", str(outside), "/dev/zero", "videos", "videos/gone.mp4", "", None,
    ]  # fmt: skip
    rows = [{"negative_id": f"n{n}", "sample_id": "s", "task": "i2v", "video_path": place, "flags": []}
            for n, place in enumerate(places)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=NEGATIVES), folder / negatives.SAMPLES_FILE)
    return folder


@pytest.fixture(scope="module", params=COMMANDS)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    run = tmp_path_factory.mktemp("run")
    folder = gathered(run)
    command = [part.format(run=run, negatives=folder) for part in COMMANDS[request.param]]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *command, "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    found = next((m for line in process.stdout if (m := re.search(r"http://\S+", line))), None)
    assert found is not None, "no address was printed"
    parts = urlsplit(found[0])
    assert parts.hostname and parts.port
    yield Service(request.param, folder, parts.hostname, parts.port, parts.path)
    assert process.poll() is None, "the server ended"
    process.kill()
    process.wait()


only_review = pytest.mark.parametrize("service", ["review"], indirect=True)
"""For tests of what is posted."""


def recorded(service: Service) -> list[dict[str, Any]]:
    return reviews.read(service.folder).to_pylist()


def test_every_answer_has_a_length_and_says_what_a_browser_may_not_do(service: Service) -> None:
    got = [
        (200, service.ask()), (200, service.ask(method="HEAD")), (200, service.ask("videos/n0.mp4")),
        (200, service.ask("videos/n0.mp4", "HEAD")), (206, service.ask("videos/n0.mp4", Range="bytes=1-2")),
        (416, service.ask("videos/n0.mp4", Range="bytes=999999-")), (404, service.ask("nothing")),
        (405, service.ask(method="DELETE")), (405, service.ask(method="POST", body=b"x")),
        (403, service.ask(Host="evil.example")), (400, service.send(b"nonsense\r\n\r\n")),
    ]  # fmt: skip
    for status, found in got:
        assert found.status == status
        policy = found.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert not re.search(r"script-src[^;]*('unsafe-inline'|'unsafe-eval'|\*|https?:)", policy)
        assert found.headers["X-Content-Type-Options"] == "nosniff"
        assert found.headers["Referrer-Policy"] in ("no-referrer", "same-origin")
        assert "no-store" in found.headers["Cache-Control"] and int(found.headers["Content-Length"]) >= 0
    assert got[0][1].headers["Content-Type"] == "text/html; charset=utf-8"
    assert [got[1][1].body, got[3][1].body] == [b"", b""]
    assert got[3][1].headers["Content-Length"] == str(len(VIDEO)) and got[2][1].body == VIDEO
    assert got[2][1].headers["Content-Type"] == "video/mp4"


FOREIGN: list[dict[str, str | None]] = [
    {"Host": "evil.example"}, {"Host": "evil.example:{port}"}, {"Host": "127.0.0.1.evil.example"}, {"Host": None},
    {"Host": "localhost@evil.example"}, {"Host": ""}, {"Host": "0.0.0.0:{port}"}, {"Host": "127.0.0.1:{port}\r\nHost: evil"},
    {"Origin": "http://evil"}, {"Origin": "null"}, {"Origin": "https://127.0.0.1:{port}"}, {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://127.0.0.1:{port}.evil"}, {"Origin": "http://127.0.0.1:{port}\r\nOrigin: http://evil"},
    {"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"}, {"Origin": ""},
    {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
]  # fmt: skip


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_another_name_neither_read_nor_write(service: Service, headers: dict[str, str | None]) -> None:
    given = {key: value and value.format(port=service.port) for key, value in headers.items()}
    for name in ("", "videos/n0.mp4", "data.json"):
        found = service.ask(name, **given)
        assert found.status in (400, 403, 421) and VIDEO[:99] not in found.body and b"n0" not in found.body
    before = recorded(service)
    assert service.post([ROW], **given).status in (400, 403, 405, 421)
    assert recorded(service) == before


def test_the_person_reads_and_writes_through_every_own_name_and_a_tunnel(service: Service) -> None:
    for host in (f"127.0.0.1:{service.port}", f"localhost:{service.port}", f"[::1]:{service.port}", "localhost:9000"):
        assert service.ask(Host=host).status == 200
        assert service.ask(Host=host, Sec_Fetch_Site="same-origin", Origin=f"http://{host}").status == 200
        if service.name == "review":
            assert service.post([ROW], Host=host, Origin=f"http://{host}", Sec_Fetch_Site="same-origin").status == 200
    # a link in a chat or a notebook
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert service.ask(**followed, Sec_Fetch_Dest="document").status == 200
    assert service.ask(**followed, Sec_Fetch_Dest="iframe").status == 403


def test_other_users_of_the_machine_do_not_know_the_address(service: Service) -> None:
    assert len(service.root) > 20, "the address holds a secret"
    wrong = service.root[:-3] + ("AA/" if service.root[-3:-1] != "AA" else "BB/")
    before = recorded(service)
    for root in ("/", wrong, "//", service.root.lower() + "x", "/" + quote(service.root, safe="")):
        for name in ("", "videos/n0.mp4", "data.json", "reviews"):
            found = service.ask(path=root + name)
            assert found.status in (400, 403, 404) and b"n0" not in found.body
        assert service.ask(path=root + "reviews", method="POST", body=json.dumps([ROW]).encode(),
                           Content_Type="application/json").status in (400, 403, 404, 405)  # fmt: skip
    assert recorded(service) == before


@pytest.mark.parametrize(
    "name",
    ["videos/link.mp4", "videos/pipe.mp4", "linked/outside.mp4", "videos/../linked/outside.mp4", "../../outside.mp4",
     "videos/../../../outside.mp4", "videos/%2e%2e/%2e%2e/%2e%2e/outside.mp4", "videos/%252e%252e/x.mp4",
     "videos/..%2f..%2f..%2foutside.mp4", "videos/..\\..\\..\\outside.mp4", "videos/..%5c..%5coutside.mp4",
     "videos/n0.mp4%00.mp4", "videos/%00", "/dev/zero", "%2fdev%2fzero", "videos//dev/zero", "videos", "videos/",
     "videos/n0.mp4/", "videos/./n0.mp4", "samples.parquet", "reviews/x.parquet", "videos/gone.mp4", "videos/" + "x" * 5000,
     "videos/" + "a/" * 20_000, "%", "%zz", "videos/\xff.mp4", "videos/%ff.mp4", "~root/.profile"],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder_or_to_what_is_no_file(service: Service, name: str) -> None:
    for method in ("GET", "HEAD"):
        found = service.ask(name, method)
        assert found.status in (400, 403, 404) and SECRET not in found.body
    assert service.ask("videos/n0.mp4").body == VIDEO


N = len(VIDEO)


@pytest.mark.parametrize(
    ("asked", "status", "span"),
    [("bytes=0-", 206, (0, N)), ("bytes=0-0", 206, (0, 1)), ("bytes=5-9", 206, (5, 10)), ("bytes=-7", 206, (N - 7, N)),
     (f"bytes=-{N * 2}", 206, (0, N)), (f"bytes=9-{N * 9}", 206, (9, N)), (f"bytes={N - 1}-", 206, (N - 1, N)),
     (f"bytes={N}-", 416, None), ("bytes=-0", 416, None), ("bytes=999999999999999-", 416, None),
     ("bytes=9-5", 200, (0, N)), ("bytes=-", 200, (0, N)), ("bytes=a-b", 200, (0, N)), ("bytes", 200, (0, N)),
     ("lines=0-5", 200, (0, N)), ("bytes=1.5-3", 200, (0, N)), ("bytes=٣-", 200, (0, N)), ("bytes=--5", 200, (0, N)),
     ("bytes=0-1,5-6", 200, (0, N)), ("bytes=" + ",".join(["0-"] * 1000), 200, (0, N)), ("bytes=" + "9" * 5000 + "-", 200, (0, N))],
)  # fmt: skip
def test_ranges_of_a_video(service: Service, asked: str, status: int, span: tuple[int, int] | None) -> None:
    found = service.ask("videos/n0.mp4", Range=asked.encode().decode("latin-1"))
    assert found.status == status
    if span is None:
        assert found.headers["Content-Range"] == f"bytes */{N}"
    else:
        assert found.body == VIDEO[slice(*span)]
        if status == 206:
            assert found.headers["Content-Range"] == f"bytes {span[0]}-{span[1] - 1}/{N}"
    other = service.ask(f"videos/deep/{quote('ü n.mp4')}", Range=asked.encode().decode("latin-1"))
    assert (other.status, other.body) == (found.status, found.body)


HOST = "Host: 127.0.0.1\r\n"


@pytest.mark.parametrize(
    ("data", "statuses"),
    [("\r\n\r\n", {0, 400}), ("GET\r\n\r\n", {400}), (f"GET {{root}}\r\n{HOST}\r\n", {400, 505}),
     (f"GET {{root}} HTTP/1.1 x\r\n{HOST}\r\n", {400}), (f"GET {{root}} HTTP/9.9\r\n{HOST}\r\n", {400, 505}),
     (f"GET {{root}} HTTP/x\r\n{HOST}\r\n", {400}), (f"G\0T {{root}} HTTP/1.1\r\n{HOST}\r\n", {400, 405}),
     (f"BREW {{root}} HTTP/1.1\r\n{HOST}\r\n", {405, 501}), (f"OPTIONS * HTTP/1.1\r\n{HOST}\r\n", {400, 403, 405}),
     (f"__class__ {{root}} HTTP/1.1\r\n{HOST}\r\n", {400, 405}), ("CONNECT evil:80 HTTP/1.1\r\nHost: evil\r\n\r\n", {400, 403, 405}),
     (f"GET http://evil{{root}} HTTP/1.1\r\n{HOST}\r\n", {400, 403, 404}),
     (f"GET {{root}}{'x' * 70_000} HTTP/1.1\r\n{HOST}\r\n", {404, 414}),
     (f"GET {{root}} HTTP/1.1\r\n{HOST}X: {'x' * 70_000}\r\n\r\n", {200, 400, 431}),
     (f"GET {{root}} HTTP/1.1\r\n{HOST}" + "X: y\r\n" * 500 + "\r\n", {200, 400, 431}),
     (f"GET {{root}} HTTP/1.1\r\n{HOST}no colon\r\n\r\n", {400}), ("GET {root} HTTP/1.1\r\nHost : 127.0.0.1\r\n\r\n", {400, 403}),
     (f"POST {{root}}reviews HTTP/1.1\r\n{HOST}\r\n", {405, 411, 415}),
     *((f"POST {{root}}reviews HTTP/1.1\r\n{HOST}Content-Type: application/json\r\nContent-Length: {n}\r\n\r\n[]", statuses)
       for n, statuses in (("-1", {400, 405}), ("+2", {400, 405}), ("two", {400, 405}), ("", {400, 405, 411}), ("0x2", {400, 405}),
                           ("2\r\nContent-Length: 1", {400, 405}), ("2, 2", {400, 405}), ("9" * 5000, {400, 405, 413}),
                           (str(10**12), {405, 413}), ("٢", {400, 405}))),
     (f"POST {{root}}reviews HTTP/1.1\r\n{HOST}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
      "2\r\n[]\r\n0\r\n\r\n", {400, 405, 411, 501}),
     (f"POST {{root}}reviews HTTP/1.1\r\n{HOST}Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n[]", {400, 405, 415}),
     ("\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" * 40 + "\r\n\r\n", {0, 400}),  # https
     ("\0" * 100_000, {0, 400, 414})],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)  # fmt: skip
def test_malformed_requests_are_answered(service: Service, data: str, statuses: set[int]) -> None:
    before = recorded(service)
    with closing(service.connect()) as connection:
        connection.sendall(data.replace("{root}", service.root).encode("utf-8" if "٢" in data else "latin-1"))
        connection.shutdown(socket.SHUT_WR)
        assert answer(connection).status in statuses
    assert service.ask().status == 200 and recorded(service) == before


@only_review
def test_a_long_body_is_refused_before_it_is_sent_and_after(service: Service) -> None:
    assert service.post(b"[" + b" " * (3 << 20) + b"]").status == 413


@only_review
@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[1]", b"[null]", b"[[]]", b'"text"', b"null", b"[" * 500_000, b'{"a":' * 150_000, b"[NaN]", b"\xff\xfe[\0]\0",
     b"[]x", b"9" * 5000, *(json.dumps([ROW | change]).encode() for change in (
         {"verdict": "bad"}, {"verdict": ["fine"]}, {"verdict": None}, {"negative_id": "nowhere"}, {"negative_id": ["n0"]},
         {"negative_id": None}, {"negative_id": 7}, {"reviewer": ""}, {"reviewer": "  "}, {"reviewer": {}}, {"reviewer": "x" * 10_000},
         {"reviewer": "\ud800"}, {"note": "\udfff"}, {"note": "x" * 500_000}, {"note": 5}, {"issue": "colour"}, {"issue": []},
         {"frame_start": "3"}, {"frame_start": 1.5}, {"frame_start": True}, {"frame_start": -1}, {"frame_end": 0},
         {"frame_end": 2**40}, {"frame_start": 10**4000}, {"frame_start": [1]}, {"frame_start": float("nan")},
         {"frame_start": float("inf")})),
     b'[{"negative_id": "n0", "verdict": "fine", "reviewer": "ann", "frame_start": 1e999}]',
     json.dumps([ROW, ROW | {"verdict": "bad"}]).encode()],
    ids=lambda body: repr(body[:100]),
)  # fmt: skip
def test_a_body_that_is_no_review_is_refused_with_a_sentence(service: Service, body: bytes) -> None:
    before = recorded(service)
    found = service.post(body)
    assert found.status == 400 and 10 < len(found.body) < 500 and found.body.rstrip().endswith(b"."), found
    assert b"Traceback" not in found.body and b"object" not in found.body
    assert recorded(service) == before


@only_review
def test_the_time_is_the_servers(service: Service) -> None:
    start = datetime.now(UTC)
    texts = ("<!--<script>", "=1+1", "a\0b\x1b[31m", "ü\u2028", "  spaces  ")
    for note in texts:
        assert (
            service.post([ROW | {"reviewer": "eve", "time": "9999-01-01T00:00:00Z", "note": note, "more": [1]}]).status
            == 200
        )
    rows = [row for row in recorded(service) if row["reviewer"] == "eve"]
    assert [row["note"] for row in sorted(rows, key=lambda row: row["time"])] == [text.strip() for text in texts]
    assert all(start <= row["time"] <= datetime.now(UTC) + timedelta(seconds=1) for row in rows)


@only_review
def test_posts_at_once_are_all_recorded(service: Service) -> None:
    before = len(recorded(service))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: service.post([ROW | {"reviewer": f"p{n}"}] * 2).status, range(16)))
    assert found == [200] * 16 and len(recorded(service)) == before + 32


def test_the_slow_do_not_keep_the_others_waiting(service: Service) -> None:
    """Headers and bodies that never end, videos that nobody reads, more connections than a server needs."""
    head = f"POST {service.root}reviews HTTP/1.1\r\nHost: {service.host}:{service.port}\r\nContent-Type: application/json\r\n"
    unfinished = [
        f"GET {service.root} HTTP/1.1\r\nHost:", head + "Content-Length: 500\r\n\r\n[", "G",
        f"GET {service.root}videos/large.mp4 HTTP/1.1\r\nHost: {service.host}:{service.port}\r\n\r\n",
    ]  # fmt: skip
    with _many(service, unfinished * 50):
        start = time.monotonic()
        assert service.ask("videos/n0.mp4").body == VIDEO
        if service.name == "review":
            assert service.post([ROW]).status == 200
        assert time.monotonic() - start < 8, "less than what a slow request is given"


@pytest.mark.slow
def test_the_slow_are_ended(service: Service) -> None:
    """Also where a byte comes every second."""
    start = time.monotonic()
    with _many(service, [f"GET {service.root} HTTP/1.1\r\nX-Slow: "] * 3) as slow:
        alive = list(slow.connections)
        while alive and time.monotonic() - start < 60:
            time.sleep(1)
            for connection in list(alive):
                try:
                    connection.sendall(b"x")
                except OSError:
                    alive.remove(connection)
    assert not alive and time.monotonic() - start < 30


class _many:
    """Connections that sent something and then nothing."""

    def __init__(self, service: Service, beginnings: list[str]) -> None:
        self.connections = []
        for beginning in beginnings:
            connection = service.connect()
            connection.sendall(beginning.encode())
            self.connections.append(connection)

    def __enter__(self) -> _many:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self.connections:
            connection.close()
