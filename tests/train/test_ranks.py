"""Several ranks, another number of ranks after a resume, and kills: the same run every time."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from benchmarks.synthetic_shards import write_dataset
from configs import schema
from configs.dataset_schema import PROMPTS_FILE
from configs.errors import EchoForgeError
from configs.runtime import locks
from train.checkpoints import old_state, retention
from train.log import METRICS_FILE, of_kind, read_metrics
from train.trainer import train as train_here
from workflows import networks
from workflows.networks import check_network, load_network

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "transformer.dim": "48", "transformer.ffn_dim": "64", "transformer.num_heads": "2", "transformer.num_layers": "2",
    "transformer.patch_size": "[1,2,2]", "optim.threads": "1", "optim.precision": "fp32", "optim.micro_batch": "2",
    "loader.global_batch": "4", "tasks.mix": "{i2v: 1.0}", "log.every": "1", "log.validate_every": "0",
    "log.validation_samples": "0", "stages": "[{name: s, kind: sft, steps: 20}]",
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, {"64x64x17": 13})
    save_file({name: torch.zeros(1, 64, dtype=torch.bfloat16) for name in ("null", "negative")}, root / PROMPTS_FILE)
    return root


def command(dataset: Path, run: Path, ranks: int, **changes: str) -> list[str]:
    values = SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    cli = ["cli.py", "train", str(dataset), "--out", str(run)]
    if (steps := values.pop("max_steps", None)) is not None:
        cli += ["--steps", steps]
    for name, value in values.items():
        cli += ["--set", f"{name}={value}"]
    if ranks == 1:
        return [sys.executable, *cli]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--master-addr=127.0.0.1",
            f"--master-port={port}", *cli]  # fmt: skip


def train(dataset: Path, run: Path, ranks: int, **changes: str) -> None:
    done = subprocess.run(
        command(dataset, run, ranks, **changes),
        cwd=ROOT, check=False, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def losses(run: Path) -> list[float]:
    return [line.number("loss") for line in of_kind(read_metrics(run / METRICS_FILE), "step")]


def final(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "step-000020" / "raw.safetensors")


STEPS = 15  # enough after the first checkpoint for a kill to find the run at work, however busy the machine is
LAST = f"step-{STEPS:06d}"
VALIDATED = SMALL | {
    "stages": f"[{{name: s, kind: sft, steps: {STEPS}}}]", "checkpoint.every": "1", "checkpoint.keep_last": "1",
    "log.validate_every": "5", "log.validation_samples": "3",
}  # fmt: skip


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine samples to learn from, and three to validate with: not a multiple of two ranks."""
    root = tmp_path_factory.mktemp("held-out")
    write_dataset(root, {"64x64x9": 12}, columns={"split": ["train"] * 9 + ["val"] * 3})
    save_file({name: torch.zeros(1, 64, dtype=torch.bfloat16) for name in ("null", "negative")}, root / PROMPTS_FILE)
    return root


def in_this_process(dataset: Path, run: Path) -> Path:
    config = schema.load("tiny", [f"{name}={value}" for name, value in VALIDATED.items()])
    assert train_here(dataset, run, config.model, config.train, say=None, device="cpu").status == "finished"
    return run


