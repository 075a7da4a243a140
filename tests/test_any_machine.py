"""The tests themselves hold on other machines: other kernels, other thread counts, nothing beside the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
INSIDE = "ECHOFORGE_TEST_KERNELS"  # set in the processes that the test below starts
# A library picks its kernels by the CPU. These settings make it pick those of another one; MKL's own AVX2 kernels are
# also what it falls back to on CPUs of other makers. `default` are PyTorch's kernels without vector instructions.
KERNELS = {
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell",
    },
}  # fmt: skip
# An orthogonal array: of any two columns, every pair of values occurs. What is unset runs in the rest of the tier.
RUNS = [(None, "avx2", 1), (None, "default", 2), ("COMPATIBLE", "avx2", 2), ("COMPATIBLE", "default", 1)]
LEAST = 100  # tests that must have run: a marker that is lost, or a folder, would go unnoticed


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("cbwr", "kernels", "threads"), RUNS, ids=[f"MKL_CBWR={a or 'unset'}, {b}, threads={c}" for a, b, c in RUNS]
)
def test_the_numeric_tests_pass_on_other_kernels_and_threads(
    cbwr: str | None, kernels: str, threads: int, tmp_path: Path
) -> None:
    """The tests marked `numeric`, each time in a process of their own."""
    if os.environ.get(INSIDE):
        pytest.fail("the tests of other kernels started themselves; they must not be marked numeric")
    if kernels == "avx2" and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this CPU has no AVX2")
    env = {k: v for k, v in os.environ.items() if k not in ("MKL_CBWR", *KERNELS["avx2"])}
    env |= KERNELS[kernels] | ({"MKL_CBWR": cbwr} if cbwr else {})
    env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)) | {INSIDE: "1"}
    others = (p for p in sorted((ROOT / "tests").rglob("test_*.py")) if p != Path(__file__))
    files = [p for p in others if "mark.numeric" in p.read_text("utf-8")]  # collecting all of them takes as long again
    command = [
        sys.executable, "-m", "pytest", *map(str, files), "-m", "numeric and not slow", "-p", "no:cacheprovider",
        f"--basetemp={tmp_path / 'inside'}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= LEAST, done.stdout[-2000:]


def test_skips_for_want_of_what_lies_beside_a_checkout_are_counted_at_the_end(tmp_path: Path) -> None:
    tests = tmp_path / "checkout" / "tests"
    tests.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "conftest.py", tests)
    (tests / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', range(3))\n"
        "def test_clips(shared_media, n): ...\n"
        "def test_fixtures(shared_fixtures): ...\n"
        "def test_other(): pytest.skip('for another reason')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    lines = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout.splitlines()
    assert "3 tests skipped: ../shared/media is not beside this checkout" in lines
    assert "1 test skipped: ../shared/fixtures is not beside this checkout" in lines
    assert sum("skipped:" in line for line in lines) == 2
