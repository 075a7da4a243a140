"""Every file, section, command, option and configuration key that code, presets and docs name exists.

Each rule takes a text and yields what it cites in vain. What exists is asked of the tree, the Makefile, the command
line's own parser and the configuration, so a renamed thing fails here wherever it is still called by its old name.
"""

from __future__ import annotations

import ast
import importlib
import io
import re
import shlex
import tokenize
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

import cli
from configs import schema

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "curation", "pipeline", "model", "train", "evaluation", "workflows")
FOLDERS = (*PACKAGES, "benchmarks", "docs", "tests")
EXAMPLES = {"curation/operators/colour.py"}  # the file that CONTRIBUTING.md shows how to write
FOREIGN = {"--no-deps", "--force-reinstall", "--nproc-per-node"}  # options of pip and torchrun
Rule = Callable[[str], Iterator[str]]


# ----------------------------------------------------------------------------------------------------- the texts


@cache
def written() -> list[tuple[Path, str]]:
    """Every text to check and the file it is in: documents and presets whole, of code the strings and comments.

    Not CHANGELOG.md: it names what is gone.
    """
    single = (
        "README.md",
        "CONTRIBUTING.md",
        "Makefile",
        "constraints.txt",
        "requirements-no-deps.txt",
        "cli.py",
    )
    files = [ROOT / name for name in single]
    files += [p for name in FOLDERS if name != "tests" for p in sorted((ROOT / name).rglob("*"))]
    texts: list[tuple[Path, str]] = []
    for path in files:
        if path.suffix == ".py":
            texts += [(path, text) for text in prose(path.read_text("utf-8"))]
        elif path.suffix in {".md", ".yaml", ".html", ".jinja", ".txt"} or path.name == "Makefile":
            texts.append((path, path.read_text("utf-8").replace("\\\n", " ")))
    return texts


def prose(source: str) -> Iterator[str]:
    """Strings (what an f-string fills in reads as X) and comments, neighbouring lines of comments as one text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)
    lines: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1:
                yield "\n".join(lines)
                lines = []
            lines.append(token.string.lstrip("# "))
            last = token.start[0]
    yield "\n".join(lines)


def quoted(text: str) -> list[str]:
    """What stands between backticks, single or double; blocks of code between three are left out."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("``", "`")
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text) if "\n\n" not in span]


# -------------------------------------------------------------------------------------------------------- files


def files(text: str) -> Iterator[str]:
    """``curation/decision/decide.py`` from the root of the checkout; the name of a module or page alone, in backticks."""
    for name in re.findall(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./-]*[\w/])", text):
        if re.search(r"\.\w+$|/$", name) and not (ROOT / name).exists() and name not in EXAMPLES:
            yield name
    for name in quoted(text):
        alone = re.fullmatch(r"\w+\.(py|md)", name) and not any(True for f in FOLDERS for _ in (ROOT / f).rglob(name))
        within = re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]*", name) and name not in EXAMPLES
        if (alone or within) and not (ROOT / name).exists():
            yield name


def sections(text: str) -> Iterator[str]:
    """``docs/curation.md, section The decision``; a numbered section of something that is no page here is cited, too."""
    for name, section in re.findall(r"([\w./-]+), sections? ([\w.]*\w)", text):
        page = ROOT / name
        found = page.suffix == ".md" and page.is_file() and any(h.startswith(section) for h in headings(page))
        if not found and name != "paper":
            yield f"{name}, section {section}"


def headings(page: Path) -> list[str]:
    """The headings of a Markdown page, code left out."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    return re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)


def broken_links(page: Path) -> Iterator[str]:
    """Relative links of a Markdown page whose file or anchor does not exist."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings(file)] if anchor else []
        if not file.exists() or (anchor and anchor not in slugs):
            yield target


# ----------------------------------------------------------------------------------------------------- commands


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))


def targets(text: str) -> Iterator[str]:
    """``make test``, in backticks or at the start of a line of code."""
    named = re.findall(r"`make ([a-z][a-z-]*)", text) + re.findall(r"^make ([a-z-]+) +#", text, flags=re.MULTILINE)
    yield from (f"make {name}" for name in named if name not in make_targets())


@cache
def program() -> Any:
    return typer.main.get_command(cli.app)


def options(command: Any) -> dict[str, bool]:
    """The options of a command, and whether each takes a value."""
    named = {name: not getattr(p, "is_flag", False) for p in command.params for name in p.opts}
    return {**named, "--help": False, "-h": False}


@cache
def all_options() -> set[str]:
    """Of every command and every benchmark."""

    def below(command: Any) -> set[str]:
        return set(options(command)).union(*(below(c) for c in getattr(command, "commands", {}).values()))

    sources = [path.read_text("utf-8") for path in (ROOT / "benchmarks").glob("*.py")]
    return below(program()) | {option for source in sources for option in re.findall(r'"(--[a-z-]+)"', source)}