@pytest.fixture(scope="module")
def undisturbed(held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, with validation."""
    return in_this_process(held_out, tmp_path_factory.mktemp("undisturbed") / "run")


def measured(run: Path) -> list[dict[str, float]]:
    """Losses of every step and of every validation, without what a clock says."""
    lines = [line for line in read_metrics(run / METRICS_FILE) if line.kind in ("step", "validation")]
    return [{"step": line.step} | {k: v for k, v in line.values.items() if k.startswith("loss")} for line in lines]


def test_two_ranks_learn_and_validate_as_one_does(held_out: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Sharded (FSDP2) over gloo. Sums over ranks are added in another order: 1e-5, as the design promises."""
    run = tmp_path / "run"
    train(held_out, run, 2, **VALIDATED)
    one, two = measured(undisturbed), measured(run)
    assert len(two) == STEPS + 4 and {"loss_ema", "loss/s0.1"} <= two[0].keys()
    assert [line.keys() for line in two] == [line.keys() for line in one]
    for a, b in zip(two, one, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_killed_once_it_ends_bitwise_the_same(held_out: Path, undisturbed: Path, tmp_path: Path) -> None:
    """kill -9 of the command after its first checkpoint; resumed on the same machine, with as many threads."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(held_out, run, 1, **VALIDATED), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and retention.latest(run) is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert not (run / LAST).is_dir()
    in_this_process(held_out, run)
    for name in ("raw.safetensors", "ema.safetensors"):
        assert (run / LAST / name).read_bytes() == (undisturbed / LAST / name).read_bytes(), name
    assert measured(run) == measured(undisturbed) and not list(run.glob("*.tmp"))


def test_two_at_once_and_a_reader_disturb_nobody(held_out: Path, undisturbed: Path, tmp_path: Path) -> None:
    """A second `train` while the first one writes a checkpoint; then `generate` reads while checkpoints come and go."""
    run = tmp_path / "run"
    first = subprocess.Popen(
        command(held_out, run, 1, **VALIDATED), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while first.poll() is None and not (retention.latest(run) and list(run.glob("step-*.tmp"))):
        time.sleep(0.001)
    first.send_signal(signal.SIGSTOP)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    second = subprocess.run(
        command(held_out, run, 1, **VALIDATED), cwd=ROOT, check=False, capture_output=True, text=True
    )  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert second.returncode == 2, second.stderr
    sentence = second.stderr.splitlines()[-1]
    assert f"process {first.pid} " in sentence and "`train`" in sentence and "wait until it has ended" in sentence
    first.send_signal(signal.SIGCONT)
    config = schema.load("tiny", [f"{name}={value}" for name, value in VALIDATED.items()])
    loads = 0
    while first.poll() is None:
        check_network(run, config)
        load_network(run, config.model.transformer, "cpu")
        loads += 1
    assert first.returncode == 0 and loads > 3
    for name in ("raw.safetensors", "ema.safetensors"):
        assert (run / LAST / name).read_bytes() == (undisturbed / LAST / name).read_bytes(), name
    assert measured(run) == measured(undisturbed) and not [p for p in run.iterdir() if p.name.startswith(".")]


def test_a_checkpoint_that_goes_while_it_is_read_is_read_anew_from_the_next(undisturbed: Path, tmp_path: Path) -> None:
    """Retention at its worst moment: between finding a checkpoint and reading it."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed / LAST, run / "step-000001")
    config = schema.load("tiny", [f"{name}={value}" for name, value in VALIDATED.items()])
    read = networks.load_weights

    def late(path: Path) -> dict[str, torch.Tensor]:
        if path.parent.name == "step-000001":
            shutil.copytree(undisturbed / LAST, run / "step-000002")
            shutil.rmtree(path.parent)
        return read(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "load_weights", late)
        load_network(run, config.model.transformer, "cpu")
        shutil.copytree(undisturbed / LAST, run / "step-000001")
        shutil.rmtree(run / "step-000002")
        with pytest.raises(EchoForgeError, match="was deleted while it was read"):
            load_network(run / "step-000001", config.model.transformer, "cpu")


@pytest.mark.slow
def test_many_ranks_are_refused_as_one_is(dataset: Path, tmp_path: Path) -> None:
    with locks.locked(tmp_path / "run", "run", "train"):
        done = subprocess.run(
            command(dataset, tmp_path / "run", 2), cwd=ROOT, check=False, capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert done.returncode and done.stderr.count(f"process {os.getpid()} ") >= 1, done.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.fixture(scope="module")
def alone(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, undisturbed."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(dataset, run, 1)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["2", "1"])
def test_two_ranks_learn_what_one_learns(dataset: Path, alone: Path, tmp_path: Path, shard: str) -> None:
    """Sharded (FSDP2) and replicated: the same losses within 1e-5 over 20 steps."""
    run = tmp_path / "run"
    train(dataset, run, 2, optim__shard=shard)
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert len(losses(run)) == 20


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "shard"), [(2, 1, "2"), (2, 1, "1"), (1, 2, "2")])
def test_resume_on_another_number_of_ranks(
    dataset: Path, alone: Path, tmp_path: Path, before: int, after: int, shard: str
) -> None:
    """Sharded (FSDP2), replicated (HSDP) and plain states, read as another kind of state."""
    run = tmp_path / "run"
    train(dataset, run, before, max_steps="9", optim__shard=shard if before > 1 else "0")
    train(dataset, run, after, optim__shard=shard if after > 1 else "0")
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_bitwise_the_same(dataset: Path, alone: Path, tmp_path: Path) -> None:
    """kill −9 while steps run and checkpoints are written (one every step); whatever is left, the run goes on."""
    run, rng = tmp_path / "run", random.Random(0)
    kills = 0
    while not (run / "step-000020").is_dir():
        process = subprocess.Popen(
            command(dataset, run, 1, checkpoint__every="1", checkpoint__keep_last="1"),
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        before = retention.latest(run)
        while process.poll() is None and retention.latest(run) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        if kills < 8 and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        assert kills or process.returncode == 0
    assert kills >= 3
    assert all(torch.equal(a, b) for a, b in zip(final(run).values(), final(alone).values(), strict=True))
    assert not list(run.glob("*.tmp")) and len(losses(run)) == 20


class Killed(BaseException):
    """Ends a run as `kill -9` does: nothing catches it, and what was written stays."""


def test_what_was_logged_before_the_first_checkpoint_is_logged_once(
    held_out: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Ended after the first validation: nothing was committed, so all is done again."""
    config = schema.load("tiny", [f"{name}={value}" for name, value in VALIDATED.items()])

    def die(line: str) -> None:
        if "held-out loss" in line and "at step 0" in line:
            raise Killed

    run = tmp_path / "run"
    with pytest.raises(Killed):
        train_here(held_out, run, config.model, config.train, say=die, device="cpu")
    assert len(read_metrics(run / METRICS_FILE)) == 1
    in_this_process(held_out, run)
    assert measured(run) == measured(undisturbed)


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_it_is_the_same_run(
    held_out: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """kill -9 once the first line was written; nothing was committed, so all is done again."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(held_out, run, 1, **VALIDATED | {"checkpoint.every": "0"}), cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not ((run / METRICS_FILE).is_file() and (run / METRICS_FILE).stat().st_size):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert retention.latest(run) is None
    in_this_process(held_out, run)
    assert measured(run) == measured(undisturbed)


_SAVE_AS_BEFORE = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
whole = torch.arange(35.0).view(7, 5)
dcp.save({"model.a": distribute_tensor(whole, mesh, [Shard(0)]), "optim.a.step": torch.tensor(4.0)}, checkpoint_id=sys.argv[1])
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_state_that_two_ranks_saved_before_is_read_by_one(tmp_path: Path) -> None:
    """DCP's own writer, whose metadata is a pickle."""
    script = tmp_path / "save.py"
    script.write_text(_SAVE_AS_BEFORE)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run([*ranks, str(tmp_path / "state")], cwd=ROOT, check=True, capture_output=True)
    tensors = {"model.a": torch.zeros(7, 5), "optim.a.step": torch.tensor(0.0)}
    dcp.load(tensors, storage_reader=old_state.read(tmp_path / "state"), no_dist=True)
    assert torch.equal(tensors["model.a"], torch.arange(35.0).view(7, 5)) and tensors["optim.a.step"] == 4


@pytest.mark.slow
def test_damage_that_one_rank_finds_ends_all_ranks_with_one_sentence(dataset: Path, tmp_path: Path) -> None:
    """The second rank looks at what the second rank wrote."""
    run = tmp_path / "run"
    train(dataset, run, 2, max_steps="2")
    (file,) = run.glob("step-*/state/00001-model-0.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    done = subprocess.run(
        command(dataset, run, 2), cwd=ROOT, check=False, capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    printed = " ".join((done.stdout + done.stderr).split())
    assert done.returncode and "state/00001-model-0.safetensors" in printed and "copy it anew" in printed
    assert "train/checkpoints/" not in printed, "a traceback that is not the launcher's"


def _ranks(launcher: int) -> list[int]:
    """Process ids of the ranks: children of torchrun that run our program."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children if b"cli.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["one rank", "the launcher", "everybody"])
def test_ranks_stop_together_and_the_run_goes_on(dataset: Path, alone: Path, tmp_path: Path, whom: str) -> None:
    """SIGTERM while steps run: one checkpoint, an ordinary end that no launcher starts again, and the same losses."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(dataset, run, 2), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while process.poll() is None and not (run / METRICS_FILE).is_file():
        time.sleep(0.002)
    if whom == "one rank":
        os.kill(_ranks(process.pid)[1], signal.SIGTERM)
    elif whom == "the launcher":
        process.send_signal(signal.SIGTERM)
    else:  # as a batch system does
        os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    found = retention.latest(run)
    assert found is not None and found.name < "step-000020", said
    assert "terminate called" not in said and "gloo" not in said, said
    if whom == "one rank":  # torchrun itself always fails when it was told to end
        assert process.returncode == 0 and "the same command goes on" in " ".join(said.split()), said
    train(dataset, run, 1)
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
