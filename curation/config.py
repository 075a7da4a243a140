"""Typed configuration of `curation/`: one dataclass per section of a preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from configs.paths import FilePath, ModelName

TextKind = Literal["subtitle", "ticker", "watermark", "logo", "scene"]


@dataclass(frozen=True)
class SourcesConfig:
    """What is read beside the videos."""

    follow_links: bool = False  # sidecars (captions, facts) that are links out of the folder of sources


@dataclass(frozen=True)
class VideoConfig:
    """How a file is read."""

    backend: Literal["pyav", "decord"]
    threads: int  # of one decoder
    budget_s: float  # CPU seconds that any file may take …
    budget_per_s: float  # … and how many more per second of its duration
    max_gap_s: float  # a longer hole between two timestamps means broken timestamps
    min_decoded: float  # share of the promised duration below which a file counts as truncated
    max_damaged: float  # share of frames that may be damaged; clips avoid the damaged ones


@dataclass(frozen=True)
class ShotsConfig:
    """Cuts by PySceneDetect's AdaptiveDetector, flashes taken back, cross-fades found by their linearity."""

    side: int  # longer side of the pictures compared
    adaptive_threshold: float
    min_content: float
    window: int  # frames on either side that a cut is compared with
    flash_frames: int  # a picture that comes back within so many frames was no cut
    flash_ratio: float  # … as near as this share of the jump
    fade_frames: int  # longest cross-fade looked for
    fade_residual: float  # how far the middle of a fade may be from the mean of its ends, in shares of the change
    fade_change: float  # mean change over a fade, grey levels
    fade_correlation: float  # two pictures more alike than this are one shot


@dataclass(frozen=True)
class ClipsConfig:
    """How shots are cut into clips; lengths are 4k+1 frames (Wan2.1's VAE halves time twice)."""

    min_frames: int
    max_frames: int
    stride: int | None  # from clip to clip within a shot; null: end to end
    margin: int  # frames kept away from every cut


@dataclass(frozen=True)
class FacesConfig:
    """Sparse detection and tracking."""

    detector: Literal["cascade", "yunet", "s3fd"]
    weights: FilePath | None  # file of yunet or s3fd; null: where `weights fetch` puts it
    rate: float  # detections per second
    side: int  # longer side of the pictures searched
    min_score: float | None  # null: the detector's own
    min_share: float  # smallest face looked for, share of the shorter side
    gate_change: float  # grey levels; where no more changed since the whole picture was searched, faces are followed
    full_every: int  # every so many looks the whole picture is searched all the same; 1: always
    iou: float  # overlap that continues a track
    max_gap_s: float  # a track may miss its face so long
    min_hits: int  # detections that make a track …
    min_hit_share: float  # … and their share of the looks from its first to its last


@dataclass(frozen=True)
class SyncFitConfig:
    """Fitting the small SyncNet (`sync fit`)."""

    steps: int
    batch: int  # clips per step
    frames: int  # of every clip in a step
    lr: float
    holdout: float  # share of the videos that it is judged on
    min_sources: int  # fewest videos


@dataclass(frozen=True)
class SyncConfig:
    """How lips are measured against sound; what counts as in sync is in ``decide``. Offset > 0: the sound is early."""

    required: bool  # false: a missing score is no reason to hold a clip
    backend: Literal["none", "syncnet_v2", "fitted"]
    weights: FilePath | None  # SyncNet v2: syncnet_v2.model or .safetensors; null: where `weights fetch` puts it
    fitted: FilePath | None  # file of `sync fit`; only ever used when named here
    batch_size: int  # windows
    vshift: int  # shifts compared, frames either way
    min_frames: int  # fewest frames scored, before and after a correction
    fit: SyncFitConfig


@dataclass(frozen=True)
class TextConfig:
    """Text in the picture: detection behind a change gate, persistence, recognition of what persists."""

    rate: float  # full frames looked at per second
    side: int  # longer side of the pictures that are read
    detect_side: int  # shorter side of the detector's input; smaller pictures are enlarged to it
    detect_pixels: int  # its area at most; the detector's cost is proportional to it
    refresh_s: float  # the detector sees the whole frame at least so often
    gate_stroke: float  # grey levels of local contrast that stands still; a tile with less holds no letters
    box_score: float  # detector's score of a box
    max_area: float  # share of the frame; a larger box is a mistake of the detector
    max_height: float
    min_aspect: float  # width / height
    same: float  # correlation of the high-passed patch above which a text still stands there
    read_score: float  # recogniser's score of a reading …
    min_letters: int  # … and its length, below which it is no text
    unread_score: float  # detector's score of text in a script that the recogniser does not know …
    unread_aspect: float  # … and its shape: a line, not a blob
    wide_aspect: float  # a line so wide …
    wide_score: float  # … found with this score …
    wide_looks: int  # … that stands for so many looks is text whatever it reads as
    low_band: float  # subtitles and tickers: centre below this share of the height …
    top_band: float  # … or above this one
    centre: float  # subtitles: centre no further from the middle, share of the width
    corner: float  # watermarks and logos: distance of the centre from the nearer side and edge …
    edge: float  # … or of the outline from both
    crop_min: float  # a crop that removes text keeps at least this share of either side
    crop_face: float  # margin kept around the face, share of its size
    threads: int


