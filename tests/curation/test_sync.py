"""Sync: SyncNet v2 as its package scores, the sign of offsets, corrections, and fitting on puppets."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import wavfile

from configs.errors import EchoForgeError, MissingWeights
from configs.schema import load
from curation.analysis import registry
from curation.clip import Clip
from curation.config import CurationConfig
from curation.decision.decide import decide_clips
from curation.media.clip_reader import read_clip
from curation.media.clip_writer import write_video
from curation.puppets import make, sample
from curation.schema import CLIPS, SAMPLES_PER_FRAME, table
from curation.sync import load_backend
from curation.sync.base import CropNeed, SyncScore, distance_matrix, summarise
from curation.sync.crops import cut, square
from curation.sync.fit import SyncClip, auc, fit_from_clips
from curation.sync.fitted import FittedSync
from curation.sync.gather import catalog_clips, puppet_clip, usable
from curation.sync.measure import Residual, common, measure_residual
from curation.sync.syncnet_v2 import SyncNetV2, network
from pipeline.catalog.queries import Explanation
from tests.curation.rows import analysed_rows
from tests.good_clip import GOOD_CLIP

TINY = load("tiny", []).curation
SYNC = TINY.sync


def _package_instance() -> ModuleType:
    spec = importlib.util.find_spec("syncnet_python")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("syncnet-python is not installed")
    path = Path(spec.submodule_search_locations[0]) / "SyncNetInstance.py"
    inner = importlib.util.spec_from_file_location("_package_instance", path)
    assert inner is not None and inner.loader is not None
    module = importlib.util.module_from_spec(inner)
    sys.modules["_package_instance"] = module
    inner.loader.exec_module(module)
    return module


def _random_network() -> torch.nn.Module:
    torch.manual_seed(4)
    net = network().eval()
    for name, value in net.state_dict().items():  # spread the activations, so that offsets have margins
        if name.endswith("running_mean"):
            value.normal_(0, 0.2)
        elif name.endswith("weight") and value.ndim > 1:
            value.mul_(2.0)
    for last in (net.netfcaud[-1], net.netfclip[-1]):  # … and bring distances to the size that trained ones have
        last.weight.data.mul_(0.005)
    return net


@pytest.mark.parametrize("real", [False, True], ids=["a puppet", "a real clip"])
def test_syncnet_gives_the_numbers_of_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, real: bool
) -> None:
    package, net = _package_instance(), _random_network()
    if real:
        file = request.getfixturevalue("shared_media") / "clips" / "th_syncnet_example.avi"
        crops, pcm, *_ = read_clip(str(file), 0, 34, width=224, height=224)
    else:
        puppet = sample(1, 2, TINY.puppets, frames=34)
        crops, pcm = np.stack([cv2.resize(f, (224, 224)) for f in puppet.frames]), puppet.pcm
    pcm = np.round(pcm * 32768) / 32768
    for index, crop in enumerate(crops):  # the package reads *.jpg by content: lossless PNG bytes under that name
        (tmp_path / f"{index:06d}.jpg").write_bytes(cv2.imencode(".png", crop[..., ::-1])[1].tobytes())
    wavfile.write(tmp_path / "audio.wav", 16_000, (pcm * 32768).astype(np.int16))
    seen: list[torch.Tensor] = []
    original = package.calc_pdist

    def recorded(*args: object, **kwargs: object) -> list[torch.Tensor]:
        rows = original(*args, **kwargs)
        seen.append(torch.stack(rows))
        return rows

    monkeypatch.setattr(package, "calc_pdist", recorded)
    options = SimpleNamespace(tmp_dir=str(tmp_path), batch_size=20, vshift=15)
    with torch.inference_mode():
        offset, conf, dist = package.SyncNetInstance(net, device="cpu").evaluate(options)
    ours = SyncNetV2(net, dataclasses.replace(SYNC, batch_size=12)).score(crops, pcm.astype(np.float32))
    assert ours.distances.shape == (29, 31)
    np.testing.assert_allclose(ours.distances, seen[0].numpy(), atol=1e-4, rtol=0)
    mean = np.sort(ours.mean)
    assert mean[1] - mean[0] > 1e-3
    assert ours.offset_frames == offset
    assert (ours.conf, ours.dist) == pytest.approx((conf, dist), abs=1e-4)


@pytest.mark.parametrize("late", [-5, -1, 0, 3])
def test_sign_late_sound_has_a_negative_offset(late: int) -> None:
    lips = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    sound = torch.roll(lips, late, 0)  # what is seen at frame i is heard at i + late
    score = summarise(distance_matrix(lips, sound, 15, padded=True), 15)
    assert score.offset_frames == -late
    assert score.conf > 1


def delayed(pcm: np.ndarray, samples: int) -> np.ndarray:
    """Sound float32 [n] moved later by ``samples`` (earlier when negative), same length, zeros where nothing is."""
    out = np.zeros_like(pcm)
    out[max(samples, 0) : len(pcm) + min(samples, 0)] = pcm[max(-samples, 0) : len(pcm) - max(samples, 0)]
    return out


@pytest.mark.parametrize("offset", [-3, 2])
def test_trimming_gives_the_delayed_sound_without_its_padding(offset: int) -> None:
    pcm = np.arange(1, 10 * SAMPLES_PER_FRAME + 1, dtype=np.float32)
    seen, heard = common(np.arange(10), pcm, offset)
    assert len(seen) == 10 - abs(offset) and heard.min() > 0
    start = seen[0] * SAMPLES_PER_FRAME
    np.testing.assert_array_equal(heard, delayed(pcm, offset * SAMPLES_PER_FRAME)[start : start + len(heard)])


class _Ids:
    """Reads the offset from numbers: crop and sound hold the number of the frame that they belong to.

    ``stubborn`` is what it measures whatever is done to the sound.
    """

    name, crop, unit = "ids", CropNeed("mouth", 32, gray=True), 1.0

    def __init__(self, conf: float = 5.0, stubborn: int | None = None) -> None:
        self.conf, self.stubborn = conf, stubborn

    def score(self, crops: np.ndarray, pcm: np.ndarray) -> SyncScore:
        heard, seen = pcm[::640][: len(crops)], crops[:, 0, 0].astype(int)
        early = int(np.median((heard - seen)[heard > 0])) if self.stubborn is None else self.stubborn
        return SyncScore(early, self.conf, 0.5, np.zeros((1, 31), np.float32))

    def score_many(self, clips: object) -> list[SyncScore]:
        raise AssertionError


def _shifted(frames: int, early: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops and sound of a clip whose sound is early by so many frames."""
    crops = np.broadcast_to(np.arange(100, 100 + frames, dtype=np.uint8)[:, None, None], (frames, 32, 32))
    return crops, np.repeat(np.arange(100 + early, 100 + early + frames), 640).astype(np.float32)


