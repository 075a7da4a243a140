"""The house has one direction: cli → workflows → {pipeline, train, evaluation} → {curation, model} → configs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
