"""The house has one direction: cli → workflows → {pipeline, train, evaluation} → {curation, model} → configs."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 350
MOST_LINES_OF_THE_COMMAND_LINE = 300
ALLOWED = {
    "configs": set(),
    "curation": {"configs"},
    "model": {"configs"},
    "evaluation": {"curation", "model", "configs"},
    "train": {"model", "configs"},
    "pipeline": {"curation", "model", "configs"},
    "workflows": {"pipeline", "train", "evaluation", "curation", "model", "configs"},
}
OURS = {*ALLOWED, "cli", "benchmarks", "tests"}
# The root of the configuration gathers the sections of every package; nothing else below imports it.
EXCEPTIONS = {"configs/schema.py"}
EDGES = {
    "configs/strict.py": "mappings of YAML and JSON → dataclasses, and back",
    "configs/schema.py": "presets: YAML → the configuration",
    "configs/aliases.py": "renamed keys of such mappings",
    "configs/difference.py": "two saved configurations, perhaps of two versions, as their files hold them",
    "configs/dataset_description.py": "dataset.json",
    "curation/clip.py": "rows of the catalog's tables → clips, tracks and videos, and back",
    "curation/schema.py": "rows → Arrow tables of the catalog",
    "pipeline/catalog/run_record.py": "run.json, and the configuration saved in it",
    "pipeline/engine/rows.py": "rows of a worker → Arrow tables",
    "pipeline/engine/seal.py": "JSON files with their own digest",
    "train/checkpoints/files.py": "JSON files of a run",
    "train/checkpoints/info.py": "what a checkpoint says of itself",
}
"""Modules that may take and give rows as dictionaries, and why: what is read from JSON, YAML or Arrow becomes a type there."""
THIRD_PARTY_OF_TRAINING = {"torch", "numpy", "safetensors", "yaml", "pyarrow"}


def _imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        relative = path.relative_to(ROOT).as_posix()
        if relative in EXCEPTIONS:
            continue
        for name in _imports(path):
            top = name.split(".")[0]
            assert top not in OURS or top == package or top in ALLOWED[package], f"{relative} imports {name}"
            assert name != "configs.schema" or package == "workflows", f"{relative} imports the root configuration"


@pytest.mark.parametrize("package", ["model", "train"])
def test_third_party_imports_of_training_are_few(package: str) -> None:
    for path in sorted((ROOT / package).rglob("*.py")):
        for name in _imports(path, top_level_only=True):
            top = name.split(".")[0]
            if top not in OURS and top not in sys.stdlib_module_names and top != "__future__":
                assert top in THIRD_PARTY_OF_TRAINING, f"{path.relative_to(ROOT)} imports {name} at module level"


def test_curation_does_not_know_ray() -> None:
    for path in (ROOT / "curation").rglob("*.py"):
        assert "ray" not in {name.split(".")[0] for name in _imports(path)}, path


def test_model_and_train_import_on_a_bare_gpu_box() -> None:
    """Every module of `model/` and `train/` imports when nothing but the five packages exists."""
    code = f"""
import importlib, pkgutil, sys
ALLOWED = {sorted(THIRD_PARTY_OF_TRAINING)!r}
BLOCKED = ["ray", "decord", "whisper", "cv2", "av", "webdataset", "diffusers", "transformers", "open_clip",
           "pandas", "scipy", "rich", "typer", "fsspec", "duckdb", "PIL", "curation", "pipeline", "evaluation", "cli"]
class Block:
    def find_spec(self, name, path=None, target=None):
        # torch itself probes for optional packages; only an import by our own code may fail the test
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Block())
import model, train
for package in (model, train):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print("imported")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "imported" in result.stdout


def test_one_headless_opencv_and_everything_imports_together() -> None:
    """cv2 must not link libGL (a bare machine lacks it) and must keep the cascades that OpenCV 5 dropped."""
    code = """
import cv2, open_clip, whisper, ray, decord, av, syncnet_python
from pathlib import Path
assert cv2.__version__.startswith("4."), cv2.__version__
assert cv2.CascadeClassifier and cv2.FaceDetectorYN
loaded = Path("/proc/self/maps").read_text()
assert "libGL.so" not in loaded
print("together")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "together" in result.stdout, result.stderr[-2000:]


def _files() -> list[Path]:
    """Every Python file outside the tests."""
    folders = (*ALLOWED, "benchmarks")
    return [ROOT / "cli.py", *(path for name in folders for path in sorted((ROOT / name).rglob("*.py")))]


def _loose(annotation: ast.expr, aliases: set[str]) -> bool:
    """Does an annotation hold a mapping from strings to anything, or a name of one?"""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier() is False:
            try:
                if _loose(ast.parse(node.value, mode="eval").body, aliases):
                    return True
            except SyntaxError:
                continue
        if isinstance(node, ast.Name) and node.id in aliases:
            return True
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and len(node.slice.elts) == 2:
            generic, value = ast.unparse(node.value).rpartition(".")[2], ast.unparse(node.slice.elts[1])
            if generic.lower() in ("dict", "mapping", "mutablemapping", "defaultdict") and value in ("Any", "object"):
                return True
    return False


def _aliases(trees: list[ast.Module]) -> set[str]:
    """Names given to such mappings at module level, and names given to those."""
    found: set[str] = set()
    while True:
        more = {
            target.id
            for tree in trees
            for node in tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign))
            and isinstance(node.value, (ast.Subscript, ast.BinOp, ast.Name))
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name) and _loose(node.value, found)
        }
        if more <= found:
            return found
        found |= more


def test_types_travel_and_dictionaries_stay_at_the_edges() -> None:
    """No function takes or gives ``dict[str, Any]`` or the like, under any name, but where JSON, YAML or Arrow is read."""
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in _files()}
    aliases = _aliases(list(trees.values()))
    found = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                a = node.args
                given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
                notes = [x.annotation for x in given if x.annotation] + ([node.returns] if node.returns else [])
                if any(_loose(note, aliases) for note in notes):
                    found.append(f"{name}:{node.lineno}: {node.name}")
    assert [place for place in found if place.split(":")[0] not in EDGES] == []
    assert set(EDGES) <= {place.split(":")[0] for place in found}, "an edge that is none any more"


@cache
def _modules() -> dict[str, ast.Module]:
    """Our modules by dotted name; a package by its ``__init__.py``."""
    names = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in _files()}
    return {name.removesuffix(".__init__"): ast.parse(path.read_text("utf-8")) for name, path in names.items()}


def _ours_imported(tree: ast.Module) -> Iterator[str]:
    """Modules of ours that a module imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in OURS)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (part if part in _modules() else node.module for part in whole)


def test_no_imports_go_in_circles() -> None:
    """Imports inside functions count: they hide a circle, they do not open it."""
    graph = {name: set(_ours_imported(tree)) - {name} for name, tree in _modules().items()}
    lost = [f"{name} imports {other}" for name, others in graph.items() for other in others - _modules().keys()]
    assert lost == [], "mypy takes a module of ours that does not exist for one of a package without types"
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_files_are_short_enough_to_be_read_at_once() -> None:
    """One module, one idea."""
    for path in _files():
        lines = len(path.read_text("utf-8").splitlines())
        most = MOST_LINES_OF_THE_COMMAND_LINE if path.name == "cli.py" else MOST_LINES
        assert lines <= most, f"{path.relative_to(ROOT)} has {lines} lines"