@pytest.mark.parametrize("early", [-14, -6, -1, 0, 3, 9])
def test_the_remainder_of_every_offset_is_measured_whatever_the_thresholds(early: int) -> None:
    crops, pcm = _shifted(60, early)
    assert measure_residual(_Ids(), crops, pcm, early, 25) == Residual(0, 60 - abs(early))
    stubborn = measure_residual(_Ids(stubborn=early), crops, pcm, early, 25)
    assert stubborn.offset_frames == early
    assert measure_residual(_Ids(), *_shifted(30, 9), 9, 25) == Residual(None, 21)


@given(
    early=st.integers(-15, 15),
    frames=st.integers(25, 120),
    conf=st.floats(0, 12),
    stubborn=st.none() | st.integers(-3, 3),
    limits=st.tuples(st.floats(0, 12), st.integers(0, 15), st.integers(0, 3)),
)
def test_whatever_the_thresholds_a_kept_clip_is_in_sync_when_it_is_measured_again(
    early: int, frames: int, conf: float, stubborn: int | None, limits: tuple[float, int, int]
) -> None:
    backend, (crops, pcm) = _Ids(conf, stubborn), _shifted(frames, early)
    offset = backend.score(crops, pcm).offset_frames
    residual = measure_residual(backend, crops, pcm, offset, SYNC.min_frames)
    row = GOOD_CLIP | {
        "sync_c": conf,
        "av_offset_frames": offset,
        "residual_offset": residual.offset_frames,
        "residual_frames": residual.frames,
    }
    keys = ("sync_min_conf", "sync_max_offset", "sync_max_residual")
    cfg = load("tiny", [f"decide.{key}={value}" for key, value in zip(keys, limits, strict=True)]).curation
    (decided,) = decide_clips(table([row], CLIPS), cfg).to_pylist()
    if decided["verdict"] == "keep":
        heard = delayed(pcm, decided["offset_samples"])
        again = backend.score(crops, heard).offset_frames
        assert abs(again) <= cfg.decide.sync_max_residual
        if stubborn is None:
            assert decided["offset_samples"] == early * 640 and abs(early) <= cfg.decide.sync_max_offset
        assert conf >= cfg.decide.sync_min_conf
    else:
        assert decided["verdict"] == "reject" and decided["offset_samples"] == 0
        assert all(reason.startswith("sync_") for reason in decided["reasons"])


