"""What a newcomer is told about a catalog: how many clips for which reason, and a command that works when it is pasted."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import cli
from configs import schema, strict
from configs.errors import EchoForgeError
from configs.runtime import program
from curation.decision.reasons import FIT_VIDEOS, all_reasons
from curation.decision.rules import rules
from curation.schema import CLIPS, VIDEOS, table
from pipeline.catalog import queries
from pipeline.catalog.generation import Change
from pipeline.catalog.run_record import RunRecord
from pipeline.catalog.summary import describing, standing, summarise
from pipeline.catalog.writer import decide
from pipeline.dataset.shard import shard
from tests.good_clip import GOOD_CLIP


def make(folder: Path, clips: list[dict[str, Any]], broken: int = 0, *overrides: str) -> str:
    """A catalog with these clips, each of its own file, and files that cannot be opened. Returns its last screen."""
    config, out = schema.load("tiny", list(overrides)), str(folder)
    named = [
        GOOD_CLIP | {"clip_id": f"c{i}", "video_id": f"v{i}", "source_uri": f"{i}.mp4"} | c for i, c in enumerate(clips)
    ]
    videos = [{"video_id": c["video_id"], "source_uri": c["source_uri"]} for c in named]
    videos += [
        {"source_uri": f"b{i}.mp4", "verdict": "error", "error_stage": "open", "error": "no.", "reasons": ["open: no."]}
        for i in range(broken)
    ]
    decided = decide(table(videos, VIDEOS), table(named, CLIPS), config.curation)
    with Change(out, None) as change:
        for name, rows in zip(("videos", "clips"), decided, strict=True):
            change.add(name, rows)
        change.commit(*describing(config, RunRecord())(*decided))
    return str(summarise(out, *decided, len(videos), 1.0, [], f"{out}/report.html", config.preset))


def commands(screen: str) -> list[list[str]]:
    """The arguments of every command on a screen, as the shell would split them."""
    return [shlex.split(line)[1:] for line in re.findall(r"^    (echoforge .*)", screen, re.M)]


def parse(arguments: list[str]) -> None:
    """Let the command line's own parser read it.

    Raises:
        UsageError (click): it cannot.
    """
    command: Any = typer.main.get_command(cli.app)
    context = typer.Context(command, info_name="echoforge")
    while hasattr(command, "commands"):
        _, command, arguments = command.resolve_command(context, arguments)
    command.make_context(command.name, list(arguments), parent=context)


def test_a_newcomer_gets_from_nothing_kept_to_shards_by_pasting(tmp_path: Path) -> None:
    out = tmp_path / "it's a catalog"
    screen = make(out, [{}, {}, {"speech_frac": 0.0}], broken=1)
    assert re.search(r"hold +2 videos +2 clips", screen) and "     2  no sync score" in screen
    assert "     1  no sound, or too little speech" in screen and "     1  cannot be opened" in screen
    assert screen.count("no sync score") == 2, "counted for the held clips only, and named by the remedy"
    status = str(queries.status(str(out)))
    with pytest.raises(EchoForgeError) as refused:
        shard(str(out), str(tmp_path / "d"), schema.load("tiny"), inline=True)
    advice = screen[screen.index("to go on") :]
    assert refused.value.exit_code == 2
    for text in (status, str(refused.value)):
        assert "3 clips: 0 kept, 2 held, 1 rejected" in text and text.endswith(advice)
        assert "     2  no sync score" in text and "     1  no sound" in text
    redecide = commands(screen)[0]
    assert redecide[:3] == ["catalog", "redecide", str(out)]
    result = CliRunner().invoke(cli.app, redecide)
    assert result.exit_code == 0 and re.search(r"keep +0 +2 +\+2", result.stdout), result.output
    after = str(queries.status(str(out)))
    assert commands(after)[0] == ["shard", str(out), "--out", "dataset"] and "2 kept, 0 held, 1 rejected" in after


def test_a_catalog_where_all_is_rejected_leads_to_the_nearest_clip_and_its_threshold(tmp_path: Path) -> None:
    logo = {"x0": 0, "y0": 0, "x1": 9, "y1": 9, "first": 0, "last": 9, "score": 0.9, "text": "x", "kind": "logo"}
    worse = {"n_faces": 3, "lufs": -80.0, "text_boxes": [logo]}
    screen = make(tmp_path, [worse, {"text_boxes": [logo]}], 0, "sync.required=false")
    assert "     2  a logo" in screen and "     1  too many faces" in screen
    explain, redecide = commands(screen)
    assert explain == ["catalog", "explain", str(tmp_path), "c1"]
    assert CliRunner().invoke(cli.app, explain).exit_code == 0
    assert CliRunner().invoke(cli.app, redecide).exit_code == 0
    assert queries.status(str(tmp_path)).clips == {"keep": 1, "reject": 1}


def test_a_catalog_of_errors_names_the_files(tmp_path: Path) -> None:
    screen = make(tmp_path, [], broken=2)
    assert "     2  cannot be opened" in screen and commands(screen) == [["catalog", "status", str(tmp_path)]]
    status = str(queries.status(str(tmp_path)))
    assert "b1.mp4: no." in status and "0 clips: 0 kept" in status
    assert commands(status) == [] and "mend the files" in status


def test_the_preset_of_the_catalog_is_in_the_command(tmp_path: Path) -> None:
    state = standing("c", table([], VIDEOS), table([GOOD_CLIP | {"verdict": "keep"}], CLIPS), "wan2.1-fun-1.3b")
    assert commands("\n".join(state.next_steps())) == [
        ["shard", "c", "--out", "dataset", "--preset", "wan2.1-fun-1.3b"]
    ]


REASONS = all_reasons()
codes = st.sampled_from([*REASONS, "a_code_of_a_later_version"])
rows = st.lists(st.tuples(st.sampled_from(["keep", "hold", "reject", "error"]), st.lists(codes, unique=True)))


@settings(max_examples=60, deadline=None)
@given(rows=rows, broken=st.lists(codes, max_size=3), name=st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_catalog_is_counted_right_and_every_command_parses(
    rows: list[tuple[str, list[str]]], broken: list[str], name: str
) -> None:
    name = "c" + name.replace("\0", "").replace("\n", " ").replace("\r", " ")
    clips = [
        GOOD_CLIP | {"clip_id": f"c{i}", "verdict": v, "reasons": [f"{c}: a: b" for c in cs] if v != "keep" else []}
        for i, (v, cs) in enumerate(rows)
    ]
    videos = [{"source_uri": f"b{i}", "verdict": "error", "reasons": [f"{c}: a"]} for i, c in enumerate(broken)]
    state = standing(name, table(videos, VIDEOS), table(clips, CLIPS), "tiny")
    assert state.clips == Counter(v for v, _ in rows)
    assert dict(state.held) == Counter(c for v, cs in rows if v == "hold" for c in cs)
    rejecting = Counter(c for v, cs in rows if v == "reject" for c in cs)
    assert dict(state.rejected) == {c: n for c, n in rejecting.items() if c not in REASONS or not REASONS[c].holds}
    assert dict(state.without_clips) == Counter(broken)
    screen = "\n".join(state.next_steps())
    for arguments in commands(screen):
        parse([part.replace("NUMBER", "1") for part in arguments])
    if any(v == "keep" for v, _ in rows):
        assert commands(screen)[0][:2] == ["shard", name]


@pytest.mark.parametrize("preset", schema.PRESETS)
def test_every_code_has_words_and_every_setting_changes_its_rule(preset: str) -> None:
    config = schema.load(preset)
    data = schema.to_mapping(config)
    for rule in rules(config.curation):
        entry = REASONS[rule.code]
        assert entry.holds == (rule.outcome == "hold") and bool(entry.remedies) == entry.holds, rule.code
        if entry.setting is not None:
            key = entry.setting.removesuffix("=NUMBER")
            changed = schema.from_mapping(strict.override(data, [f"{key}={int(rule.limit) + 1}"]))
            limits = {r.code: r.limit for r in rules(changed.curation)}
            assert limits[rule.code] == int(rule.limit) + 1, rule.code
    for kind in config.curation.decide.text:
        setting = REASONS[kind].setting
        assert setting and strict.override(data, [setting])["decide"]["text"][kind] == "keep"
    assert config.curation.sync.fit.min_sources == FIT_VIDEOS
    prose = [f"  try another setting for '{entry.words}':" for entry in REASONS.values()]
    remedies = {remedy for entry in REASONS.values() for remedy in entry.remedies}
    prose += [line for r in remedies for line in (f"  {r.what}:", *(f"    {then}" for then in r.then))]
    assert max(map(len, prose)) <= 80


def test_every_way_in_which_a_file_fails_has_words() -> None:
    """Stages stand as text where the errors are raised, so they are looked for there."""
    curation = Path(cli.__file__).parent / "curation"
    files = [*sorted(curation.rglob("*.py")), *sorted((curation.parent / "pipeline").rglob("*.py"))]
    source = "".join(path.read_text("utf-8") for path in files)
    stages = set(re.findall(r'(?:MediaError\(|error_video\([^"\n]*, )"(\w+)"', source))
    codes = set(re.findall(r'f"(\w+): ', (curation / "decision" / "decide.py").read_text("utf-8")))
    assert {"open", "decode", "captions", "manifest"} <= stages and {"too_short", "duplicate"} <= codes
    assert stages | codes <= REASONS.keys()


@pytest.mark.parametrize(
    ("argv", "orig", "begin"),
    [
        (["cli.py"], ["python", "cli.py"], "python cli.py"),
        (["/opt/e f/cli.py"], [".venv/bin/python", "/opt/e f/cli.py"], ".venv/bin/python '/opt/e f/cli.py'"),
        (["/opt/venv/bin/echoforge"], ["/opt/venv/bin/python", "/opt/venv/bin/echoforge"], "/opt/venv/bin/echoforge"),
        (["/usr/bin/pytest"], ["python", "/usr/bin/pytest"], "echoforge"),
    ],
)
def test_commands_begin_as_the_program_was_started(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], orig: list[str], begin: str
) -> None:
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setattr("sys.orig_argv", orig)
    assert program.command("shard", "my catalog") == f"{begin} shard 'my catalog'"
    monkeypatch.setattr("shutil.which", lambda name: "/opt/venv/bin/echoforge" if name == "echoforge" else None)
    if "venv/bin/echoforge" in argv[0]:
        assert program.command("shard") == "echoforge shard"
