"""The time left: a running mean of the steps, to the step at which the run stops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from benchmarks.synthetic_shards import write_dataset
from configs import schema
from configs.dataset_schema import PROMPTS_FILE
from train.log import Pace
from train.trainer import train

seconds = st.floats(1e-3, 1e3)


def pace_of(steps: list[float], window: int) -> Pace:
    pace = Pace(window)
    for step in steps:
        pace.add(step)
    return pace


@given(first=seconds, steps=st.lists(seconds, min_size=1, max_size=30), window=st.integers(1, 10))
def test_the_first_step_never_counts_and_only_the_last_ones_do(first: float, steps: list[float], window: int) -> None:
    assert pace_of([first], window).left(7) is None
    recent = steps[-window:]
    assert pace_of([first, *steps], window).left(7) == pytest.approx(7 * sum(recent) / len(recent))


@given(every=st.integers(2, 8), slow=st.floats(1.0, 100.0), rounds=st.integers(1, 4))
def test_a_held_out_loss_every_few_steps_does_not_make_it_jump(every: int, slow: float, rounds: int) -> None:
    """With a window of whole rounds the mean is the same after every step."""
    pace = pace_of([60.0] + ([1.0] * (every - 1) + [slow]) * rounds, window=every)
    seen = []
    for step in range(2 * every):
        pace.add(slow if step % every == every - 1 else 1.0)
        seen.append(pace.left(100))
    assert seen == pytest.approx([100 * (every - 1 + slow) / every] * len(seen))


def test_a_run_of_few_steps_counts_down_to_its_own_end(tmp_path: Path) -> None:
    """`--steps 3` of a stage of 20: the lines say 3, also where `log.every` is larger."""
    write_dataset(tmp_path / "dataset", {"64x64x17": 8})
    prompts = {name: torch.zeros(1, 64, dtype=torch.bfloat16) for name in ("null", "negative")}
    save_file(prompts, tmp_path / "dataset" / PROMPTS_FILE)
    config = schema.load("tiny", [
        "transformer.dim=48", "transformer.ffn_dim=64", "transformer.num_heads=2", "transformer.num_layers=1",
        "transformer.patch_size=[1,2,2]", "optim.threads=1", "optim.micro_batch=2", "loader.global_batch=2",
        "tasks.mix={i2v: 1.0}", "log.every=2", "log.validate_every=0", "log.validation_samples=0",
        "stages=[{name: s, kind: sft, steps: 20}]",
    ])  # fmt: skip
    said: list[str] = []
    outcome = train(
        tmp_path / "dataset", tmp_path / "run", config.model, config.train, max_steps=3, say=said.append, device="cpu"
    )
    assert outcome.status == "paused" and outcome.step == 3
    steps = [line for line in said if "  step " in line]
    assert [line.split()[2] for line in steps] == ["2/3", "3/3"]
    assert steps[-1].endswith("0:00 left")