def test_crops_are_where_the_box_is() -> None:
    image = np.zeros((100, 120, 3), np.uint8)
    image[60:80, 40:60] = 255
    need = CropNeed("mouth", 32, gray=True)
    place = square(need, np.array([25.0, 10, 75, 90]), np.array([40.0, 60, 60, 80]))
    crop = cut(image, place, need)
    assert crop.shape == (32, 32)
    assert crop[16, 16] == 255
    assert crop[0, 0] == 0
    rows, columns = np.nonzero(crop > 127)
    assert (rows.mean(), columns.mean()) == pytest.approx((15.5, 15.5), abs=0.6)


def test_nothing_is_used_that_is_not_named(tmp_path: Path) -> None:
    assert load_backend(SYNC) is None
    for preset in ("tiny", "wan2.1-fun-1.3b"):
        assert load(preset, []).curation.sync.fitted is None
    with pytest.raises(MissingWeights, match=r"sync\.fitted"):
        load_backend(dataclasses.replace(SYNC, backend="fitted"))
    wrong = tmp_path / "wrong.model"
    wrong.write_bytes(b"no weights")
    for backend in ("fitted", "syncnet_v2"):
        named = dataclasses.replace(SYNC, backend=backend, fitted=str(wrong), weights=str(wrong))
        with pytest.raises(EchoForgeError, match=r"wrong\.model is not"):
            load_backend(named)  # type: ignore[arg-type]


def _clips(seed: int, count: int, frames: int) -> list[SyncClip]:
    return [puppet_clip(str(i), sample(seed, i, TINY.puppets, frames=frames)) for i in range(count)]


def test_a_short_fit_learns_writes_a_card_and_loads(tmp_path: Path) -> None:
    few = dataclasses.replace(SYNC, fit=dataclasses.replace(SYNC.fit, steps=30, batch=8))
    out = tmp_path / "fitted.safetensors"
    report = fit_from_clips(_clips(0, 12, 50), out, few, domain="puppets")
    assert np.mean(report.losses[-5:]) < 0.9 * report.losses[0]
    backend = FittedSync.load(dataclasses.replace(few, fitted=str(out)))
    assert backend.card == report.card
    assert (report.card.domain, report.card.held_out_clips) == ("puppets", 2)
    with pytest.raises(EchoForgeError, match="at least"):
        fit_from_clips(_clips(0, 2, 40), out, few, domain="puppets")


def test_clips_of_a_catalog_are_cut_along_their_track(tmp_path: Path) -> None:
    (truth,) = make(tmp_path, 1, 0, TINY.puppets, faults=False)
    faces, mouths, at = truth.face_boxes, truth.mouth_boxes, [2, 12, 22, 32]
    track = {
        "track_id": 0,
        "boxes": faces[[10 + i for i in at]].tolist(),
        "mouth_boxes": mouths[[10 + i for i in at]].tolist(),
        "box_frames": at,
    }
    row = {
        "clip_id": "c",
        "video_id": "v",
        "source_uri": str(tmp_path / truth.file),
        "start_frame": 10,
        "end_frame": 43,
        "width": 96,
        "height": 96,
        "tracks": [track],
        "active_track": 0,
        "verdict": "hold",
    }
    rejected = row | {"verdict": "reject", "source_uri": "never read"}
    (clip,) = catalog_clips(map(Clip.from_row, table([row, rejected], CLIPS).to_pylist()))
    assert (clip.source, clip.crops.shape, clip.pcm.shape) == ("v", (33, 32, 32), (33 * 640,))
    assert np.corrcoef(sample(0, 0, TINY.puppets).pcm[6400 : 43 * 640], clip.pcm)[0, 1] > 0.95