@dataclass(frozen=True)
class QualityConfig:
    """Measures of the picture; what counts as too little is in ``decide``."""

    rate: float  # small pictures per second, for motion and bars …
    side: int  # … and their longer side
    detail_rate: float  # whole pictures per second, for sharpness, light and blocks
    face_side: int  # a face is brought down to this side before its sharpness is measured
    still: float  # grey levels; two pictures whose most different block differs less are the same picture
    black: float  # grey level below which a picture (or a bar) is black
    min_content: float  # a letterbox that leaves less of the height or width is a dark scene


@dataclass(frozen=True)
class AestheticConfig:
    """The optional learned score of the picture."""

    enabled: bool
    model: str  # open_clip's name of the network
    clip: FilePath | None  # file of its weights; null: where `weights fetch` puts it
    head: FilePath | None  # file of the linear layers on top; null: the same
    rate: float  # pictures per second
    side: int  # longer side of the pictures scored
    device: str


@dataclass(frozen=True)
class SoundConfig:
    """Speech by silero-vad (its ONNX model from the wheel), loudness by ITU-R BS.1770."""

    vad_threshold: float  # probability that starts speech
    vad_release: float  # … below which it ends
    min_speech_s: float
    min_gap_s: float  # shorter silences belong to the speech
    clip_level: float  # share of full scale
    threads: int


@dataclass(frozen=True)
class DedupConfig:
    """Search for copies across the corpus, by pairs of hashes (picture, motion) sampled along each clip."""

    enabled: bool
    rate: float  # hashes per second
    side: int
    picture_bits: float  # mean Hamming distance (of 64) of the pictures of a copy, at most
    motion_bits: float  # … and of their motion; unrelated motion: 32
    total_bits: float  # … and of both together
    min_overlap_s: float  # shared stretch that makes a copy
    min_overlap: float  # … and its share of the shorter clip
    max_bucket: int  # a key shared by more clips says nothing
    partitions: int  # passes over the keys; memory is one pass


@dataclass(frozen=True)
class CaptionsConfig:
    """Where captions come from: the first of these that gives one (sidecars always win)."""

    kind: Literal["template", "vlm", "none"]  # what to do without a sidecar
    column: str  # of a manifest or table of captions
    model: ModelName | None  # vlm: a local folder or hub id that `transformers` loads
    device: str
    rate: float  # vlm: pictures kept per second …
    frames: int  # … of which so many at most are shown to the model, spread over the clip …
    side: int  # … at this longer side
    max_tokens: int


@dataclass(frozen=True)
class DecideConfig:
    """Scores → verdict. Every number here can be changed without measuring anything again."""

    min_fps: float
    min_height: int  # shorter side after the crop, pixels
    min_face_px: float
    min_face_share: float  # face over the shorter side of the picture
    min_face_frac: float  # share of the clip with the face in it
    max_faces: int
    sync_min_conf: float  # SyncNet v2
    sync_min_fit_conf: float  # a fitted backend, in units of the threshold on its card
    sync_max_offset: int  # frames, corrected up to here
    sync_max_residual: int  # frames, after correction
    sync_strict_conf: float  # tier "strict"
    sync_strict_offset: int
    text: dict[TextKind, Literal["keep", "crop", "reject"]]  # crop: where a crop removes it, else reject
    text_min_score: float
    max_text_area: float  # all kinds, scene text included
    min_sharpness: float
    min_exposure: float
    max_exposure: float
    min_motion: float
    max_motion: float
    max_shake: float
    max_freeze: float
    max_blockiness: float
    min_aesthetic: float  # where it was scored
    min_lufs: float
    min_speech: float
    max_clipped: float
    max_second_voice: float


@dataclass(frozen=True)
class PuppetsConfig:
    """The procedural corpus: 25 fps, 16 kHz."""

    size: int  # px, square
    min_s: float  # seconds, drawn evenly between …
    max_s: float
    long_share: float  # share of videos that last …
    long_s: float  # … so many seconds: several clips each
    fault_share: float  # share of videos with something wrong
    zoom: tuple[float, float]  # size of the puppet in the picture, drawn evenly
    sway: float  # head motion, px at a size of 96
    crf: int  # x264's constant rate factor


@dataclass(frozen=True)
class CurationConfig:
    """All sections that `curation/` reads."""

    video: VideoConfig
    shots: ShotsConfig
    clips: ClipsConfig
    faces: FacesConfig
    sync: SyncConfig
    text: TextConfig
    quality: QualityConfig
    aesthetic: AestheticConfig
    sound: SoundConfig
    dedup: DedupConfig
    captions: CaptionsConfig
    decide: DecideConfig
    puppets: PuppetsConfig
    sources: SourcesConfig = SourcesConfig()  # older configurations do not have it
