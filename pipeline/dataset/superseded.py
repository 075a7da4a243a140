"""Which samples of a dataset a catalog now plans differently: training must not see two versions of one clip.

A new correction of the sound, a new crop or a new span of a clip makes a sample with a new id beside the old one. The
old one then gets the verdict `reject` and the reason `superseded` in the index; its tar stays as it is. When the old
thresholds come back, so does the old sample.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from configs.dataset_schema import INDEX, SUPERSEDED
from curation.clip import Clip
from pipeline.dataset import buckets, sample
from pipeline.dataset.plan import kept_clips
from pipeline.dataset.sample import PlannedSample


def compare(
    plans: Iterable[pa.Table], today: Collection[str], planned: pa.Table, clips: pa.Table, videos: Iterable[str]
) -> dict[str, bool]:
    """Id of every sample that this run answers for → would it be made differently today?

    A sample whose clip is gone is made differently when another clip of the video covers some of its frames; else the
    catalog says nothing about it (the video may be an error today, or be curated in other spans here).

    Args:
        plans: of all generations (`sample.PLAN`).
        today: ids of the samples that ``planned`` gives now: an id is that of all that decides how a sample is made.
        planned: the kept clips that this run plans (within ``--limit``), as `plan.kept_clips` takes them.
        clips: all clips of the catalog (`schema.CLIPS`).
        videos: ids of the videos that this run answers for. Samples of other videos are left out, as are those of
            clips that the catalog holds but this run does not plan: their verdict is the catalog's.
    """
    mine, found, others = set(videos), dict[str, bool](), list[PlannedSample]()
    for plan in plans:
        for name, text in zip(plan["sample_id"].to_pylist(), plan["sample"].to_pylist(), strict=True):
            if name in today:
                found[name] = False
            elif sample.video_id(text) in mine:
                others.append(PlannedSample.from_json(text))
    if not others:
        return found
    wanted = pa.array({made.clip_id for made in others}, pa.string())
    kept = {item.clip.clip_id: item.clip for item in kept_clips(planned.filter(pc.is_in(planned["clip_id"], wanted)))}
    known, spans = set(clips["clip_id"].to_pylist()), defaultdict[str, list[tuple[int, int]]](list)
    places = (clips[name].to_pylist() for name in ("video_id", "start_frame", "end_frame"))
    for video, start, end in zip(*places, strict=True):
        spans[video].append((start, end))
    for made in others:
        clip = kept.get(made.clip_id)
        if clip is not None:
            found[made.sample_id] = _differs(made, clip)
        elif made.clip_id not in known:
            first, end = made.start_frame, made.start_frame + made.frames
            if any(start < end and first < last for start, last in spans[made.source.video_id]):
                found[made.sample_id] = True
    return found


def _differs(made: PlannedSample, clip: Clip) -> bool:
    """Would the sound be corrected otherwise, or the picture cropped otherwise for the same size?

    Other sizes and lengths of the same clip are other buckets of it, and no other version.
    """
    if made.offset_samples != ((clip.decision.offset_samples if clip.decision else None) or 0):
        return True
    return buckets.crop_for(clip, (made.width, made.height)) != made.crop


def mark(index: pa.Table, compared: Mapping[str, bool]) -> pa.Table:
    """The index with the reason :data:`SUPERSEDED` set or cleared as :func:`compare` says, and `reject` where it is set.

    A sample that was not compared keeps the mark that an earlier run gave it.
    """
    reasons = index["reason"].to_pylist()
    marked = [
        (SUPERSEDED if compared[sample] else None) if sample in compared else reason
        for sample, reason in zip(index["sample_id"].to_pylist(), reasons, strict=True)
    ]
    verdicts = [
        "reject" if reason == SUPERSEDED else verdict
        for reason, verdict in zip(marked, index["verdict"].to_pylist(), strict=True)
    ]
    for name, values in (("reason", marked), ("verdict", verdicts)):
        field = INDEX.field(name)
        index = index.set_column(index.schema.get_field_index(name), field, pa.array(values, field.type))
    return index
