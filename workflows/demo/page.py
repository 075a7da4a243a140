"""The page that `demo` ends with: what went in, what was kept and why, how training went, what came out."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from configs.runtime import disk


@dataclass(frozen=True)
class Check:
    """One of the bars that the demo sets itself: what was measured, against what."""

    name: str
    value: str
    bar: str
    passed: bool


@dataclass(frozen=True)
class Source:
    """One input video as the page shows it."""

    name: str
    thumbnail: str  # data: URI
    injected: str  # the fault that the generator put in, or ''
    verdict: str
    reasons: Sequence[str]


@dataclass(frozen=True)
class Generated:
    """One generated video beside its reference; paths relative to the page."""

    title: str
    video: str
    reference: str
    poster: str  # data: URI, a strip of frames
    reference_poster: str
    facts: Sequence[str]


@dataclass(frozen=True)
class Negative:
    """A sample that was gathered from the intermediate checkpoint."""

    strip: str  # data: URI
    flags: Sequence[str]
    verdict: str  # what NDPO takes it for


@dataclass(frozen=True)
class Curve:
    """One line of a plot."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class DemoPage:
    """Everything on the page."""

    title: str
    statement: str
    checks: Sequence[Check]
    funnel: Sequence[tuple[str, int, float]]  # name, clips, hours
    sources: Sequence[Source]
    curves: Sequence[Curve]
    stages: Sequence[tuple[str, int]]  # name, first step
    negatives: Sequence[Negative]
    generated: Sequence[Generated]
    timings: Sequence[tuple[str, float]]  # what, seconds
    facts: dict[str, str] = field(default_factory=dict)


def write(page: DemoPage, target: Path) -> None:
    """Write the page (atomic)."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(resources.files("workflows.demo").joinpath("page.html").read_text("utf-8"))
    html = template.render(page=page, loss_plot=loss_plot(page.curves, page.stages))
    with disk.replacing(target) as part:
        part.write_text(html, "utf-8")


def loss_plot(curves: Sequence[Curve], stages: Sequence[tuple[str, int]]) -> str:
    """Loss curves as an SVG element; the training curve also as a running median, since flow losses vary with t."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    with plt.rc_context(
        {"font.family": "sans-serif", "font.size": 9, "svg.fonttype": "none", "text.parse_math": False}
    ):
        figure, axes = plt.subplots(figsize=(8.6, 3.2), layout="constrained")
        for number, curve in enumerate(curves):
            steps, values = np.asarray(curve.steps), np.asarray(curve.values)
            if len(values) > 60:  # a dense training curve: faint points, strong median
                axes.plot(steps, values, ".", ms=2, alpha=0.25, color=f"C{number}")
                values = _running_median(values, 15)
            axes.plot(
                steps, values, label=curve.label, color=f"C{number}", marker="o" if len(values) < 20 else None, ms=4
            )
        for name, first in stages:
            axes.axvline(first, color="0.7", lw=0.8, ls=":")
            axes.annotate(
                name,
                (first, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -10),
                textcoords="offset points",
                color="0.4",
            )
        axes.set(xlabel="step", ylabel="flow-matching loss", ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
        plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def strip(frames: np.ndarray, count: int = 6, height: int = 96) -> str:
    """``count`` evenly spaced frames of uint8 [F, H, W, 3], side by side, as a data: URI (JPEG)."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]
    joined = Image.fromarray(np.concatenate(list(chosen), axis=1))
    scale = height / joined.height
    return jpeg_uri(np.asarray(joined.resize((round(joined.width * scale), height), Image.Resampling.LANCZOS)))


def jpeg_uri(image: np.ndarray) -> str:
    """uint8 [H, W, 3] → a data: URI."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=88)
    return jpeg_data_uri(buffer.getvalue())


def jpeg_data_uri(data: bytes) -> str:
    """The bytes of a JPEG file → a data: URI."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)[: len(values)]