def commands(text: str) -> Iterator[str]:
    """``python cli.py weights list --preset tiny``, and in backticks also ``weights list`` and ``--preset tiny``."""
    calls = re.findall(r"(?:cli\.py|(?<![\w/.-])echoforge) ([a-z-][^`\n|<]*)", text)
    for span in quoted(text):
        first, _, more = span.partition(" ")
        group = hasattr(program().commands.get(first), "commands") and re.match(r"[a-z-]+\b", more)
        if group or (first in program().commands and " --" in span):
            calls.append(span)
        elif first.startswith("--") and first.partition("=")[0] not in all_options() | FOREIGN:
            yield first
    for call in calls:
        if (wrong := wrong_word(call)) is not None:
            yield f"{call.strip()}: {wrong}"


def wrong_word(call: str) -> str | None:
    """The first word of a call that is neither a command nor an option where it stands."""
    try:
        words = shlex.split(call.partition(" #")[0])
    except ValueError:  # an apostrophe in a sentence
        words = call.split()
    command, known, value = program(), options(program()), False
    for word in (w.rstrip(".,;:)") for w in words):
        if value:
            value = False
        elif word.startswith("-") and not re.match(r"-\d", word):
            if (name := word.partition("=")[0]) not in known:
                return word
            value = "=" not in word and known[name]
        elif hasattr(command, "commands"):
            if word not in command.commands:
                return word
            command = command.commands[word]
            known |= options(command)
    return None


def modules(text: str) -> Iterator[str]:
    """``python -m benchmarks.loader --samples 96``, and names such as ``configs.errors.EchoForgeError`` in backticks."""
    for name, arguments in re.findall(r"python -m (\w+(?:\.\w+)*)(?![\w.<])([^`\n]*)", text):
        if name.partition(".")[0] in FOLDERS:
            file = ROOT / f"{name.replace('.', '/')}.py"
            source = file.read_text("utf-8") if file.exists() else ""
            if not source:
                yield name
            yield from (f"{name} {o}" for o in re.findall(r"--[a-z-]+", arguments) if source and f'"{o}"' not in source)
    for span in quoted(text):
        ours = span.partition(".")[0] in (*PACKAGES, "benchmarks") and re.fullmatch(r"\w+(\.\w+)+", span)
        if ours and not resolves(span):
            yield span


@cache
def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, attributes = name.split("."), []
    while module:
        try:
            thing: Any = importlib.import_module(".".join(module))
        except ModuleNotFoundError:
            attributes.insert(0, module.pop())
            continue
        for attribute in attributes:
            fields = getattr(thing, "__dataclass_fields__", {})
            if not hasattr(thing, attribute) and attribute not in fields:
                return False
            thing = getattr(thing, attribute, None)
        return True
    return False


# ------------------------------------------------------------------------------------------------- configuration


@cache
def configuration() -> dict[str, Any]:
    return schema.to_mapping(schema.load("tiny"))


def is_key(dotted: str) -> bool:
    """Whether the configuration has this key; what is not a table of its own (a list, null) may hold anything."""
    node: Any = configuration()
    for part in dotted.split("."):
        if not isinstance(node, dict):
            return isinstance(node, list) or node is None
        if part not in node:
            return False
        node = node[part]
    return True


def keys(text: str) -> Iterator[str]:
    """``--set KEY=…``, and ``section.key`` in any sentence; a string that is nothing else is data and not looked at."""
    named = re.findall(r"--set ['\"]?([a-z_][\w.]*)=", text)
    if " " in text:
        key = rf"(?<![\w./-])((?:{'|'.join(configuration())})(?:\.[a-z_][a-z_0-9]+)+)(?![\w(/*])"
        named += re.findall(key, text)
    of_users = re.compile(r"\.(json|jsonl|csv|lst|tar|txt|jpg|mp4|flac|yaml|html|jinja|py|md|parquet|safetensors)$")
    yield from (name for name in named if name != "key" and not of_users.search(name) and not is_key(name))


# -------------------------------------------------------------------------------------------------------- tests

RULES: tuple[Rule, ...] = (files, sections, targets, commands, modules, keys)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_what_is_cited_exists(rule: Rule) -> None:
    wrong = [f"{path.relative_to(ROOT)}: {what}" for path, text in written() for what in rule(text)]
    assert not wrong, "\n".join(["cited, but does not exist:", *wrong])


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    wrong = [f"{page.relative_to(ROOT)}: {target}" for page in pages for target in broken_links(page)]
    assert not wrong, "\n".join(wrong)


def test_every_phony_target_has_a_rule_and_every_rule_is_phony() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
    assert set(phony.split()) == make_targets()


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (files, "see docs/none.md for more"),
        (files, "stands in `nowhere.py`"),
        (sections, "docs/curation.md, section Nothing"),
        (sections, "design, section 4"),
        (targets, "run `make nothing` first"),
        (commands, "`python cli.py weights lits`"),
        (commands, "python cli.py curate videos --outt catalog"),
        (commands, "`catalog explian CATALOG`"),
        (commands, "with `--presett tiny`"),
        (modules, "`python -m benchmarks.none`"),
        (modules, "`python -m benchmarks.loader --sampels 3`"),
        (modules, "raises `configs.errors.NoSuchError`"),
        (keys, "`weights list --set sync.requird=false`"),
        (keys, "the key `sync.requird`"),
        (keys, "set sync.requird=false instead"),
    ],
)
def test_each_rule_finds_what_does_not_exist(rule: Rule, text: str) -> None:
    assert list(rule(text))