def test_a_fit_learns_from_no_clip_whose_offset_is_known_and_not_corrected() -> None:
    row = GOOD_CLIP | {"tracks": [{"track_id": 0, "boxes": [], "mouth_boxes": [], "box_frames": []}], "active_track": 0}
    scored = {"sync_c": 8.0, "residual_offset": 0, "residual_frames": 100}
    clips = [
        row,  # without a score: nobody knows better
        row | scored | {"av_offset_frames": 0},
        row | scored | {"av_offset_frames": 4},
        row | {"sync_c": 8.0, "av_offset_frames": 4},  # held: what a correction leaves was not measured
    ]
    decided = decide_clips(table(clips, CLIPS), TINY).to_pylist()
    assert [clip["verdict"] for clip in decided] == ["hold", "keep", "keep", "hold"]
    assert [usable(Clip.from_row(clip)) for clip in decided] == [True, True, True, False]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fit") / "fitted.safetensors"
    fit_from_clips(_clips(0, 60, 75), out, SYNC, domain="puppets")
    return out


@pytest.mark.slow
def test_a_fit_on_sixty_puppets_tells_shifts_apart(fitted: Path) -> None:
    backend = FittedSync.load(dataclasses.replace(SYNC, fitted=str(fitted)))
    good, shifted, near = [], [], []
    for clip in _clips(9, 24, 80):
        for late in (0, -10, -5, -3, 3, 4, 7):
            crops, pcm = clip.crops[10:70], clip.pcm[(10 - late) * 640 : (70 - late) * 640]
            score = backend.score(crops, pcm)
            (shifted if late else good).append(score.conf_at_zero)
            near.append(abs(score.offset_frames + late) <= 1)
            residual = measure_residual(backend, crops, pcm, score.offset_frames, SYNC.min_frames)
            assert abs(residual.offset_frames or 0) <= 1
    assert auc(np.array(good), np.array(shifted)) >= 0.99
    assert np.mean(near) >= 0.95


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> FittedSync:
    """A backend fitted on other puppets with another seed: it shares no weight and no picture with ``fitted``."""
    out = tmp_path_factory.mktemp("second") / "fitted.safetensors"
    clips = [puppet_clip(str(i), sample(77, i, TINY.puppets, frames=75)) for i in range(60)]
    fit_from_clips(clips, out, SYNC, domain="other puppets", seed=5)
    return FittedSync.load(dataclasses.replace(SYNC, fitted=str(out)))


LIMITS = {
    "as configured": [],
    "wide": ["decide.sync_min_fit_conf=0.4", "decide.sync_max_offset=14", "decide.sync_max_residual=2"],
    "strict": ["decide.sync_max_offset=3", "decide.sync_max_residual=0"],
}


