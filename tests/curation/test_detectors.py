"""The three detectors behind one interface: the same faces in the same places; files that are missing or wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import EchoForgeError, MissingWeights
from configs.schema import load
from curation.analysis import registry
from curation.faces import load_detector
from curation.media.clock import FramePass, open_video
from curation.puppets import sample
from tests.curation.rows import analysed_rows

CFG = load("tiny").curation
YUNET = "weights/face_detection_yunet_2023mar.onnx"


def pictures(video: Path, count: int = 3) -> list[np.ndarray]:
    """Some frames at the size that detectors search, uint8 [h, w, 3]."""
    with open_video(str(video), CFG.video) as file:
        scale = CFG.faces.side / max(file.info.width, file.info.height)
        size = round(file.info.width * scale), round(file.info.height * scale)
        return [t.frame.picture(*size) for t in FramePass(file, CFG.video).run() if t.index % 25 == 0][:count]


@pytest.mark.parametrize("name", ["th_retalking_face5.mp4", "th_grid_pwij3p.mpg", "th_latentsync_demo2.mp4"])
def test_cascade_and_yunet_agree_on_where_a_face_is(shared_media: Path, name: str) -> None:
    cascade = load_detector(CFG.faces)
    yunet = load_detector(replace(CFG.faces, detector="yunet", weights=str(shared_media / YUNET)))
    for image in pictures(shared_media / "clips" / name):
        (a,), (b,) = cascade.detect(image), yunet.detect(image)
        size = b.box[2] - b.box[0]
        assert np.abs(a.box - b.box).max() < 0.25 * size
        assert b.mouth is not None and b.mouth[0, 0] < b.mouth[1, 0], "left corner, right corner"
        assert (b.mouth > b.box[:2]).all() and (b.mouth < b.box[2:]).all()
        near = yunet.near(image, b, 0.6)
        assert near is not None and np.abs(near.box - b.box).max() < 0.15 * size


def test_mouth_boxes_come_from_landmarks_where_there_are_any(shared_media: Path) -> None:
    named = ["sync.required=false", "faces.detector=yunet", f"faces.weights={shared_media / YUNET}"]
    cfg = load("tiny", named).curation
    (clip, *_) = analysed_rows(str(shared_media / "clips/th_retalking_face5.mp4"), cfg, backends=registry.load(cfg))[1]
    (track,) = clip["tracks"]
    face, mouth = np.array(track["boxes"]), np.array(track["mouth_boxes"])
    assert clip["active_by"] == "alone" and len(face) == len(mouth) == len(track["box_frames"])
    centre = ((mouth[:, :2] + mouth[:, 2:]) / 2 - face[:, :2]) / (face[:, 2:] - face[:, :2])
    assert (np.abs(centre - [0.5, 0.73]) < 0.15).all() and centre.std(axis=0).max() > 1e-3, "it moves within the face"


def test_s3fd_is_the_packages_own_and_reads_nothing_but_tensors(tmp_path: Path) -> None:
    nets = pytest.importorskip("syncnet_python.detectors.s3fd.nets")
    torch.manual_seed(0)
    torch.save(nets.S3FDNet(device="cpu").state_dict(), tmp_path / "sfd_face.pth")
    cfg = replace(CFG.faces, detector="s3fd", weights=str(tmp_path / "sfd_face.pth"), min_score=0.0)
    image = sample(0, 0, CFG.puppets, frames=1).frames[0]
    found = [load_detector(cfg).detect(image) for _ in range(2)]  # repeatable: the same picture on the same machine
    assert [f.box.tolist() for f in found[0]] == [f.box.tolist() for f in found[1]]
    assert all(f.box.shape == (4,) and 0 <= f.score <= 1 for f in found[0])


@pytest.mark.parametrize("detector", ["yunet", "s3fd"])
def test_a_file_that_is_missing_or_something_else_is_named(tmp_path: Path, detector: str) -> None:
    file = tmp_path / "weights.bin"
    with pytest.raises(MissingWeights, match=detector):
        load_detector(replace(CFG.faces, detector=detector, weights=str(file)))
    file.write_bytes(b"something else")
    with pytest.raises(EchoForgeError, match=r"weights\.bin"):
        load_detector(replace(CFG.faces, detector=detector, weights=str(file)))


def test_an_annotated_region_says_whose_face_is_meant(shared_media: Path) -> None:
    video = str(shared_media / "faults/twoface_sidebyside.mp4")
    cfg = load("tiny", ["sync.required=false"]).curation
    loaded = registry.load(cfg)
    (both, *_) = analysed_rows(video, cfg, backends=loaded)[1]
    assert both["n_faces"] == 2 and both["active_by"] == "size"
    half, height = both["width"] // 2, both["height"]
    for x, scale in ((0, 1), (half, 1), (half, 2)):
        region = (x // scale, 0, half // scale, height // scale, height // scale)
        (one, *_) = analysed_rows(video, cfg, backends=loaded, region=region)[1]
        assert one["n_faces"] == 1 and (one["tracks"][0]["boxes"][0][0] >= half) == (x > 0)
