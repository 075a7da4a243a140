"""A clip that passes every rule of the presets but the one that asks for a sync score."""

from __future__ import annotations

GOOD_CLIP = {
    "clip_id": "c", "video_id": "v", "source_uri": "v.mp4", "start_frame": 0, "end_frame": 113, "start_s": 0.0,
    "end_s": 4.52, "width": 512, "height": 512, "fps": 25.0, "face_frac": 1.0, "face_px": 200.0, "n_faces": 1,
    "text_boxes": [], "text_area": 0.0, "sharpness": 0.5, "exposure": 0.5, "motion": 4.0, "shake": 0.0,
    "freeze_frac": 0.0, "blockiness": 1.0, "lufs": -20.0, "speech_frac": 0.9, "clip_frac": 0.0, "phash": [],
}  # fmt: skip
"""A row of `schema.CLIPS`, as `curate` hands it to the decision; `Clip.from_row` makes the clip of it."""