def residuals_of_kept(
    files: dict[str, int], fitted: Path, judge: FittedSync, limits: list[str]
) -> tuple[CurationConfig, list[tuple[int, int]]]:
    """(frames that the corrected sound is off by the truth, and by ``judge``) of every kept clip.

    Args:
        files: path → frames that its sound is late.
    """
    settings = ["sync.backend=fitted", f"sync.fitted={fitted}", "dedup.enabled=false", *limits]
    cfg = load("tiny", settings).curation
    loaded, found = registry.load(cfg), []
    for file, late in files.items():
        rows = table(analysed_rows(file, cfg, backends=loaded)[1], CLIPS)
        for row in decide_clips(rows, cfg).to_pylist():
            if row["verdict"] == "keep":
                (clip,) = catalog_clips([Clip.from_row(row)])
                again = judge.score(clip.crops, clip.pcm).offset_frames
                found.append((late + row["offset_samples"] // 640, again))
    return cfg, found


@pytest.mark.timeout(900)  # two networks are fitted
@pytest.mark.slow
@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_kept_puppets_with_shifted_sound_are_in_sync_when_another_network_measures_them(
    tmp_path: Path, fitted: Path, second: FittedSync, limits: list[str]
) -> None:
    files = {}
    for number, late in enumerate((0, 0, -1, 1, 2, -3, 4, -5, 6, -8, 10, -12)):
        puppet = sample(31, number, TINY.puppets, frames=75)
        write_video(tmp_path / f"{number}.mp4", puppet.frames, delayed(puppet.pcm, late * 640))
        files[str(tmp_path / f"{number}.mp4")] = late
    cfg, found = residuals_of_kept(files, fitted, second, limits)
    assert len(found) >= sum(abs(late) <= cfg.decide.sync_max_offset for late in files.values()) - 3
    for by_truth, by_other in found:
        assert abs(by_truth) <= cfg.decide.sync_max_residual
        assert abs(by_other) <= cfg.decide.sync_max_residual


REAL = ("th_retalking_face2.mp4", "th_retalking_face5.mp4", "th_grid_pwij3p.mpg", "th_grid_lbbc2a.mpg")


@pytest.mark.timeout(900)  # two networks are fitted
@pytest.mark.slow
def test_kept_real_clips_with_shifted_sound_are_in_sync_when_another_network_measures_them(
    shared_media: Path, tmp_path: Path
) -> None:
    """SyncNet's weights cannot be had, so two networks are fitted on the unshifted clips: they know these faces."""
    cfg = load("tiny", ["captions.kind=none"]).curation
    loaded = registry.load(cfg)
    rows = [r for name in REAL for r in analysed_rows(str(shared_media / "clips" / name), cfg, backends=loaded)[1]]
    clips = [  # under three names each: two at most are held out, so every face is learned
        dataclasses.replace(clip, source=f"{clip.source}-{name}")
        for clip in catalog_clips(map(Clip.from_row, table(rows, CLIPS).to_pylist()))
        for name in range(3)
    ]
    few = dataclasses.replace(SYNC, fit=dataclasses.replace(SYNC.fit, steps=250, batch=8, holdout=0.0))
    for seed in (0, 1):
        fit_from_clips(clips, tmp_path / f"{seed}.safetensors", few, domain="four real clips", seed=seed)
    manifest = json.loads((shared_media / "manifest.json").read_text())["files"]
    files = {
        str(shared_media / entry["file"]): round(entry["audio_shift_ms"] / 40)
        for entry in manifest
        if re.match(r"faults/shift_(face2|face5|grid_pwij3p|grid_lbbc2a)_", entry["file"])
    }
    judge = FittedSync.load(dataclasses.replace(SYNC, fitted=str(tmp_path / "1.safetensors")))
    for limits in ([], ["decide.sync_max_offset=10"]):
        decided, found = residuals_of_kept(files, tmp_path / "0.safetensors", judge, limits)
        assert len(found) >= 7
        for by_truth, by_other in found:
            assert abs(by_truth) <= decided.decide.sync_max_residual
            assert abs(by_other) <= decided.decide.sync_max_residual


@pytest.mark.slow
@pytest.mark.parametrize("speaks", [0, 1])
def test_of_two_people_the_one_whose_lips_fit_speaks(tmp_path: Path, fitted: Path, speaks: int) -> None:
    two = [sample(9, n, TINY.puppets, frames=80) for n in (0, 3)]
    side_by_side = np.concatenate([np.repeat(np.repeat(p.frames, 2, 1), 2, 2) for p in two], axis=2)
    write_video(tmp_path / "two.mp4", side_by_side, two[speaks].pcm)
    cfg = load("tiny", ["sync.backend=fitted", f"sync.fitted={fitted}"]).curation
    (clip, *_) = analysed_rows(str(tmp_path / "two.mp4"), cfg, backends=registry.load(cfg))[1]
    assert (clip["n_faces"], clip["active_by"]) == (2, "sync")
    track = clip["tracks"][clip["active_track"]]
    assert (track["boxes"][0][0] > 192) == bool(speaks), "the left one, or the right one"
    assert all(t["conf"] is not None for t in clip["tracks"])
    shown = str(Explanation(Clip.from_row(clip | {"verdict": "reject"}), []))
    assert f"number {clip['active_track']} is taken for the speaker: its lips fit the sound best" in shown
