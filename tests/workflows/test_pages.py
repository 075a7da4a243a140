"""Pages in a real browser: no text of strangers runs, ends a page or breaks it, and people can still work with them."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs import reviews, schema
from configs.dataset_schema import NEGATIVES
from curation import spreadsheet
from curation.report import page as report
from curation.report.content import RunFacts
from curation.review import page, tables
from curation.schema import CLIPS, VIDEOS
from pipeline.dataset import card
from workflows.demo import page as demo_page
from workflows.servers import play, review

RUN = "document.documentElement.dataset.ran=1"
EVIL = (
    "<!--<script>", f"</script><script>{RUN}</script>", f'"><img src=x onerror="{RUN}">', f"</title>\u2028';{RUN};//",
    f"<svg onload={RUN}>\0\u202e", f"{{{{ {RUN} }}}} ${{{RUN}}}", f"javascript:{RUN}", f"]]>--><iframe srcdoc='<script>parent.{RUN}'>",
)  # fmt: skip
FOUR_VIDEOS = """[...document.querySelectorAll('video')]
    .map(v => (v.preload = 'auto', v.readyState)).filter(state => state > 1).length >= 4"""


def video(path: Path) -> None:
    """A second of moving grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(25):
            picture = np.full((64, 64, 3), number * 10, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        out.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples whose every text is hostile, scores that are no numbers, and reviews of the same kind."""
    root = tmp_path_factory.mktemp("negatives")
    picture = io.BytesIO()
    Image.new("RGB", (96, 16), "teal").save(picture, "JPEG")
    places = ["videos/good.mp4", "videos/a b ü & '1'.mp4", f"javascript:{RUN}", "//evil.example/x.mp4"]
    for place in places[:2]:
        video(root / place)
    rows = [
        {
            "negative_id": f"n{number}", "stage": text, "sample_id": text, "task": text, "prompt": text, "seed": number,
            "flags": [{"issue": text, "severity": [np.nan, np.inf, 0.5][number % 3], "reason": text}],
            "scores": [{"name": text, "value": np.nan}, {"name": "__proto__", "value": np.inf}, {"name": "toString", "value": 1.0}],
            "real_quantiles": [{"name": text, "value": np.nan}], "thumbnail": picture.getvalue(),
            "video_path": places[number % len(places)],
        }
        for number, text in enumerate(EVIL)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=NEGATIVES), root / "samples.parquet")
    tables.add(root, [{"negative_id": f"n{number}", "verdict": "negative", "reviewer": text, "note": text}
                      for number, text in enumerate(EVIL)])  # fmt: skip
    return root


@contextmanager
def running(server: Any) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def harmless(browser: Any) -> None:
    assert browser.run("document.documentElement.dataset.ran") is None, "a script of a stranger ran"
    assert browser.run("document.querySelectorAll('iframe,object,embed').length") == 0
    assert not [line for line in browser.console if "Uncaught" in line or "SyntaxError" in line]


def fits(browser: Any) -> None:
    for width in (1280, 400):
        browser.resize(width)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), f"wider than {width} pixels"


def test_the_served_review_page_shows_hostile_text_and_records_a_click(browser: Any, folder: Path) -> None:
    with running(review.serve(folder, EVIL[1])) as server:
        browser.open(server.url)
        assert browser.wait("document.querySelectorAll('article').length") == len(EVIL)
        shown = browser.run("document.body.innerText")
        assert all(text.split("\0")[0].split("\u2028")[0] in shown for text in EVIL)
        assert browser.run("document.getElementById('title').textContent") == EVIL[1]
        fits(browser)
        assert browser.wait(FOUR_VIDEOS)
        before = reviews.read(folder).num_rows
        browser.run("document.getElementById('who').value = 'eve'; document.querySelector('article button').click()")
        assert browser.wait("document.querySelector('article.negative') !== null")
        harmless(browser)
        browser.open(server.url)
        assert browser.wait("document.body.innerText.includes('eve: negative')")
    assert reviews.read(folder).num_rows == before + 1


def test_a_page_of_another_name_gets_nothing(browser: Any, folder: Path) -> None:
    """DNS rebinding and cross-site requests as a browser makes them."""

    class Evil(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    row = '[{"negative_id": "n0", "verdict": "fine", "reviewer": "evil"}]'
    before = reviews.read(folder).num_rows
    with (
        running(review.serve(folder, "t")) as server,
        running(ThreadingHTTPServer(("127.0.0.1", 0), Evil)) as evil,
    ):
        rebound = server.url.replace("127.0.0.1", "evil.example")
        browser.open(rebound)
        assert "n0" not in browser.run("document.documentElement.innerHTML")
        browser.open(f"http://evil.example:{evil.server_port}/")
        for kind in ("text/plain", "application/json"):
            for url in (server.url, rebound):
                for mode in ("cors", "no-cors"):
                    browser.run(f"fetch('{url}reviews', {{method: 'POST', mode: '{mode}', headers: {{'Content-Type': '{kind}'}},"
                                f" body: '{row}'}}).then(a => a.text()).catch(e => '')")  # fmt: skip
                    assert (
                        browser.run(f"fetch('{url}data.json', {{mode: '{mode}'}}).then(a => a.text()).catch(e => '')")
                        == ""
                    )
        seen = f"""new Promise(done => {{
            const video = document.createElement('video');
            video.onerror = () => done(false); video.onloadeddata = () => done(true);
            video.src = '{server.url}videos/good.mp4'; }})"""
        assert browser.run(seen) is False
    assert reviews.read(folder).num_rows == before


def test_the_review_page_as_a_file_offers_a_csv_that_import_takes(browser: Any, folder: Path) -> None:
    (folder / "review.html").write_text(page.render(folder, EVIL[0]), "utf-8")
    browser.open((folder / "review.html").as_uri())
    assert browser.wait("document.querySelectorAll('article').length") == len(EVIL)
    assert browser.wait(FOUR_VIDEOS)
    harmless(browser)
    note = "=HYPERLINK(1);-2\t''@x"
    browser.run(f"""
        URL.createObjectURL = blob => (window.saved = blob, '#');
        document.getElementById('who').value = '+file';
        document.querySelector('input.note').value = {json.dumps(note)};
        document.querySelector('article button').click(); document.getElementById('csv').click()""")
    text = browser.run("saved.text()")
    assert all(spreadsheet.escaped(words) in text for words in (note, "+file"))
    (folder / "reviews.csv").write_bytes(text.encode())
    assert tables.from_csv(folder, folder / "reviews.csv") == 1
    assert note in {row["note"] for row in reviews.read(folder).to_pylist() if row["reviewer"] == "+file"}


def test_play_shows_hostile_names(browser: Any, tmp_path: Path) -> None:
    names = [
        b"good.mp4",
        b"a#b?c%41 \xc3\xbc.mp4",
        f"<img src=x onerror={RUN}>.mp4".encode(),
        b"12:30 \xff.mp4",
        b"a\nb\x1b[31m.mp4",
    ]
    source = tmp_path / "one" / "sub" / "x.mp4"
    video(source)
    for name in names:
        (tmp_path / "one" / os.fsdecode(name)).write_bytes(source.read_bytes())
    (tmp_path / "one" / "link.mp4").symlink_to(source)
    with running(play.serve(tmp_path / "one")) as server:
        browser.open(server.url)
        count = len(names) + 1
        assert browser.wait(f"[...document.querySelectorAll('video')].filter(v => v.readyState > 0).length === {count}")
        assert "1 link" in browser.run("document.body.innerText")
        fits(browser)
        harmless(browser)


def test_report_and_demo_show_hostile_text(browser: Any, tmp_path: Path) -> None:
    text = " ".join(EVIL).replace("\0", "")
    videos = pa.Table.from_pylist(
        [{"video_id": "v", "source_uri": f"/x/{text}", "source": text, "licence": text, "verdict": "error",
          "error": text, "error_stage": text}], schema=VIDEOS,
    )  # fmt: skip
    clips = pa.Table.from_pylist(
        [{"clip_id": text, "video_id": "v", "source_uri": f"/x/{text}", "start_frame": 0, "end_frame": 50, "verdict": "reject",
          "reasons": [f"{text}:x"], "sharpness": value} for value in (0.0, 900.0, np.nan, np.inf)], schema=CLIPS,
    )  # fmt: skip
    run = RunFacts({text: 1.0}, 1.0, version=text, config_digest=text)
    html = report.render(videos, clips, schema.load("tiny").curation, run)
    (tmp_path / "report.html").write_text(html, "utf-8", "replace")
    picture = demo_page.jpeg_uri(np.zeros((8, 8, 3), np.uint8))
    video(tmp_path / "good.mp4")
    demo_page.write(
        demo_page.DemoPage(
            title=text, statement=text, checks=[demo_page.Check(text, text, text, True)], funnel=[(text, 1, 1.0)],
            sources=[demo_page.Source(text, picture, text, text, [text])], curves=[demo_page.Curve(f"$x_ {text}", [1, 2], [1.0, 2.0])],
            stages=[(f"$ \\frac {text} $", 1)], negatives=[demo_page.Negative(picture, [text], text)],
            generated=[demo_page.Generated(text, "good.mp4", f"javascript:{RUN}", picture, picture, [text])],
            timings=[(text, 1.0)], facts={text: text, "negatives": text},
        ),
        tmp_path / "demo.html",
    )  # fmt: skip
    for name, pictures in (("report", 0), ("demo", 4)):
        browser.open((tmp_path / f"{name}.html").as_uri())
        harmless(browser)
        assert "<!--<script>" in browser.run("document.body.innerText")
        assert browser.run("[...document.images].filter(i => i.naturalWidth).length") == pictures
        fits(browser)
    assert browser.wait("document.querySelector('video').readyState > 0")


def test_the_dataset_card_escapes_what_sources_are_called() -> None:
    licence = f"[x](javascript:{RUN}) ![](http://evil/x.png) `c`"
    lines = card._table(("source", "licence"), [(f"a|b\n{text}", licence) for text in EVIL]).split("\n")
    assert len(lines) == 2 + len(EVIL), "one line for each row"
    for line in lines[2:]:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
        assert not re.search(r"(?<!\\)(?:\\\\)*[<>\[\]`]", line)
