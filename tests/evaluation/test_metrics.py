"""Metrics say what they should on pictures whose answer is known, and nothing where they cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from evaluation import defects
from evaluation.config import MetricsConfig
from evaluation.metrics import METRICS, VERSION, NotMeasured, Video, colour_drift, flicker, motion, psnr, ssim
from evaluation.table import evaluate, write

pytestmark = pytest.mark.numeric


def _noise(seed: int = 0, frames: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8)


def test_identical_videos_and_worse_ones() -> None:
    clean = Video(_noise() // 2 + 60)
    assert psnr(clean, clean) == float("inf") and ssim(clean, clean) == pytest.approx(1.0, abs=1e-5)
    shifted = Video(clean.frames + 10)
    assert psnr(shifted, clean) == pytest.approx(10 * np.log10(255**2 / 100), abs=1e-3)
    assert ssim(Video(_noise(1)), clean) < 0.5


def test_still_video_neither_drifts_nor_moves() -> None:
    still = Video(np.repeat(_noise(frames=1), 10, axis=0))
    # Equal frames have equal means, so their differences are exact zeros.
    assert colour_drift(still) == 0 and flicker(still) == 0 and motion(still) < 0.01
    ramp = still.frames.astype(int) + np.arange(10)[:, None, None, None] * 3
    assert colour_drift(Video(ramp.clip(0, 255).astype(np.uint8))) > 3


def test_motion_is_in_pixels_per_frame() -> None:
    picture = np.kron(_noise(frames=1)[0, :12, :16], np.ones((8, 8, 1), np.uint8))
    moved = np.stack([np.roll(picture, 2 * i, axis=1) for i in range(6)])
    assert motion(Video(moved)) == pytest.approx(2.0, abs=0.5)


def test_what_cannot_be_measured_says_why() -> None:
    with pytest.raises(NotMeasured):
        psnr(Video(_noise()), None)
    table = evaluate({"a": Video(_noise())}, {}, MetricsConfig(("psnr", "flicker", "fvd"), 96))
    by_name = table.set_index("metric")
    assert by_name["value"].isna().to_dict() == {"psnr": True, "flicker": False, "fvd": True}
    assert "no reference" in by_name.loc["psnr", "note"] and "weights" in by_name.loc["fvd", "note"]
    assert set(METRICS) & {"psnr", "flicker"}


def test_samples_and_tables_are_measured_alike() -> None:
    frames = (_noise(frames=33) // 2 + np.arange(33, dtype=np.uint8)[:, None, None, None]).astype(np.uint8)
    found = defects.measure(frames, frames[0])
    assert found["colour_shift"] == colour_drift(Video(frames)) and found["flicker"] == flicker(Video(frames))


def test_a_table_names_the_version_of_its_metrics(tmp_path: Path) -> None:
    table = evaluate({"a": Video(_noise())}, {}, MetricsConfig(("psnr", "flicker"), 96))
    write(table, tmp_path / "table.parquet")
    assert pq.read_schema(tmp_path / "table.parquet").metadata[b"metrics"] == str(VERSION).encode()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), table)
