"""What is imported is declared, what the packages hold is in the wheel, and what is left out is said in one sentence."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from configs import schema
from configs.errors import EchoForgeError
from curation import packages
from curation.analysis import registry
from curation.faces import load_detector
from curation.operators.text.recogniser import Recogniser
from curation.puppets import sample
from curation.puppets.corpus import Plan, make_one
from curation.sync import syncnet_v2
from pipeline.catalog.curate import curate
from pipeline.engine.version import code_version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = sorted(p.rstrip("*") for p in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])
CFG = schema.load("tiny").curation

INSTALLED_APART = {"openvino", "syncnet-python"}
"""Left out of the requirements; requirements-no-deps.txt says why."""
NOT_IMPORTED = {
    "s3fs": "fsspec opens s3:// with it",
    "scenedetect": "curation/analysis/shots.py imports it by name, without its probe for ffmpeg",
    "sentencepiece": "transformers reads tokenizers with it",
    "silero-vad": "its model file is read from its folder",
    "torchvision": "image processors of transformers and open_clip",
}
TOOLS = {"pandas-stubs", "ruff", "mypy", "types-pyyaml", "pytest-timeout", "moto", "ffmpeg-python", "setuptools"}
"""Of the extra `dev`: run or read by other packages, not imported by our tests."""


def declared(extra: str | None = None) -> dict[str, Requirement]:
    """Canonical name → requirement, of the project or of one of its extras."""
    project = PROJECT["project"]
    lines = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def pinned(file: str) -> dict[str, str]:
    """Canonical name → version, of a file of ``name==version`` lines."""
    lines = [line.split("==") for line in (ROOT / file).read_text("utf-8").splitlines() if re.match(r"[\w.-]+==", line)]
    return {canonicalize_name(name): version.strip() for name, version in lines}


def imported(*names: str) -> dict[str, str]:
    """Distribution → a file that imports it (at any depth of the code), over the packages or modules ``names``."""
    owners = importlib.metadata.packages_distributions()
    ours = {*PACKAGES, "cli", "benchmarks", "tests"}
    found: dict[str, str] = {}
    for path in (p for name in names for p in [*ROOT.glob(f"{name}.py"), *(ROOT / name).rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules.append(node.module)
            for top in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - ours:
                if not (ROOT / "tests" in path.parents and (path.parent / f"{top}.py").exists()):  # a neighbour
                    found[canonicalize_name(owners.get(top, [top])[0])] = path.relative_to(ROOT).as_posix()
    return found


def test_every_import_is_a_declared_requirement_and_every_requirement_is_needed() -> None:
    product, needed = imported(*PACKAGES, "cli"), set(declared())
    missing = {name: file for name, file in product.items() if name not in needed | INSTALLED_APART}
    assert not missing, "imported and not declared"
    assert needed - set(product) == set(NOT_IMPORTED), "declared and not imported"
    around, dev = imported("tests", "benchmarks"), set(declared("dev"))
    missing = {name: file for name, file in around.items() if name not in needed | dev | INSTALLED_APART}
    assert not missing, "imported by tests or benchmarks, and not declared"
    assert dev - set(around) <= TOOLS, "declared for development and not imported"


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    pins, apart = pinned("constraints.txt"), pinned("requirements-no-deps.txt")
    for name, requirement in {**declared("dev"), **declared()}.items():
        if name != "setuptools":  # comes with pip's own build of the package
            assert name in pins, f"{name} is not in constraints.txt"
            assert requirement.specifier.contains(pins[name]), f"constraints.txt pins {name} {pins[name]}"
    assert set(apart) == INSTALLED_APART and not set(apart) & set(pins)
    for module, remedy in packages.REMEDIES.items():
        for name, version in re.findall(r"--no-deps ([\w-]+)==([\w.]+)", remedy):
            assert apart[canonicalize_name(name)] == version, f"curation/packages.py, {module}"


def build(into: Path) -> Path:
    """The wheel, built without the network from a copy of the sources; the checkout stays as it is."""
    source = into / "source"
    for name in (*PACKAGES, "benchmarks", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "cli.py"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(into), str(source)], check=True, capture_output=True, text=True)
    (wheel,) = into.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_file_of_the_packages_the_licence_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {p.relative_to(ROOT).as_posix() for name in PACKAGES for p in (ROOT / name).rglob("*") if p.is_file()}
    files = {name for name in files if "__pycache__" not in name} | {"cli.py"}
    (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    assert {name for name in names if not name.startswith(info)} == files
    assert f"{info}/licenses/LICENSE" in names
    scripts = zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt").decode()
    assert "echoforge = cli:main" in scripts


def test_version_is_the_projects_with_the_revision_of_a_checkout() -> None:
    command = [sys.executable, str(ROOT / "cli.py"), "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert printed == f"echoforge {code_version()}"
    number, _, revision = code_version().partition(" ")
    assert number == PROJECT["project"]["version"]
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]  # refuses a checkout of another owner
    if shutil.which("git") and subprocess.run(git, capture_output=True, check=False).returncode == 0:
        assert re.fullmatch(r"[0-9a-f]{12}\+?", revision)


@pytest.mark.parametrize(
    ("module", "setting"),
    [
        ("decord", "video.backend=decord"),
        ("syncnet_python", "sync.backend=syncnet_v2"),
        ("syncnet_python", "faces.detector=s3fd"),
    ],
)
def test_a_missing_package_is_one_sentence_before_any_work(
    module: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    cfg = schema.load("tiny", [setting]).curation
    with pytest.raises(EchoForgeError, match=f"{re.escape(setting)} needs the package {module}.*`pip install"):
        if module == "decord":
            registry.check_files(cfg)
        elif "s3fd" in setting:
            load_detector(cfg.faces)
        else:
            syncnet_v2.network()


def test_without_openvino_onnxruntime_finds_the_same_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    frames = [sample(0, n, schema.load("tiny").curation.puppets, "subtitles", frames=9).frames[8] for n in range(3)]
    frames = [np.kron(frame, np.ones((3, 3, 1), np.uint8)) for frame in frames]
    fast = Recogniser(CFG.text)
    monkeypatch.setitem(sys.modules, "openvino", None)
    slow = Recogniser(CFG.text)
    assert type(fast._detector.session) is not type(slow._detector.session)
    found = [[fast.detect(frame), slow.detect(frame)] for frame in frames]
    assert any(boxes for boxes, _ in found)
    for ours, theirs in found:
        assert [b.box for b in ours] == [b.box for b in theirs]
        # The two libraries sum in different orders: scores of a network in float32.
        assert np.allclose([b.score for b in ours], [b.score for b in theirs], atol=1e-3)


def test_the_slower_detector_is_said_once_and_only_when_there_is_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    config = schema.load("tiny", ["sync.required=false"])
    for index in range(2):
        make_one(tmp_path / "videos", Plan(index, None, index), 0, config.curation.puppets)
    for times in (1, 0):
        curate([str(tmp_path / "videos")], str(tmp_path / "catalog"), config, inline=True)
        assert capfd.readouterr().err.count("openvino is not installed") == times


# ------------------------------------------------------------------------------------------- as a user installs it


@pytest.fixture
def empty_environment(tmp_path: Path) -> Iterator[Path]:
    """A virtual environment with pip alone; removed afterwards, as it grows to several GB."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_installed_wheel_curates_a_clip_outside_the_checkout(
    wheel: Path, empty_environment: Path, tmp_path: Path
) -> None:
    python = empty_environment / "bin" / "python"
    outside = tmp_path / "outside"
    outside.mkdir()

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=outside, capture_output=True, text=True, check=False)

    probe = ["download", "--quiet", "--no-deps", "--dest", str(tmp_path / "probe"), "pyyaml"]
    if run(str(python), "-m", "pip", *probe).returncode:
        pytest.skip("no package index can be reached")
    done = run(
        str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), str(wheel)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    check = run(str(python), "-m", "pip", "check")
    assert check.returncode == 0, check.stdout
    owners = run(
        str(python), "-c", "from importlib.metadata import packages_distributions as p; print(p()['cv2'])"
    ).stdout
    assert owners.strip() == "['opencv-python-headless']"

    make_one(outside / "videos", Plan(0, None, 0), 0, CFG.puppets)
    echoforge = str(empty_environment / "bin" / "echoforge")
    version = run(echoforge, "--version").stdout.split()
    assert version == ["echoforge", PROJECT["project"]["version"]]
    made = run(echoforge, "curate", "videos", "--out", "catalog", "--set", "sync.required=false")
    assert made.returncode == 0 and "Traceback" not in made.stderr, made.stderr[-2000:]
    assert made.stderr.count("openvino is not installed") == 1
    look = "import pandas; print(*pandas.read_parquet('catalog/clips').verdict)"
    assert "keep" in run(str(python), "-c", look).stdout
